"""``fuxictr run --resume``: processes killed at random moments, and what is refused."""

import json
import random
import re
import signal
import time
from types import MappingProxyType, SimpleNamespace

import pytest
from programs import FUXICTR, Program, run_program

from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.runs.records import RunRecord
from fuxictr_tf4ctr.runs.resume import differences, refuse_other_data

EXPID = "TF4CTR_DCNv2_demo"
SMALL = [
    "embedding_dim=4", "complex_hidden_units=[4]", "epochs=2", "batch_size=100",
    "checkpoint_steps=23", "net_dropout=0.1",
]  # fmt: skip


def command(*arguments, settings=SMALL):
    overrides = [part for setting in settings for part in ("--set", setting)]
    return [*FUXICTR, "run", "--expid", EXPID, *overrides, *arguments]


def finish(*arguments, cwd, settings=SMALL):
    return run_program(*command(*arguments, settings=settings), cwd=cwd)


def cut_off(*arguments, cwd, output, step, sent):
    """Start a run and send a signal once a state of training step ``step`` or later is there."""
    process = Program(*command(*arguments, "--output", output), cwd=cwd)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        states = (cwd / output).glob("demo/*/*/state/*.state")
        if any(int(re.search(r"\d+", state.name)[0]) >= step for state in states):
            process.send_signal(sent)
            break
        time.sleep(0.002)
    return process.wait(60)


def only_record(folder):
    (file,) = folder.glob("demo/*/*/run.json")
    return file.parent, json.loads(file.read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with an uninterrupted run, and its record."""
    folder = tmp_path_factory.mktemp("resume")
    done = finish("--output", "whole", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    run, record = only_record(folder / "whole")
    assert not (run / "state").exists()
    return folder, record


def assert_same_result(record, expected):
    def without_seconds(content):
        return [{k: v for k, v in e.items() if k != "seconds"} for e in content["evaluations"]]

    assert record["status"] == "finished" and record["error"] is None
    assert (record["valid"], record["test"]) == (expected["valid"], expected["test"])
    assert without_seconds(record) == without_seconds(expected)


def test_a_run_killed_at_random_steps_ends_with_the_same_metrics(whole):
    folder, expected = whole
    steps = sorted(random.Random().sample(range(1, 440), 2))
    for attempt, step in enumerate(steps):
        resume = ["--resume"] if attempt else []
        status = cut_off(*resume, cwd=folder, output="killed", step=step, sent=signal.SIGKILL)
        assert status == -signal.SIGKILL, steps
    done = finish("--output", "killed", "--resume", cwd=folder)
    assert done.returncode == 0, (steps, done.stderr[-3000:])
    assert "Resume after epoch" in done.stderr
    run, record = only_record(folder / "killed")
    assert_same_result(record, expected)
    # A run killed before its first checkpoint starts over, which is no resuming.
    assert 1 <= len(record["resumed"]) <= 2, steps
    assert {path.name for path in run.iterdir()} == {
        ".lock", f"{EXPID}.log", f"{EXPID}.model", "run.json", "schema",
    }  # fmt: skip


@pytest.fixture
def refused(capsys):
    """What the command says, in this process, when it refuses what it is asked."""

    def said(*arguments, settings=SMALL):
        assert main([str(word) for word in command(*arguments, settings=settings)[2:]]) == 2
        return capsys.readouterr().err

    return said


def test_sigterm_saves_says_so_and_the_run_can_go_on(whole, refused, monkeypatch):
    folder, expected = whole
    monkeypatch.chdir(folder)
    status = cut_off(cwd=folder, output="stopped", step=100, sent=signal.SIGTERM)
    assert status == 143
    run, record = only_record(folder / "stopped")
    assert record["status"] == "interrupted"
    # Other settings are refused, and nothing changes.
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = [*SMALL, "batch_size=50", "c=0.7", "verbose=0"]
    said = refused("--output", "stopped", "--resume", settings=other)
    assert "- batch_size: 100 then, 50 now" in said
    assert re.search(r"- c: \S+ then, 0\.7 now", said) and "verbose" not in said
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = finish("--resume", run, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_result(only_record(folder / "stopped")[1], expected)
    # What is finished is not resumed.
    assert "finished" in refused("--resume", run)
    assert "no unfinished run" in refused("--output", "stopped", "--resume")


def test_a_folder_without_a_run_is_named(tmp_path, refused):
    assert "nowhere: no such folder" in refused("--resume", tmp_path / "nowhere")
    assert "run.json: no such file" in refused("--resume", tmp_path)


def test_differences_that_do_not_matter_are_not_listed():
    then = {"gpu": -1, "verbose": 1, "epochs": 2, "checkpoint_steps": None, "seed": 1, "c": 0.8}
    now = {"gpu": 0, "verbose": 0, "epochs": 3, "checkpoint_steps": 9, "seed": 1, "c": 0.8}
    assert differences(then, now) == []
    assert differences(then, now | {"epochs": 1}) == ["epochs: 2 then, 1 now"]
    assert differences(then, now | {"seed": 2, "alpha": 1}) == [
        "alpha: None then, 1 now",
        "seed: 1 then, 2 now",
    ]


def test_other_data_are_refused(tmp_path):
    record = RunRecord("x", tmp_path, MappingProxyType({}))
    dataset = SimpleNamespace(fingerprint="new", rows={"train": 9})
    refuse_other_data(record, dataset)  # killed before the data were known
    record.data = {"fingerprint": "old", "rows": {"train": 8}}
    with pytest.raises(SettingsError, match=r"old then, new now; rows {'train': 8} then"):
        refuse_other_data(record, dataset)
