"""No step waits for the device: a step of every model runs where no value can be read.

The device ``meta`` has shapes and no values: whatever would read one, or take its shape from one,
raises. There the step goes the way it goes on a GPU, with a GPU's kernels (``as_on_gpu``).
"""

import sys
from pathlib import Path

import pytest
import torch
from helpers import random_batch
from tiny_model import EmbeddingMLP, build_batches, build_model
from tiny_twins import build
from torch.utils._python_dispatch import TorchDispatchMode

import model_zoo
from fuxictr_tf4ctr.datasets.loader import CheckedBatch
from fuxictr_tf4ctr.training import Averaging
from fuxictr_tf4ctr.training.averaging import WeightAverages
from fuxictr_tf4ctr.training.fast import EXACT
from fuxictr_tf4ctr.training.losses import Losses
from fuxictr_tf4ctr.training.step import TrainingStep, training_step

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from kernels import as_on_gpu, move, on_meta

_READS = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "unique", "masked_select")


class NothingRead(TorchDispatchMode):
    """Raises where a value is read, copied to the host or decides a shape."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name == read or name.startswith(f"_{read}") for read in _READS):
            raise AssertionError(f"{func} waits for the device")
        result = func(*args, **(kwargs or {}))
        given = [each for each in args if isinstance(each, torch.Tensor)]
        if any(each.device.type == "meta" for each in given):
            made = [each for each in (result,) if isinstance(each, torch.Tensor)]
            assert all(each.device.type == "meta" for each in made), f"{func} copies to the host"
        return result


def step_on_meta(model, batches, fast=EXACT):
    """Make three steps of a model where nothing can be read; the last with nothing checked."""
    move(model)
    model._max_gradient_norm = 10.0
    model.train()
    with as_on_gpu(), training_step(model, fast) as step:
        assert isinstance(step, TrainingStep)
        losses, averages = Losses(model.device), WeightAverages(model, Averaging(0.9))
        for number, batch in enumerate(map(on_meta, batches), 1):
            checked = CheckedBatch(batch, model.feature_map) if number < 3 else batch
            with NothingRead():
                loss = step(checked)
                losses.add(loss, step.terms, "")
                averages.after_step(number)
            assert loss.device.type == "meta"


@pytest.mark.parametrize("name", [name for name in model_zoo.__all__ if name != "TF4CTR_Pair"])
def test_no_step_of_a_twin_waits(name):
    model = build(name, net_dropout=0.1, embedding_regularizer=0.1)
    step_on_meta(model, [random_batch(model.feature_map, rows=6, seed=s) for s in range(3)])


def test_no_step_of_a_fuxictr_model_waits(tmp_path):
    model = build_model(tmp_path, EmbeddingMLP, embedding_regularizer=0.1, net_regularizer=0.1)
    step_on_meta(model, list(build_batches(1))[:3])


def test_a_value_that_is_read_is_found():
    with NothingRead(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(()).item()
    with NothingRead(), pytest.raises(AssertionError, match="waits for the device"):
        bool(torch.ones(()) > 0)
