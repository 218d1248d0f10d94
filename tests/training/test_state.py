"""Runs that are cut off and taken up again end bitwise as if nothing had been."""

import errno
import io
import logging
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from tiny_model import EmbeddingMLP, build_batches, build_model

from fuxictr_tf4ctr.errors import (
    DataError,
    DivergenceError,
    MemoryShortage,
    SettingsError,
    StorageError,
    Terminated,
)
from fuxictr_tf4ctr.training import Checkpoints, Data, FastOptions, Schedule, Watch, fit
from fuxictr_tf4ctr.training.checkpoints import FORMAT, restore_model
from fuxictr_tf4ctr.training.fast import EXACT

BEFORE_AND_AFTER = [1, 2, 3, 9, 10, 11, 14, 20, 21, 30]


class Killed(BaseException):
    """Stands in for kill -9: nothing of ours handles it."""


class RandomDraws(EmbeddingMLP):
    """Draws from every generator in a step, and may be cut off at one."""

    cut_off = None
    action = None

    def train_step(self, batch_data):
        if self._total_steps == self.cut_off:
            self.action()
        with torch.no_grad():
            self.mlp.mlp[0].bias[0] += 1e-4 * (random.random() + np.random.normal())
        return super().train_step(batch_data)


class Accumulating(RandomDraws):
    """Makes a step of the gradients of three batches."""

    def train_step(self, batch_data):
        if self._total_steps == self.cut_off:
            self.action()
        loss = self.compute_loss(self.forward(batch_data), self.get_labels(batch_data))
        loss.backward()
        if self._total_steps % 3 == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss


class Shown(RandomDraws):
    """Shows a value of its last batch, as twins do of gates and votes."""

    def forward(self, inputs):
        outputs = super().forward(inputs)
        self.last = outputs["y_pred"].detach()
        return outputs

    def monitored_values(self):
        return {"mean": self.last.mean()}


class EpochLoader:
    """Its order follows from its epoch, as that of H5DataLoader."""

    def __init__(self, batches):
        self.batches = batches.batches
        self.epoch = 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(len(self.batches))
        self.epoch += 1
        return iter([self.batches[i] for i in order])


def shuffled_by_torch(batches):
    """Torch's loader, its order drawn from torch's generator."""
    return torch.utils.data.DataLoader(batches.batches, batch_size=None, shuffle=True)


LOADERS = {"fixed": lambda batches: batches, "epoch": EpochLoader, "torch": shuffled_by_torch}


@pytest.fixture
def start(tmp_path):
    """Train from fixed seeds in a folder of its own; a second call there resumes."""

    def train(root, *, cut_off=None, action=None, loader="fixed", steps=4, valid=True, epochs=3,
              model_class=RandomDraws, valid_gen=None, fast=EXACT, **kwargs):  # fmt: skip
        random.seed(0)
        np.random.seed(0)
        model = build_model(tmp_path / root, model_class, **{"early_stop_patience": 9, **kwargs})
        model.cut_off, model.action = cut_off, action
        train_gen = LOADERS[loader](build_batches(seed=1))
        if valid and valid_gen is None:
            valid_gen = build_batches(seed=2, rows=90)
        torch.manual_seed(3)
        checkpoints = Checkpoints(tmp_path / root / "state", steps=steps)
        return model, fit(
            model,
            Data(train_gen, valid_gen),
            Schedule(epochs=epochs, fast=fast),
            watch=Watch(checkpoints=checkpoints),
        )

    return train


def kill():
    """Cut the run off."""
    raise Killed


def assert_same_end(run, other):
    """Compare two finished runs bitwise, durations left out."""
    (model, result), (expected_model, expected) = run, other
    weights, expected_weights = model.state_dict(), expected_model.state_dict()
    assert all(torch.equal(weights[key], expected_weights[key]) for key in expected_weights)
    saved, expected_saved = (
        torch.load(each.checkpoint, weights_only=True) for each in (model, expected_model)
    )
    assert all(torch.equal(saved[key], expected_saved[key]) for key in expected_saved)
    without_seconds = [
        [
            {key: value for key, value in record.items() if key != "seconds"}
            for record in each.epochs
        ]
        for each in (result, expected)
    ]
    assert without_seconds[0] == without_seconds[1]
    for name in ("best_metric", "best_step", "stopped", "steps"):
        assert getattr(result, name) == getattr(expected, name)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("cut_off", BEFORE_AND_AFTER)
def test_a_run_killed_at_any_step_ends_as_if_it_had_not_been(start, loader, cut_off):
    with pytest.raises(Killed):
        start("cut", cut_off=cut_off, action=kill, loader=loader)
    assert_same_end(start("cut", loader=loader), start("whole", loader=loader))


@pytest.mark.parametrize(
    ("gpu", "fast"),
    [
        (-1, EXACT),
        pytest.param(0, EXACT, marks=pytest.mark.gpu),
        pytest.param(0, FastOptions(cuda_graphs=True), marks=pytest.mark.gpu),
    ],
)
def test_resumed_runs_end_alike_on_every_device(start, gpu, fast):
    """A GPU adds up in no fixed order: what is equal bit by bit on a CPU differs by rounding.

    A bias before batch norm has no gradient but that rounding, and Adam makes steps of it.
    """
    options = {"model_class": EmbeddingMLP, "valid": False, "gpu": gpu, "fast": fast}
    start("parts", epochs=1, **options)
    (model, result), (expected, whole) = start("parts", **options), start("whole", **options)
    assert result.steps == whole.steps == 30
    off = 0 if gpu < 0 else 1e-3
    rounding = () if gpu < 0 else ("mlp.0.bias", "running_mean")
    for name, values in expected.state_dict().items():
        if not name.endswith(rounding):
            torch.testing.assert_close(model.state_dict()[name], values, rtol=off, atol=off)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_class": Accumulating},
        {"eval_steps": 7},
        {"eval_steps": 1000},
        {"learning_rate": 0.3, "early_stop_patience": 2, "epochs": 9},
        {"valid": False},
        {"optimizer": "SGD"},
    ],
    ids=str,
)
def test_every_kind_of_run_can_be_resumed_again_and_again(start, settings):
    for cut_off in (6, 13, 18):
        with pytest.raises(Killed):
            start("cut", cut_off=cut_off, action=kill, loader="torch", **settings)
    assert_same_end(start("cut", loader="torch", **settings),
                    start("whole", loader="torch", **settings))  # fmt: skip


def test_a_finished_training_is_not_repeated(start):
    whole = start("whole")
    again = start("whole", cut_off=30, action=kill)
    assert_same_end(again, whole)


def test_more_epochs_continue_a_shorter_training(start):
    start("longer", epochs=1)
    assert_same_end(start("longer", epochs=3), start("whole", epochs=3))


def test_two_states_are_kept_of_plain_content(start, tmp_path):
    start("run", learning_rate=np.float64(0.01))
    files = sorted((tmp_path / "run" / "state").iterdir())
    assert [file.name for file in files] == ["step-000000000028.state", "step-000000000030.state"]
    state = torch.load(files[-1], weights_only=True)
    assert state["result"]["epochs"][-1]["step"] == 30
    Checkpoints(tmp_path / "run" / "state").remove()
    assert not (tmp_path / "run" / "state").exists()


def _another_type(content: bytes) -> bytes:
    state = torch.load(io.BytesIO(content), weights_only=True)
    state["epoch_start"]["rng"]["torch"] = "x"
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


DAMAGE = {
    "another type": _another_type,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "text": lambda content: b"hello",
    "one bit": lambda content: content[:2000] + bytes([content[2000] ^ 1]) + content[2001:],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("damaged", [1, 2])
def test_a_corrupt_checkpoint_falls_back_to_the_one_before(
    start, tmp_path, caplog, damage, damaged
):
    with pytest.raises(Killed):
        start("cut", cut_off=18, action=kill)
    files = sorted((tmp_path / "cut" / "state").iterdir(), reverse=True)
    assert [file.name[-8:-6] for file in files] == ["16", "12"]
    for file in files[:damaged]:
        file.write_bytes(DAMAGE[damage](file.read_bytes()))
    caplog.set_level(logging.INFO)
    run = start("cut")
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == damaged and "16.state is corrupt" in warnings[0]
    assert ("Resume after epoch 2, step 12 " in caplog.text) == (damaged == 1)
    assert_same_end(run, start("whole"))


@pytest.mark.parametrize(
    ("met", "error", "words"),
    [
        (OSError(errno.EIO, "Input/output error"), StorageError, "Input/output error"),
        (MemoryError(), MemoryShortage, "out of memory"),
        ({"format": FORMAT + 1}, DataError, "another version"),
    ],
    ids=["disk", "memory", "version"],
)
def test_a_state_that_is_whole_but_cannot_be_read_now_stays(
    start, tmp_path, monkeypatch, met, error, words
):
    def load(*args, **kwargs):
        if isinstance(met, Exception):
            raise met
        return met

    start("run")
    files = sorted((tmp_path / "run" / "state").iterdir())
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(error, match=words):
        Checkpoints(tmp_path / "run" / "state").latest()
    assert sorted((tmp_path / "run" / "state").iterdir()) == files


def test_an_error_without_a_number_is_a_files_own(start, tmp_path, monkeypatch, caplog):
    def load(*args, **kwargs):
        raise OSError("not a state")

    start("run")
    monkeypatch.setattr(torch, "load", load)
    assert Checkpoints(tmp_path / "run" / "state").latest() is None
    assert caplog.text.count("is corrupt (not a state)") == 2


def test_a_killed_write_leaves_no_file_behind(start, tmp_path):
    folder = tmp_path / "run" / "state"
    folder.mkdir(parents=True)
    (folder / "step-000000000007.state.123.tmp").write_bytes(b"half")
    start("run")
    assert {file.suffix for file in folder.iterdir()} == {".state"}


def test_a_state_of_another_model_is_refused(start, tmp_path):
    start("run")
    state = Checkpoints(tmp_path / "run" / "state").latest()
    del state["weights"]["mlp.mlp.0.weight"]
    with pytest.raises(DataError, match="does not belong to this model"):
        restore_model(build_model(tmp_path / "other", RandomDraws), state)


@pytest.mark.parametrize("made", [torch.zeros(3), torch.zeros(1).expand(12, 4)], ids=["3", "1"])
def test_a_state_that_kernels_would_read_beyond_is_refused(start, tmp_path, made):
    start("run")
    state = Checkpoints(tmp_path / "run" / "state").latest()
    state["optimizers"]["optimizer"]["state"][0]["exp_avg"] = made
    with pytest.raises(DataError, match=r"exp_avg of .* weight of \(12, 4\)"):
        restore_model(build_model(tmp_path / "other", RandomDraws), state)


def test_states_are_due_by_steps_and_by_time(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    by_steps, by_time = Checkpoints(tmp_path, steps=3), Checkpoints(tmp_path, minutes=2)
    assert [step for step in range(1, 10) if by_steps.due(step)] == [3, 6, 9]
    now += 119
    assert not by_time.due(1)
    now += 1
    assert by_time.due(2)
    by_time.save({}, 2)
    assert not by_time.due(3)
    assert not Checkpoints(tmp_path).due(1)


def terminate():
    """Send SIGTERM to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("cut_off", [1, 10, 15, 30])
def test_sigterm_ends_the_step_saves_and_stops(start, tmp_path, cut_off):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        start("cut", cut_off=cut_off, action=terminate, steps=None)
    assert signal.getsignal(signal.SIGTERM) is before
    state = Checkpoints(tmp_path / "cut" / "state").latest()
    assert state["loop"]["_total_steps"] == cut_off
    assert_same_end(start("cut"), start("whole"))


@pytest.mark.parametrize("model_class", [RandomDraws, Shown])
def test_sigterm_during_an_evaluation_does_not_wait_for_its_end(start, tmp_path, model_class):
    class Signalled:
        """Sends SIGTERM in the second of its evaluations."""

        def __init__(self):
            self.batches = build_batches(seed=2, rows=90).batches
            self.evaluations = self.served = 0

        def __iter__(self):
            self.evaluations += 1
            for batch in self.batches:
                if self.evaluations == 2:
                    self.served += 1
                    terminate()
                yield batch

    valid_gen = Signalled()
    with pytest.raises(Terminated):
        start("cut", model_class=model_class, valid_gen=valid_gen, steps=None)
    assert valid_gen.served == 1
    state = Checkpoints(tmp_path / "cut" / "state").latest()
    assert state["loop"]["_total_steps"] == 20 and len(state["result"]["epochs"]) == 1
    assert_same_end(start("cut", model_class=model_class), start("whole", model_class=model_class))


def test_without_checkpoints_sigterm_is_not_touched(tmp_path):
    seen = []
    handler = signal.signal(signal.SIGTERM, lambda *_: seen.append(True))
    try:
        model = build_model(tmp_path, RandomDraws)
        model.cut_off, model.action = 5, terminate
        fit(model, Data(build_batches(1)), Schedule(epochs=1))
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert seen == [True]


def test_an_auc_stuck_at_one_half_stops_the_run(start, tmp_path):
    class Constant(RandomDraws):
        def forward(self, inputs):
            return {"y_pred": super().forward(inputs)["y_pred"] * 0 + 0.3}

    with pytest.raises(DivergenceError, match=r"AUC is 0\.5 at epoch 2"):
        start("run", model_class=Constant)
    state = Checkpoints(tmp_path / "run" / "state").latest()
    assert len(state["result"]["epochs"]) == 1


def test_lack_of_gpu_memory_says_what_to_lower(start):
    def exhausted():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(SettingsError, match=r"step 3 .* 20 rows .* batch_size to 10"):
        start("run", cut_off=3, action=exhausted)
