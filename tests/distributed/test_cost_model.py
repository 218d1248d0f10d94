"""The cost model of docs/scaling.md: its tables, and its memory against a real step."""

import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from job import fuxictr_model
from tiny_model import build_batches

from fuxictr_tf4ctr.distributed import cost
from fuxictr_tf4ctr.training.step import training_step

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import cost_model  # noqa: E402


def test_the_tables_of_the_page_are_the_models():
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert cost_model.table(cost_model.CRITEO_X4, (1, 2, 4, 8)) in page
    assert cost_model.table(cost_model.CRITEO_1TB, (64,)) in page
    assert cost_model.table(cost_model.CRITEO_1TB, (64,), cost.divided_tables) in page


def test_memory_is_that_of_weights_gradients_and_moments(tmp_path):
    model = fuxictr_model(tmp_path)
    model.compile("adam", "binary_crossentropy", 1e-3)
    model._max_gradient_norm = 10.0
    with training_step(model) as step:
        step(next(iter(build_batches(seed=1))))
    moments = chain.from_iterable(
        (state["exp_avg"], state["exp_avg_sq"]) for state in model.optimizer.state.values()
    )
    weights = list(model.parameters())
    held = [*weights, *(weight.grad for weight in weights), *moments]
    size = sum(tensor.numel() * tensor.element_size() for tensor in held)
    parameters = sum(weight.numel() for weight in weights)
    work = cost.Workload(10, 0, 0, 2, 8, parameters)
    assert size == cost.data_parallel(work, 8).memory


def test_one_rank_sends_nothing_and_many_send_twice_what_there_is():
    assert cost.all_reduce_bytes(100, 1) == 0
    assert cost.all_reduce_bytes(100, 2) == 100
    assert cost.all_reduce_bytes(100, 10_000) == pytest.approx(200, rel=1e-3)
    tables = cost.divided_tables(cost_model.CRITEO_X4[1], 1)
    assert tables.bytes_per_step == 0
    assert torch.get_default_dtype().itemsize == cost.FLOAT
