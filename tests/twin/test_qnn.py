"""QNN: quadratic layers and the self-ensemble loss."""

import pytest
import torch
import torch.nn.functional as F
from encoder_checks import assert_contract, build_encoder, linear
from helpers import make_feature_map, random_batch

import model_zoo
from fuxictr_tf4ctr.errors import SettingsError

BASELINE = {"twin_focus": False, "sample_selection": "none", "embedding_dim": 8}


@pytest.mark.parametrize("num_heads", [1, 2])
def test_layers_multiply_their_input_by_rectified_maps_of_it(num_heads):
    encoder, view = build_encoder("quadratic", num_layers=2, num_heads=num_heads, num_rows=3)
    x = view.embeddings
    width = 24 // num_heads
    for layer in encoder.layers:
        maps = linear(layer.linear, x).clamp_min(0)
        products = []
        for head in range(num_heads):
            share = 8 // num_heads
            own = [x[:, 8 * i + share * head : 8 * i + share * (head + 1)] for i in range(3)]
            own = torch.cat(own, dim=1)
            rows = [maps[:, (head * 3 + r) * width : (head * 3 + r + 1) * width] for r in range(3)]
            products.append(sum(own * row for row in rows))
        x = x + torch.cat(products, dim=1)
    torch.testing.assert_close(encoder(view), x)


def test_quadratic_keeps_the_contract():
    assert_contract("quadratic", num_layers=2, num_heads=2, batch_norm=True)


def test_one_head_does_without_equal_dims():
    features = make_feature_map().features
    features["user"] = features["user"] | {"embedding_dim": 4}
    encoder, view = build_encoder("quadratic", features)
    assert encoder(view).shape == (6, 20)


def test_dims_that_cannot_be_divided_are_refused():
    with pytest.raises(SettingsError, match="dim 8 must be divisible by 3"):
        build_encoder("quadratic", num_heads=3)


BASE = BASELINE | model_zoo.TF4CTR_QNN.baseline


@pytest.mark.parametrize("params", [BASE, {"base_loss": True}], ids=["base model", "twin"])
def test_two_predictions_under_different_dropout_learn_their_mean(params):
    model = model_zoo.TF4CTR_QNN(make_feature_map(), net_dropout=0.5, **params)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    batch = random_batch(model.feature_map)
    y = model.get_labels(batch)
    outputs = model.train()(batch)
    first, second = outputs["y_pred"], outputs["y_again"]
    assert not torch.equal(first, second)
    mean = ((first + second) / 2).detach()
    expected = F.binary_cross_entropy((first + second) / 2, y)
    expected = expected + F.binary_cross_entropy(first, mean) + F.binary_cross_entropy(second, mean)
    torch.testing.assert_close(model.add_loss(outputs, y), expected + focus(model, outputs, y))
    outputs = model.eval()(batch)
    assert "y_again" not in outputs
    expected = F.binary_cross_entropy(outputs["y_pred"], y) + focus(model, outputs, y)
    torch.testing.assert_close(model.add_loss(outputs, y), expected)


def focus(model, outputs, y):
    if model.twin_focus is None:
        return 0
    return model.twin_focus(outputs["logit_simple"], outputs["logit_complex"], y)


def test_the_twin_predicts_once():
    model = model_zoo.TF4CTR_QNN(make_feature_map(), embedding_dim=8).train()
    assert "y_again" not in model(random_batch(model.feature_map))
