"""FinalMLP: feature gates, interaction aggregation, and the recorded base model."""

import pytest
import torch
from encoder_checks import assert_contract, build_encoder, mlp
from golden import assert_base_model
from helpers import FEATURES, make_feature_map, random_batch

import model_zoo
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin.fusion import InteractionAggregation

UNITS = {"hidden_units": [6, 4], "gate_hidden_units": [5]}


def test_gate_weights_every_element_by_the_context():
    encoder, view = build_encoder("feature_gated_mlp", context=["item", "city"], **UNITS)
    tables = encoder.context_embedding.layer.embedding_layer.embedding_layers
    context = torch.cat([tables[name](view.inputs[name]) for name in ("item", "city")], dim=1)
    gated = view.embeddings * 2 * mlp(encoder.gate, context).sigmoid()
    torch.testing.assert_close(encoder(view), mlp(encoder.mlp, gated))
    assert set(tables) == {"item", "city"}


def test_gate_without_context_is_the_same_for_all_samples():
    encoder, view = build_encoder("feature_gated_mlp", **UNITS)
    gate = 2 * mlp(encoder.gate, encoder.context_bias[0]).sigmoid()
    for i, output in enumerate(encoder(view)):
        torch.testing.assert_close(output, mlp(encoder.mlp, view.embeddings[i] * gate))


@pytest.mark.parametrize("context", [None, ["item"]])
def test_gated_mlp_keeps_the_contract(context):
    assert_contract("feature_gated_mlp", context=context, **UNITS)


def test_unknown_context_is_named():
    with pytest.raises(SettingsError, match="unknown context field 'itme'; did you mean 'item'"):
        build_encoder("feature_gated_mlp", context=["user", "itme"])


@pytest.mark.parametrize("num_heads", [1, 2])
def test_aggregation_sums_the_products_of_each_head(num_heads):
    torch.manual_seed(0)
    fusion = InteractionAggregation(4, 6, num_heads=num_heads)
    h_s, h_c = torch.randn(5, 4), torch.randn(5, 6)
    logits = fusion(h_s, h_c)
    weight = iter(fusion.bilinear.flatten().tolist())
    expected = (logits.simple + logits.complex).squeeze(1)
    for head in range(num_heads):
        for i in range(4 // num_heads):
            for j in range(6 // num_heads):
                left = h_s[:, head * 4 // num_heads + i]
                right = h_c[:, head * 6 // num_heads + j]
                expected = expected + next(weight) * left * right
    torch.testing.assert_close(logits.final.squeeze(1), expected)
    assert next(weight, None) is None


def build(**params):
    params = {"embedding_dim": 8, "complex_hidden_units": [6, 4], "fusion": "IA"} | params
    return model_zoo.TF4CTR_DeepFM(make_feature_map(FEATURES), **params)


def test_aggregation_fuses_any_two_encoders_with_one_head():
    model = build()
    batch = random_batch(model.feature_map)
    assert model(batch)["y_pred"].shape == (6, 1)
    assert "fusion_num_heads" in model.parameter_names({"fusion": "IA"})
    assert "fusion_num_heads" not in model.parameter_names({"fusion": "WSF"})


@pytest.mark.parametrize(
    ("heads", "message"),
    [(2, "fusion_num_heads=2 must divide the widths .* 1 and 4"), (0, "a whole number >= 1")],
)
def test_heads_that_do_not_fit_are_refused(heads, message):
    with pytest.raises(SettingsError, match=message):
        build(fusion_num_heads=heads)


def test_twin_without_its_method_is_finalmlp():
    options = {
        "fusion_num_heads": 2,
        "simple_hidden_units": [24, 16, 8],
        "simple_context": ["user"],
        "simple_gate_hidden_units": [6],
        "complex_hidden_units": [16, 8],
        "complex_context": ["item"],
        "complex_gate_hidden_units": [6],
    }
    rules = tuple(
        rule
        for number, role in ((1, "simple"), (2, "complex"))
        for rule in (
            (rf"mlp{number}\.", f"{role}_encoder.mlp."),
            (rf"fs_module\.fs{number}_ctx_emb\.", f"{role}_encoder.context_embedding.layer."),
            (rf"fs_module\.fs{number}_gate\.", f"{role}_encoder.gate."),
        )
    )
    fusion = (
        (r"fusion_module\.w_xy", "fusion.bilinear"),
        (r"fusion_module\.w_x\.", "fusion.fc_simple."),
        (r"fusion_module\.w_y\.", "fusion.fc_complex."),
    )
    assert_base_model("FinalMLP", "TF4CTR_FinalMLP", options, rules + fusion)
