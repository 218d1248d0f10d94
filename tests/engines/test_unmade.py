"""Tables that are not made when a model is built, against those that are."""

import multiprocessing
import resource

import pytest
import torch
from helpers import ALL_KINDS, FEATURES, make_feature_map
from torch import Tensor, nn

from fuxictr_tf4ctr.engines.torchrec import rows as table_rows
from fuxictr_tf4ctr.engines.torchrec.rows import UnmadeTable, tables_unmade
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.registry import find_model

OPTIONS = {
    "model_root": "unused",
    "verbose": 0,
    "metrics": ["AUC"],
    "optimizer": "adam",
    "loss": "binary_crossentropy",
    "learning_rate": 1e-3,
    "embedding_dim": 6,
}


def built(name, feature_map, **options):
    """A model from a seed, and the number its generator would draw next."""
    torch.manual_seed(3)
    return find_model(name)(feature_map, **OPTIONS | options), torch.rand(1)


@pytest.mark.parametrize("part", [64, 1 << 20])
@pytest.mark.parametrize("rows", [1, 97])
@pytest.mark.parametrize("name", ["TF4CTR_DeepFM", "TF4CTR_FinalNet"])
def test_rows_made_later_and_all_other_weights_are_what_they_would_have_been(
    name, rows, part, monkeypatch
):
    monkeypatch.setattr(table_rows, "_PART", part)
    specs = {
        field: spec | ({"vocab_size": rows * spec["vocab_size"]} if "vocab_size" in spec else {})
        for field, spec in ALL_KINDS.items()
    }
    feature_map = make_feature_map(specs)
    whole, expected = built(name, feature_map)
    with tables_unmade():
        model, drawn = built(name, feature_map)
    assert torch.equal(drawn, expected)
    tables = 0
    for (field, ours), theirs in zip(model.named_parameters(), whole.parameters(), strict=True):
        if not isinstance(ours, UnmadeTable):
            assert torch.equal(ours, theirs), field
            continue
        tables += 1
        middle = len(theirs) // 2
        for first, last in ((0, middle), (middle, len(theirs)), (1, 3)):
            made = torch.full((last - first, theirs.shape[1] + 2), 7.0)
            ours.make_rows(first, made[:, : theirs.shape[1]])  # as in a table of greater width
            assert torch.equal(made[:, : theirs.shape[1]], theirs[first:last]), field
            assert (made[:, theirs.shape[1] :] == 7).all()
    assert tables >= 5


def test_tables_beside_fuxictrs_layers_are_made():
    with tables_unmade():
        assert not nn.Embedding(3, 2).weight.is_meta


def test_what_cannot_be_drawn_in_parts_is_refused():
    with tables_unmade():
        model, _ = built("TF4CTR_DeepFM", make_feature_map(FEATURES))
    table = next(each for each in model.parameters() if isinstance(each, UnmadeTable))
    with pytest.raises(SettingsError, match="drawn in parts: leave table_sharding out"):
        nn.init.trunc_normal_(table)
    with pytest.raises(SettingsError, match="by normal, which cannot"):
        nn.init.normal_(table[:, 1:])


def memory_of_a_quarter(answer) -> None:
    """Send by how many bytes memory peaked while a model was built and a quarter of it made."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    specs = {"user": FEATURES["user"] | {"vocab_size": 4_000_000}}
    with tables_unmade():
        model, _ = built("TF4CTR_DeepFM", make_feature_map(specs), embedding_dim=16)
    tables = [each for each in model.parameters() if isinstance(each, UnmadeTable)]
    table = max(tables, key=Tensor.numel)
    table.make_rows(len(table) // 2, torch.empty(len(table) // 4, table.shape[1]))
    answer.send(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def test_nobody_has_a_whole_table():
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=memory_of_a_quarter, args=(theirs,))
    child.start()
    assert ours.poll(120)
    peak = ours.recv()
    child.join()
    assert peak < 4 * 4_000_000 * 16 / 2  # a quarter and some parts; a whole table is 256 MB
