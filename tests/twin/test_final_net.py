"""FinalNet: factorized interactions, self-distillation, and the recorded base model."""

import pytest
import torch
import torch.nn.functional as F
from encoder_checks import assert_contract, build_encoder, linear
from golden import assert_base_model
from helpers import make_feature_map, random_batch

import model_zoo
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin.fusion import MeanFusion


@pytest.mark.parametrize("residual", ["concat", "sum"])
def test_each_layer_multiplies_two_linear_maps(residual):
    encoder, view = build_encoder(
        "final_block", hidden_units=[6, 4], residual=residual, batch_norm=False
    )
    x = view.embeddings
    for layer, units in zip(encoder.layers, [6, 4], strict=True):
        h = linear(layer[0].linear, x)
        half = units // 2 if residual == "concat" else units
        a, b = h[:, :half], h[:, half:]
        x = torch.cat([a, a * b], dim=1) if residual == "concat" else a + a * b
    torch.testing.assert_close(encoder(view), x)


def test_feature_gating_appends_fields_scaled_by_all_fields():
    encoder, view = build_encoder(
        "final_block", hidden_units=[4], feature_gating=True, batch_norm=False
    )
    fields = view.embeddings.view(6, 3, 8)
    weight, bias = encoder.gating.linear.weight, encoder.gating.linear.bias
    gated = torch.zeros_like(fields)
    for i in range(3):
        for d in range(8):
            gate = sum(weight[i, j] * fields[:, j, d] for j in range(3)) + bias[i]
            gated[:, i, d] = fields[:, i, d] * gate
    x = torch.cat([fields, gated], dim=1).flatten(1)
    a, b = linear(encoder.layers[0][0].linear, x).chunk(2, dim=1)
    torch.testing.assert_close(encoder(view), torch.cat([a, a * b], dim=1))


def test_gates_start_open():
    model = model_zoo.TF4CTR_FinalNet(make_feature_map(), simple_feature_gating=True)
    gate = model.simple_encoder.gating.linear
    assert gate.weight.count_nonzero() == 0 and (gate.bias == 1).all()


@pytest.mark.parametrize("options", [{}, {"residual": "sum", "feature_gating": True}])
def test_final_block_keeps_the_contract(options):
    assert_contract("final_block", hidden_units=[6, 4], **options)


def test_options_given_per_layer():
    encoder, _ = build_encoder(
        "final_block",
        hidden_units=[6, 4],
        hidden_activations=["relu", "tanh"],
        net_dropout=[0.0, 0.5],
    )
    kinds = [[type(part).__name__ for part in layer] for layer in encoder.layers]
    assert kinds == [
        ["FactorizedInteraction", "BatchNorm1d", "ReLU"],
        ["FactorizedInteraction", "BatchNorm1d", "Tanh", "Dropout"],
    ]
    with pytest.raises(SettingsError, match="one entry per layer, 2 in all"):
        build_encoder("final_block", hidden_units=[6, 4], net_dropout=[0.5])


def test_odd_widths_are_refused():
    with pytest.raises(SettingsError, match=r"\[6, 3\] must be even"):
        build_encoder("final_block", hidden_units=[6, 3])


def test_mean_fusion():
    fusion = MeanFusion(3, 7)
    logits = fusion(torch.randn(5, 3), torch.randn(5, 7))
    torch.testing.assert_close(logits.final, (logits.simple + logits.complex) / 2)


def test_both_streams_learn_the_final_prediction_without_twin_focus_or_beside_it():
    off = {"twin_focus": False, "sample_selection": "none", "fusion": "mean"}
    model = model_zoo.TF4CTR_FinalNet(make_feature_map(), **off)
    batch = random_batch(model.feature_map)
    outputs, y = model(batch), model.get_labels(batch)
    teacher = outputs["y_pred"].detach()
    expected = sum(
        F.binary_cross_entropy(outputs[name], target)
        for name, target in (("y_pred", y), ("y_simple", teacher), ("y_complex", teacher))
    )
    torch.testing.assert_close(model.add_loss(outputs, y), expected)
    on = model_zoo.TF4CTR_FinalNet(make_feature_map())
    outputs = on(batch)
    focus = on.twin_focus(outputs["logit_simple"], outputs["logit_complex"], y)
    torch.testing.assert_close(
        on.add_loss(outputs, y), F.binary_cross_entropy(outputs["y_pred"], y) + focus
    )
    both = model_zoo.TF4CTR_FinalNet(make_feature_map(), base_loss=True)
    both.load_state_dict(on.state_dict())
    teacher = outputs["y_pred"].detach()
    own = sum(F.binary_cross_entropy(outputs[n], teacher) for n in ("y_simple", "y_complex"))
    torch.testing.assert_close(both.add_loss(outputs, y), on.add_loss(outputs, y) + own)
    concat = model_zoo.TF4CTR_FinalNet(make_feature_map(), **off | {"fusion": "CF"})
    assert torch.isfinite(concat.add_loss(concat(batch), y))


def test_twin_without_its_method_is_finalnet():
    options = {"simple_hidden_units": [12, 8], "complex_hidden_units": [10, 8]}
    rules = tuple(
        rule
        for number, role in ((1, "simple"), (2, "complex"))
        for rule in (
            (rf"block{number}\.layer\.(\d)\.", rf"{role}_encoder.layers.\1.0."),
            (rf"block{number}\.norm\.(\d)\.", rf"{role}_encoder.layers.\1.1."),
            (rf"fc{number}\.", f"fusion.fc_{role}."),
        )
    )
    assert_base_model("FinalNet_2B", "TF4CTR_FinalNet", options, rules)
