"""FCN: linear and exponential cross networks with Self-Mask, and Tri-BCE."""

import pytest
import torch
import torch.nn.functional as F
from encoder_checks import assert_contract, build_encoder, randomize
from helpers import make_feature_map, random_batch

import model_zoo
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin.fusion import MeanFusion

NAMES = ("linear_cross_net", "exponential_cross_net")


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_every_head_crosses_its_share_of_the_fields(name, num_heads, layer_norm):
    encoder, view = build_encoder(name, num_layers=2, num_heads=num_heads, layer_norm=layer_norm)
    width = 8 // num_heads
    outputs = []
    for head in range(num_heads):
        fields = [
            view.embeddings[:, 8 * i + width * head : 8 * i + width * (head + 1)] for i in range(3)
        ]
        halves = [f[:, : width // 2] for f in fields] + [f[:, width // 2 :] for f in fields]
        x = anchor = torch.cat(halves, dim=1)
        for layer in encoder.layers:
            h = x @ layer.linear.weight.T
            mask = h
            if layer_norm:
                mask = (h - h.mean(1, keepdim=True)) / (
                    h.var(1, keepdim=True, unbiased=False) + 1e-5
                ).sqrt()
                mask = mask * layer.layer_norm.weight + layer.layer_norm.bias
            crossed = torch.cat([h, h * mask.clamp_min(0)], dim=1) + layer.bias
            x = x + (anchor if name == "linear_cross_net" else x) * crossed
        outputs.append(x)
    torch.testing.assert_close(encoder(view), sum(outputs) / num_heads)


@pytest.mark.parametrize("name", NAMES)
def test_cross_nets_keep_the_contract(name):
    assert_contract(name, num_layers=2, num_heads=2, batch_norm=True)


def test_dims_that_cannot_be_divided_are_refused():
    with pytest.raises(SettingsError, match="dim 8 must be divisible by 6"):
        build_encoder("linear_cross_net", num_heads=3)


def test_streams_are_weighted_by_their_lag_without_twin_focus_or_beside_it():
    assert model_zoo.TF4CTR_FCN.baseline == {"fusion": "mean"}
    off = {"twin_focus": False, "sample_selection": "none", "fusion": "mean"}
    model = model_zoo.TF4CTR_FCN(make_feature_map(), **off).eval()
    assert isinstance(model.fusion, MeanFusion)
    randomize(model)
    batch = random_batch(model.feature_map)
    outputs, y = model(batch), model.get_labels(batch)
    bce = {
        key: F.binary_cross_entropy(outputs[key], y) for key in ("y_pred", "y_simple", "y_complex")
    }
    lags = [max(bce[key] - bce["y_pred"], torch.zeros(())) for key in ("y_simple", "y_complex")]
    assert max(lags) > 0
    expected = bce["y_pred"] + lags[0] * bce["y_simple"] + lags[1] * bce["y_complex"]
    torch.testing.assert_close(model.add_loss(outputs, y), expected)
    lagging = expected - bce["y_pred"]
    both = model_zoo.TF4CTR_FCN(make_feature_map(), base_loss=True)
    focus = both.twin_focus(outputs["logit_simple"], outputs["logit_complex"], y)
    torch.testing.assert_close(both.add_loss(outputs, y), bce["y_pred"] + lagging + focus)
    on = model_zoo.TF4CTR_FCN(make_feature_map()).eval()
    outputs = on(batch)
    focus = on.twin_focus(outputs["logit_simple"], outputs["logit_complex"], y)
    expected = F.binary_cross_entropy(outputs["y_pred"], y) + focus
    torch.testing.assert_close(on.add_loss(outputs, y), expected)
