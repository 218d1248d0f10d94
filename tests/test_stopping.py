"""How a process ends before it is done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fuxictr_tf4ctr import cli
from fuxictr_tf4ctr.errors import Terminated
from fuxictr_tf4ctr.stopping import signals_raise, sigterm_noted

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("number", "kind", "status"),
    [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, Terminated, 143)],
)
def test_a_signal_that_a_library_swallows_still_ends_the_command(
    monkeypatch, capsys, number, kind, status
):
    def library(_):
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            raise NotImplementedError("optimizer=Adam is not supported") from None

    with signals_raise() as asked, pytest.raises(kind):
        os.kill(os.getpid(), number)
    assert [type(each) for each in asked] == [kind]
    monkeypatch.setattr("fuxictr_tf4ctr.registry.describe_models", library)
    assert cli.main(["list"]) == status
    assert "Adam" not in capsys.readouterr().err


def test_sigterm_waits_for_a_safe_point():
    done = []
    with pytest.raises(Terminated), signals_raise(), sigterm_noted() as check:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("the step")
        check()
    assert done == ["the step"]


def test_an_orphan_ends_by_itself():
    child = (
        "import time\n"
        "from fuxictr_tf4ctr.stopping import end_with_parent, signals_raise\n"
        "with signals_raise():\n"
        "    end_with_parent()\n"
        "    try:\n"
        "        print('began', flush=True)\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        print('ended', flush=True)\n"
    )
    parent = (
        "import os, subprocess, sys\n"
        "from fuxictr_tf4ctr.stopping import as_parent\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], env=os.environ | as_parent())\n"
        "os.read(0, 1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "began\n"
    process.kill()
    assert process.stdout.readline() == "ended\n"
    process.stdout.close()
    process.stdin.close()
    process.wait()
