"""One lookup for all fields against FuxiCTR's lookup for each."""

import pytest
import torch
from fuxictr.pytorch.layers import FeatureEmbedding, FeatureEmbeddingDict
from helpers import ALL_KINDS, FEATURES, make_feature_map, random_batch
from torch import nn

from fuxictr_tf4ctr.training.tables import FusedLookups, group_tables

LAYERS = {"flat": FeatureEmbedding, "by name": FeatureEmbeddingDict}
KINDS = {"fields": FEATURES, "all kinds": ALL_KINDS}


@pytest.fixture
def layer(request):
    kind, features = request.param
    torch.manual_seed(0)
    return LAYERS[kind](make_feature_map(KINDS[features]), 4)


EVERY_LAYER = pytest.mark.parametrize(
    "layer",
    [("flat", "fields"), ("by name", "fields"), ("by name", "all kinds")],
    indirect=True,
    ids=str,
)


def outputs_of(layer, batch):
    found = layer(batch)
    return found if isinstance(found, dict) else {"all": found}


def inputs_of(layer, seed=0):
    tables = getattr(layer, "embedding_layer", layer)
    batch = random_batch(tables._feature_map, rows=9, seed=seed)
    return {name: batch[name] for name in batch if name not in ("label", "group")}


@EVERY_LAYER
def test_embeddings_are_bitwise_those_of_the_layer_in_its_order(layer):
    batch = inputs_of(layer)
    expected = outputs_of(layer, batch)
    groups = group_tables(layer, {})
    lookups = FusedLookups(layer, groups)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            found = outputs_of(layer, batch)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    lookups.release()
    assert all("forward" not in vars(module) for module in layer.modules())
    released = outputs_of(layer, batch)
    assert all(torch.equal(released[name], expected[name]) for name in expected)


@EVERY_LAYER
def test_gradients_are_those_of_the_tables_and_padding_learns_nothing(layer):
    batch = inputs_of(layer)
    weights = {name: each for name, each in layer.named_parameters() if each.ndim == 2}

    def loss():
        return sum((out * (1 + out)).sum() for out in outputs_of(layer, batch).values())

    loss().backward()
    expected = {name: each.grad.clone() for name, each in weights.items()}
    layer.zero_grad()
    groups = group_tables(layer, {})
    FusedLookups(layer, groups)
    loss().backward()
    found = {}
    for group in groups:
        buffer = torch.zeros_like(group.weights).index_add_(0, *group.take())
        buffer[-1] = 0
        found |= dict(zip(group.members, group.views(buffer), strict=True))
    for name, weight in weights.items():
        if weight in found:
            torch.testing.assert_close(found[weight], expected[name])


@EVERY_LAYER
def test_ids_outside_their_table_are_refused_though_they_are_rows_of_another(layer):
    groups = group_tables(layer, {})
    FusedLookups(layer, groups)
    for wrong in (-1, FEATURES["user"]["vocab_size"]):
        batch = inputs_of(layer)
        batch["user"][3] = wrong
        with pytest.raises(IndexError, match="out of range"):
            layer(batch)


def test_weights_stay_views_when_a_state_is_loaded():
    layer = FeatureEmbedding(make_feature_map(), 4)
    (group,) = group_tables(layer, {})
    FusedLookups(layer, [group])
    layer.load_state_dict({name: torch.ones_like(w) for name, w in layer.state_dict().items()})
    assert (group.weights[:-1] == 1).all()
    assert (layer(inputs_of(layer)) == 1).all()


def test_tables_that_do_more_than_look_up_are_left_alone():
    model = nn.ModuleList(
        [nn.Embedding(5, 2, max_norm=1.0), nn.Embedding(5, 2, sparse=True), nn.Embedding(5, 2)]
    )
    model[2].weight.requires_grad_(False)
    assert group_tables(model, {}) == []


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("shape", [(9,), (9, 4), (3, 4, 2)])
def test_a_table_that_a_model_asks_itself_gives_and_learns_the_same(padding, shape):
    tables = nn.ModuleList(nn.Embedding(7, 3, padding_idx=padding) for _ in range(2))
    ids = torch.randint(0, 7, shape)
    expected = tables[1](ids)
    (expected**2).sum().backward()
    gradient, tables[1].weight.grad = tables[1].weight.grad, None
    (group,) = groups = group_tables(tables, {})
    lookups = FusedLookups(tables, groups)
    found = tables[1](ids)
    assert torch.equal(found, expected)
    (found**2).sum().backward()
    looked_up = group.take()
    if len(shape) == 3:  # left to the table
        assert looked_up is None
    else:
        buffer = torch.zeros_like(group.weights).index_add_(0, *looked_up)
        torch.testing.assert_close(group.views(buffer)[1], gradient)
        assert tables[1].weight.grad is None
        with pytest.raises(IndexError, match="out of range"):
            tables[1](ids + 7)
    lookups.release()
