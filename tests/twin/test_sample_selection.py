"""Sample selection against its formulas."""

import pytest
import torch
from helpers import ALL_KINDS, make_feature_map, random_batch

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin import SAMPLE_SELECTIONS
from fuxictr_tf4ctr.twin.embedding import empty_inputs


def build(name, features=ALL_KINDS, **options):
    torch.manual_seed(0)
    feature_map = make_feature_map(features)
    module = SAMPLE_SELECTIONS[name](feature_map, 8, **options).eval()
    inputs = random_batch(feature_map)
    del inputs["label"]
    inputs.pop("group", None)
    return module, inputs


@pytest.mark.parametrize("name", SAMPLE_SELECTIONS)
def test_shapes_are_as_announced(name):
    module, inputs = build(name)
    for view, spec in zip(module(inputs), (module.simple, module.complex), strict=True):
        assert view.shape == (6, spec.input_dim)
        assert spec.field_names == tuple(n for n in ALL_KINDS if n != "group")
    assert module.complex.field_dims == (8,) * 7
    assert module.simple.field_dims == ((4,) if name == "SER" else (8,)) * 7


def test_none_hands_both_the_same():
    module, inputs = build("none")
    v_s, v_c = module(inputs)
    assert v_s is v_c
    assert torch.equal(v_s, module.embedding.layer(inputs, flatten_emb=True))


def test_ser_has_two_sets_of_tables():
    module, inputs = build("SER")
    v_s, v_c = module(inputs)
    torch.testing.assert_close(v_s[:, :4], module.simple_embedding.layer(inputs)[:, 0])
    torch.testing.assert_close(v_c[:, :8], module.complex_embedding.layer(inputs)[:, 0])
    assert not {id(p) for p in module.simple_embedding.parameters()} & {
        id(p) for p in module.complex_embedding.parameters()
    }


@pytest.mark.parametrize("embeds", [(False, True), (True, False), (False, False)])
def test_ser_builds_no_table_that_nobody_reads(embeds):
    module, inputs = build("SER", embeds=embeds)
    assert (module.simple_embedding is not None) == embeds[0]
    assert (module.complex_embedding is not None) == (embeds[1] or not embeds[0])
    v_s, v_c = module(inputs)
    assert v_s is v_c


def test_gm_divides_the_embedding_by_one_gate_per_sample():
    module, inputs = build("GM")
    v_s, v_c = module(inputs)
    e = module.embedding(inputs)
    torch.testing.assert_close(v_s + v_c, e)
    linear_1, linear_2 = module.gate.mlp[0], module.gate.mlp[2]
    for row in range(6):
        hidden = torch.relu(linear_1.weight @ e[row] + linear_1.bias)
        g = torch.sigmoid(linear_2.weight @ hidden + linear_2.bias)
        torch.testing.assert_close(v_s[row], g * e[row])
    assert linear_1.out_features == 56 // 4


def test_moe_mixes_two_experts_for_each_encoder():
    module, inputs = build("MoE")
    views = module(inputs)
    e = module.embedding(inputs)
    assert [expert.mlp[0].out_features for expert in module.experts] == [28, 28]
    for view, gate in zip(views, module.gates, strict=True):
        weights = gate(e)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(6))
        expected = sum(weights[:, [i]] * expert(e) for i, expert in enumerate(module.experts))
        torch.testing.assert_close(view, expected)
    assert all((expert(e) >= 0).all() for expert in module.experts)


def test_gates_take_the_models_dropout_and_batch_norm():
    for name in ("GM", "MoE"):
        module, _ = build(name, net_dropout=0.5, batch_norm=True)
        kinds = {type(m).__name__ for m in module.modules()}
        assert {"Dropout", "BatchNorm1d"} <= kinds


def test_ser_halves_dims_that_features_name_for_themselves():
    features = dict(ALL_KINDS, user=ALL_KINDS["user"] | {"embedding_dim": 6})
    module, _ = build("SER", features)
    assert module.simple.field_dims[0] == 3
    assert module.complex.field_dims[0] == 6
    features["user"]["embedding_dim"] = 5
    with pytest.raises(SettingsError, match="'user' has the odd embedding_dim 5"):
        build("SER", features)


def test_a_sequence_that_is_not_pooled_is_refused():
    tags = {k: v for k, v in ALL_KINDS["tags"].items() if k != "feature_encoder"}
    with pytest.raises(SettingsError, match="'tags' is not pooled"):
        build("none", dict(ALL_KINDS, tags=tags))


def test_measuring_widths_leaves_the_module_as_it_was():
    module, _ = build("none")
    assert set(empty_inputs(make_feature_map(ALL_KINDS))) == set(ALL_KINDS) - {"group"}
    assert module.train().embedding.layer.embedding_layer.training
