"""No step waits for the device: a step of every model runs where no value can be read.

The device ``meta`` has shapes and no values: whatever would read one, or take its shape from one,
raises. There the step goes the way it goes on a GPU, with a GPU's kernels (``as_on_gpu``).
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers import make_feature_map, random_batch
from tiny_model import EmbeddingMLP, build_batches, build_model
from tiny_twins import build
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import model_zoo
from fuxictr_tf4ctr.datasets.loader import CheckedBatch
from fuxictr_tf4ctr.training import Averaging, FastOptions
from fuxictr_tf4ctr.training.averaging import WeightAverages
from fuxictr_tf4ctr.training.fast import EXACT, cuda_graphs
from fuxictr_tf4ctr.training.losses import Losses
from fuxictr_tf4ctr.training.step import training_step

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from kernels import as_on_gpu, move, on_meta

_READS = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "unique", "masked_select")
# Waits where there are more than 3,072 ids (pytorch#82886).
_READS += ("embedding_dense_backward",)


class NothingRead(TorchDispatchMode):
    """Raises where a value is read or decides a shape, and where a tensor is on the host.

    Args:
        first: Whether this is the first step, which may make on the host what others need.
    """

    def __init__(self, first=False):
        super().__init__()
        self.first = first

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name == read or name.startswith(f"_{read}") for read in _READS):
            raise AssertionError(f"{func} waits for the device")
        if func is torch.ops.aten._fused_adam_.tensor_lr:
            return None  # in place, and without a kernel of that device
        result = func(*args, **(kwargs or {}))
        if not self.first:
            tensors = filter(torch.is_tensor, tree_leaves((args, kwargs, result)))
            assert not any(each.is_cpu for each in tensors), f"{func} is done on the host"
        return result


class NoGraphs:
    """Stands in for what records a step: replaying does nothing."""

    def aside(self):
        return nullcontext()

    def record(self, make):
        return make(), lambda: None


def step_on_meta(model, batches, fast=EXACT):
    """Make steps of a model where nothing can be read; from the third on with nothing checked."""
    move(model)
    model._max_gradient_norm = 10.0
    model.train()
    with as_on_gpu(), training_step(model, fast) as step:
        assert step != model.train_step
        losses, averages = Losses(model.device), WeightAverages(model, Averaging(0.9))
        for number, batch in enumerate(map(on_meta, batches), 1):
            checked = CheckedBatch(batch, model.feature_map) if number < 3 else batch
            with NothingRead(first=number == 1):
                loss = step(checked)
                losses.add(loss, step.terms, "")
                averages.after_step(number)
            assert loss.device.type == "meta"


def batches_of(model, sizes=(6, 6, 6)):
    return [random_batch(model.feature_map, rows, seed) for seed, rows in enumerate(sizes)]


@pytest.mark.parametrize("name", [name for name in model_zoo.__all__ if name != "TF4CTR_Pair"])
def test_no_step_of_a_twin_waits(name):
    model = build(name, net_dropout=0.1, embedding_regularizer=0.1)
    step_on_meta(model, batches_of(model))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["TF4CTR_DCNv2", "TF4CTR_AutoInt", "TF4CTR_Pair"])
def test_no_fast_step_waits_recorded_or_replayed(name, precision, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "CudaGraphs", NoGraphs)
    model = pair() if name == "TF4CTR_Pair" else build(name, embedding_regularizer=0.1)
    fast = FastOptions(precision, cuda_graphs=True)
    step_on_meta(model, batches_of(model, (6, 6, 6, 6, 2, 6, 2, 2)), fast)


def test_tf32_is_for_steps_and_no_evaluation():
    model, seen = build("TF4CTR"), []
    before = torch.get_float32_matmul_precision()
    note = lambda *_: seen.append(torch.get_float32_matmul_precision())  # noqa: E731
    model.fusion.register_forward_hook(note)
    move(model)
    model._max_gradient_norm = 10.0
    with as_on_gpu(), training_step(model, FastOptions("tf32")) as step:
        batch = on_meta(batches_of(model)[0])
        step(batch)
        model.eval()(batch)
    assert seen == ["high", before] and before == "highest"


def pair():
    """Two models of the zoo as the streams of one."""
    options = {"embedding_dim": 4, "complex_complex_hidden_units": [5], "net_dropout": 0.1}
    models = {"simple_model": "TF4CTR_DeepFM", "complex_model": "TF4CTR_DCNv2"}
    return model_zoo.TF4CTR_Pair(make_feature_map(), **models, **options)


def test_no_step_of_a_pair_waits():
    model = pair()
    step_on_meta(model, batches_of(model))


def test_no_step_of_a_fuxictr_model_waits(tmp_path):
    model = build_model(tmp_path, EmbeddingMLP, embedding_regularizer=0.1, net_regularizer=0.1)
    step_on_meta(model, list(build_batches(1))[:3])


def test_a_value_that_is_read_or_on_the_host_is_found():
    for read in (lambda: torch.ones(()).item(), lambda: bool(torch.ones(()) > 0)):
        with NothingRead(first=True), pytest.raises(AssertionError, match="waits for the device"):
            read()
    with NothingRead(), pytest.raises(AssertionError, match="is done on the host"):
        torch.zeros(2, device="meta").add_(torch.ones(()))
