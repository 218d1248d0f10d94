"""One buffer for all columns of a batch; the copy itself needs a GPU."""

import pytest
import torch
from helpers import ALL_KINDS, make_feature_map, random_batch

from fuxictr_tf4ctr.training.transfer import layout_of, pack, to_device, unpack


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_columns_of_all_types_come_back_from_one_buffer(rows):
    batch = random_batch(make_feature_map(ALL_KINDS), rows=rows)
    batch |= {"flag": torch.ones(rows, dtype=torch.uint8), "short": torch.ones(rows).half()}
    batch["every second"] = torch.arange(2 * rows)[::2]  # a view with gaps
    layout, size = layout_of(batch)
    assert size == sum(column.numel() * column.element_size() for column in batch.values())
    buffer = pack(batch, layout, torch.empty(size, dtype=torch.uint8))
    returned = unpack(batch, layout, buffer)
    assert list(returned) == list(batch)
    for name, column in batch.items():
        assert returned[name].dtype == column.dtype
        assert torch.equal(returned[name], column)


def test_on_a_cpu_and_for_other_batches_nothing_is_done():
    batch = {"user": torch.ones(3)}
    assert to_device(batch, torch.device("cpu")) is batch
    pair = (batch, torch.ones(3))
    assert to_device(pair, torch.device("cuda")) is pair


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_comes_to_the_gpu_whole():
    batch = random_batch(make_feature_map(ALL_KINDS), rows=50)
    for name, column in to_device(batch, torch.device("cuda")).items():
        assert column.is_cuda and torch.equal(column.cpu(), batch[name])
