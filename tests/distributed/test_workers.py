"""``fuxictr run --workers``: the same run by several processes, though one of them is killed."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from programs import FUXICTR, Program

from fuxictr_tf4ctr.cli import main

SETTINGS = (
    "epochs=3", "checkpoint_steps=3", "net_dropout=0", "embedding_dim=4", "optimizer=SGD",
    "learning_rate=0.1", "complex_hidden_units=[8]", "batch_norm=false", "verbose=0",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds the ranks through /proc"
)


def experiment(*options: str) -> list[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["run", "--expid", "TF4CTR_demo", *settings, *options]


def start(folder: Path, *options: str) -> Program:
    return Program(*FUXICTR, *experiment(*options), cwd=folder)


def rank_of(process: Path, launcher: int) -> str | None:
    """The rank of a process, if the launcher started it."""
    try:
        parent = int((process / "stat").read_text().rsplit(")")[1].split()[1])
        variables = (process / "environ").read_text().split("\0")
    except OSError:
        return None
    found = dict(variable.split("=", 1) for variable in variables if "=" in variable)
    return found.get("RANK") if parent == launcher else None


def kill_rank(rank: str, launcher: int) -> None:
    processes = [p for p in Path("/proc").glob("[0-9]*") if rank_of(p, launcher) == rank]
    os.kill(int(processes[0].name), signal.SIGKILL)


def runs(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in folder.glob("checkpoints/demo/*/*/run.json")]


def test_a_run_of_two_whose_second_is_killed_ends_as_that_of_one(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    reference = start(alone)
    _, errors = reference.communicate(timeout=240)
    assert reference.returncode == 0, errors[-3000:]
    process = start(together, "--workers", "2", "--max-restarts", "1")
    deadline = time.monotonic() + 120
    while not list(together.glob("checkpoints/demo/*/*/state/*.state")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    kill_rank("1", process.pid)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    assert output.count("test  AUC") == 1
    (expected,), (found,) = runs(alone), runs(together)
    assert found["status"] == "finished" and found["machine"]["workers"] == 2
    assert len(found["resumed"]) == 1
    for ours, theirs in zip(found["evaluations"], expected["evaluations"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["step"] == theirs["step"]
    assert found["test"] == pytest.approx(expected["test"], rel=2e-3)
    results = (together / "checkpoints" / "results.csv").read_text()
    assert results.count("[exp_id] TF4CTR_demo") == 1


def test_what_cannot_work_is_said_before_a_process_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for options, words in (
        (("--workers", "3", "--set", "batch_size=1000"), "set it to 999"),
        (("--workers", "0"), "at least 1 is needed"),
    ):
        assert main(experiment(*options)) == 2
        errors = capsys.readouterr().err
        assert words in errors and "rank" not in errors
    assert not list(tmp_path.iterdir())
