"""What a GPU may refuse: memory, arithmetic, or all further work; stand-ins for each."""

import pytest
import torch
from tiny_model import EmbeddingMLP, build_batches, build_model

from fuxictr_tf4ctr.errors import DeviceError, SettingsError
from fuxictr_tf4ctr.files import system_error
from fuxictr_tf4ctr.training import Checkpoints, Data, FastOptions, Schedule, Watch, fast, fit, loop
from fuxictr_tf4ctr.training.step import TrainingStep

DATA = Data(build_batches(1), build_batches(2))


def train(folder, checkpoints=None):
    model = build_model(folder)
    torch.manual_seed(3)
    return fit(model, DATA, Schedule(2), watch=Watch(checkpoints=checkpoints))


@pytest.fixture
def fails(monkeypatch):
    """Let the fourteenth step fail with an error."""

    def at_14(error):
        made, step = [], TrainingStep.__call__

        def call(self, batch):
            made.append(batch)
            if len(made) == 14:
                raise error
            return step(self, batch)

        monkeypatch.setattr(TrainingStep, "__call__", call)

    return at_14


def test_out_of_memory_says_what_to_lower_and_the_state_is_saved(tmp_path, fails):
    fails(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    states = Checkpoints(tmp_path / "state")
    with pytest.raises(SettingsError, match=r"step 14 .*lower batch_size to 10.* --resume: the"):
        train(tmp_path, states)
    state = states.latest()
    assert (state["loop"]["_total_steps"], state["batches_done"]) == (13, 3)
    assert train(tmp_path, states).steps == 20


def test_without_a_place_for_the_state_the_message_promises_none(tmp_path, fails):
    fails(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(SettingsError, match=r"or embedding_dim, or set storage: memory$"):
        train(tmp_path)


def test_memory_that_runs_out_in_evaluation_leaves_a_state_to_go_on_from(tmp_path, monkeypatch):
    def out_of_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    states = Checkpoints(tmp_path / "state")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", out_of_memory)
        with pytest.raises(SettingsError, match=r"after epoch 1, step 10 .* --resume: the state"):
            train(tmp_path, states)
    ours, whole = train(tmp_path, states), train(tmp_path / "whole")
    metrics = [[each["metrics"] for each in result.epochs] for result in (ours, whole)]
    assert ours.steps == 20 and metrics[0] == metrics[1]


def test_memory_that_runs_out_moving_a_batch_is_one_message(tmp_path):
    class Short(list):
        def __iter__(self):
            yield from self[:2]
            raise torch.OutOfMemoryError("CUDA out of memory")

    data = Data(Short(build_batches(1)), build_batches(2))
    with pytest.raises(SettingsError, match=r"after epoch 1, step 2 .* storage: memory$"):
        fit(build_model(tmp_path), data, Schedule(2))


def test_a_driver_error_is_one_message(tmp_path, fails):
    fails(torch.AcceleratorError("CUDA error: an illegal memory access\nCompile with"))
    with pytest.raises(DeviceError, match=r"GPU failed at epoch 2, step 14 .*illegal memory") as e:
        train(tmp_path, Checkpoints(tmp_path / "state"))
    assert "\n" not in str(e.value)


def test_what_a_kernel_refuses_is_named_for_what_it_may_be(tmp_path, fails):
    fails(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    with pytest.raises(DeviceError, match=r"lower the learning rate.* id outside .* --resume"):
        train(tmp_path)


def test_a_gpu_too_old_for_bf16_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fast, "too_old_for_bf16", lambda device: True)
    with pytest.raises(SettingsError, match=r"compute capability 8\.0"):
        fit(build_model(tmp_path, EmbeddingMLP), DATA, Schedule(1, fast=FastOptions("bf16")))


def test_outside_training_a_driver_error_is_one_line_too():
    said = system_error(torch.AcceleratorError("CUDA error: unspecified launch failure\nmore"))
    assert isinstance(said, DeviceError) and str(said).count("\n") == 0
