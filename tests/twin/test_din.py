"""DIN: target attention over behaviour sequences, under every sample selection."""

import pytest
import torch
from encoder_checks import assert_contract, build_encoder, linear, mlp, randomize
from helpers import ALL_KINDS, FEATURES, make_feature_map, random_batch

import model_zoo
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin import SAMPLE_SELECTIONS

UNITS = {"hidden_units": [6, 4], "attention_hidden_units": [5], "attention_activation": "relu"}
VIEWED = ALL_KINDS["bought"]
TWO_BEHAVIOURS = ALL_KINDS | {"viewed": VIEWED | {"max_len": 3}}


def attend(attention, target, steps, ids, use_softmax):
    """Pool one sample's steps [L, D] by hand."""
    weights = []
    for step in steps:
        x = torch.cat([target, step, target - step, target * step])
        first, _, second = attention.attention_layer.mlp
        weights.append(linear(second, linear(first, x).clamp_min(0))[0])
    weights = torch.stack(weights)
    if use_softmax:
        weights = torch.where(ids > 0, weights, -torch.inf).softmax(0)
    return sum(w * step for w, step, i in zip(weights, steps, ids, strict=True) if i > 0)


@pytest.mark.parametrize("use_softmax", [False, True])
def test_the_attentions_output_stands_where_the_pooled_sequence_was(use_softmax):
    encoder, view = build_encoder("target_attention", ALL_KINDS, use_softmax=use_softmax, **UNITS)
    table = view.tables.layer.embedding_layer.embedding_layers["item"]
    place = 8 * list(ALL_KINDS).index("bought")
    view.inputs["bought"][:] = torch.tensor([3, 0, 5, 1])
    for row in range(6):
        flat = view.embeddings[row].clone()
        ids = view.inputs["bought"][row]
        target = table.weight[view.inputs["item"][row]]
        flat[place : place + 8] = attend(
            encoder.attention["bought"], target, table.weight[ids], ids, use_softmax
        )
        torch.testing.assert_close(encoder(view)[row], mlp(encoder.mlp, flat))


def test_each_sequence_has_an_attention_of_its_own():
    encoder, view = build_encoder("target_attention", TWO_BEHAVIOURS, **UNITS)
    assert encoder.target_of == {"bought": "item", "viewed": "item"}
    before = encoder(view)
    randomize(encoder.attention["viewed"])
    assert not torch.equal(encoder(view), before)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"sequence": "viewed"}, {"viewed": "item"}),
        ({"target": "item"}, {"bought": "item", "viewed": "item"}),
        ({"target": "user", "sequence": "tags"}, {"tags": "user"}),
        ({"target": ["item", "user"], "sequence": ["bought", "tags"]},
         {"bought": "item", "tags": "user"}),
        ({"target": "item", "sequence": ["bought", "tags"]}, {"bought": "item", "tags": "item"}),
    ],
)  # fmt: skip
def test_fields_are_named_or_found(options, found):
    encoder, _ = build_encoder("target_attention", TWO_BEHAVIOURS, **UNITS, **options)
    assert encoder.target_of == found


def narrow(name):
    return ALL_KINDS | {name: ALL_KINDS[name] | {"embedding_dim": 4}}


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (FEATURES, {}, "needs a sequence feature, but the data set has none"),
        (ALL_KINDS, {"target": "itme"}, "unknown categorical feature 'itme'; did you mean 'item'"),
        (ALL_KINDS, {"sequence": "item"}, "unknown sequence feature 'item'"),
        (ALL_KINDS, {"sequence": "tags"}, "cannot tell which field a sequence is about"),
        (ALL_KINDS, {"target": "user"}, "cannot tell which field a sequence is about"),
        (ALL_KINDS, {"target": ["item", "user"], "sequence": "tags"}, "2 targets for 1 sequences"),
        (narrow("tags"), {"target": "user", "sequence": "tags"}, "of one width, not 8 and 4"),
    ],
)
def test_fields_that_do_not_fit_are_refused(features, options, message):
    with pytest.raises(SettingsError, match=message):
        build_encoder("target_attention", features, **UNITS, **options)


def test_target_attention_keeps_the_contract():
    assert_contract("target_attention", ALL_KINDS, **UNITS)


@pytest.mark.parametrize("selection", SAMPLE_SELECTIONS)
def test_attention_reads_the_tables_under_every_sample_selection(selection):
    model = model_zoo.TF4CTR_DIN(
        make_feature_map(ALL_KINDS), sample_selection=selection, embedding_dim=8
    )
    randomize(model.eval())
    batch = random_batch(model.feature_map)
    columns = model.get_inputs(batch)
    seen = {}
    attention = model.complex_encoder.attention["bought"]
    attention.register_forward_hook(lambda _, args, output: seen.update(args=args, output=output))
    model.complex_encoder.mlp.register_forward_hook(lambda _, args, __: seen.update(x=args[0]))
    model(batch)
    target, steps, mask = seen["args"]
    _, tables = model.sample_selection.tables()
    weight = tables.layer.embedding_layer.embedding_layers["item"].weight
    assert torch.equal(target, weight[columns["item"]])
    assert torch.equal(steps, weight[columns["bought"]])
    assert torch.equal(mask, columns["bought"] != 0)
    place = 8 * list(ALL_KINDS).index("bought")
    _, expected = model.sample_selection(columns)
    expected[:, place : place + 8] = seen["output"]
    torch.testing.assert_close(seen["x"], expected)


def test_baseline_is_din_alone():
    params = {"twin_focus": False, "sample_selection": "none", "embedding_dim": 8}
    model = model_zoo.TF4CTR_DIN(
        make_feature_map(ALL_KINDS), **params, **model_zoo.TF4CTR_DIN.baseline
    )
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"sample_selection", "complex_encoder", "fusion"}
    model._max_gradient_norm = 10.0
    assert torch.isfinite(model.train_step(random_batch(model.feature_map)))
