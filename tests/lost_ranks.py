"""A run of two ranks that loses one ends as that of one process, whatever started the ranks."""

import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fuxictr_tf4ctr.cli import main

# Neither dropout nor batch norm, and no Adam: the result does not depend on the number of ranks.
# No penalty and hardly any clipping: divided tables have neither.
SETTINGS = (
    "epochs=3", "checkpoint_steps=3", "net_dropout=0", "embedding_dim=4", "optimizer=SGD",
    "learning_rate=0.1", "complex_hidden_units=[8]", "batch_norm=false", "verbose=0",
    "embedding_regularizer=0", "max_gradient_norm=100",
)  # fmt: skip


def experiment(*options: str) -> list[str]:
    """The words of the command that runs it."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["run", "--expid", "TF4CTR_demo", *settings, *options]


def record_of(folder: Path) -> dict:
    """The record of the only run under a folder."""
    (file,) = folder.rglob("run.json")
    return json.loads(file.read_text())


@functools.cache
def of_one_process() -> dict:
    """The record of the experiment run by one process that nothing happens to."""
    with tempfile.TemporaryDirectory() as folder:
        places = ["--output", f"{folder}/runs", "--set", f"data_root={folder}/data"]
        assert main(experiment(*places)) == 0
        return record_of(Path(folder))


def wait_for_a_checkpoint(folder: Path, running: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not list(folder.rglob("state/*.state")):
        assert running() and time.monotonic() < deadline
        time.sleep(0.02)


def check_that_it_went_on(folder: Path) -> None:
    """The run was taken up once, and its steps, losses and metrics are those of one process."""
    found, expected = record_of(folder), of_one_process()
    assert found["status"] == "finished" and len(found["resumed"]) == 1
    assert found["parameters"] == expected["parameters"]
    for ours, theirs in zip(found["evaluations"], expected["evaluations"], strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
    assert found["test"] == pytest.approx(expected["test"], rel=2e-3)
