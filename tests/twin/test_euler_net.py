"""EulerNet: interactions in polar coordinates against complex arithmetic."""

import pytest
import torch
from encoder_checks import assert_contract, build_encoder, linear
from helpers import make_feature_map, random_batch

import model_zoo


@pytest.mark.parametrize("layer_norm", [False, True])
def test_layers_multiply_powers_of_complex_numbers(layer_norm):
    encoder, view = build_encoder("euler", num_orders=[2, 3], layer_norm=layer_norm)
    with torch.no_grad():
        encoder.modulus.abs_()  # a negative one turns the phase of a padding id by either +π or -π
    z = encoder.modulus * torch.exp(1j * view.embeddings.view(6, 3, 8))
    for layer in encoder.layers:
        bias = torch.exp(layer.modulus_bias + 1j * layer.phase_bias)
        products = torch.stack(
            [torch.prod(z ** orders[:, None], dim=1) for orders in layer.orders], dim=1
        )
        implicit = [
            linear(layer.linear, part.flatten(1)).clamp_min(0).view(products.shape)
            for part in (z.real, z.imag)
        ]
        parts = [
            explicit + added
            for explicit, added in zip(
                ((products * bias).real, (products * bias).imag), implicit, strict=True
            )
        ]
        parts = [norm(part) for norm, part in zip(layer.norms, parts, strict=True)]
        z = torch.complex(*parts)
    expected = (z.real + z.imag).flatten(1)
    torch.testing.assert_close(encoder(view), expected, rtol=1e-4, atol=1e-5)


def test_euler_keeps_the_contract():
    assert_contract("euler", num_orders=[2, 3])


def test_order_vectors_start_at_single_fields():
    model = model_zoo.TF4CTR_EulerNet(make_feature_map(), complex_num_orders=[3, 2])
    first, second = model.complex_encoder.layers
    assert torch.equal(first.orders, torch.eye(3))
    torch.testing.assert_close(second.orders.sum(dim=1), torch.ones(2))
    bound = (6 / (second.linear.in_features + second.linear.out_features)) ** 0.5
    assert second.linear.weight.abs().max() <= bound
    assert second.linear.bias.count_nonzero() > 0


def test_baseline_is_one_linear_on_real_and_imaginary_parts():
    params = {"twin_focus": False, "sample_selection": "none", "embedding_dim": 8}
    model = model_zoo.TF4CTR_EulerNet(
        make_feature_map(), **params, **model_zoo.TF4CTR_EulerNet.baseline
    )
    batch = random_batch(model.feature_map)
    fields = model.sample_selection(model.get_inputs(batch))[0].view(6, 3, 8)
    encoder = model.complex_encoder
    parts = encoder.layers((encoder.modulus * fields.cos(), encoder.modulus * fields.sin()))
    fc = model.fusion.fc
    logit = sum(part.flatten(1) @ fc.weight.T for part in parts) + fc.bias
    torch.testing.assert_close(model(batch)["logit"], logit)
