"""Fusions against their formulas."""

import pytest
import torch

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.twin import FUSIONS

B, D_S, D_C = 5, 3, 7


@pytest.fixture()
def outputs():
    torch.manual_seed(0)
    return torch.randn(B, D_S), torch.randn(B, D_C)


def linear(layer, h):
    return h @ layer.weight.T + layer.bias


def build(name, **options):
    torch.manual_seed(1)
    return FUSIONS[name](D_S, D_C, **options).eval()


@pytest.mark.parametrize("name", ["wsf", ["WSF"], None])
def test_a_name_that_is_not_there_is_refused(name):
    assert name not in FUSIONS
    with pytest.raises(SettingsError, match="unknown fusion"):
        FUSIONS[name]


@pytest.mark.parametrize("name", FUSIONS)
def test_encoders_keep_logits_of_their_own(name, outputs):
    fusion = build(name)
    logits = fusion(*outputs)
    assert logits.final.shape == (B, 1)
    torch.testing.assert_close(logits.simple, linear(fusion.fc_simple, outputs[0]))
    torch.testing.assert_close(logits.complex, linear(fusion.fc_complex, outputs[1]))


@pytest.mark.parametrize("name", FUSIONS)
def test_a_simple_logit_is_taken_as_it_is(name):
    z_s, h_c = torch.randn(B, 1), torch.randn(B, D_C)
    fusion = FUSIONS[name](1, D_C, simple_head=False)
    assert torch.equal(fusion(z_s, h_c).simple, z_s)


def test_sum_and_weighted_sum(outputs):
    logits = build("sum")(*outputs)
    torch.testing.assert_close(logits.final, logits.simple + logits.complex)
    fusion = build("WSF")
    assert fusion.weight.tolist() == [[0.5], [0.5]]
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([[2.0], [-1.0]]))
    logits = fusion(*outputs)
    torch.testing.assert_close(logits.final, 2 * logits.simple - logits.complex)


def test_concat(outputs):
    fusion = build("CF")
    expected = linear(fusion.fc, torch.cat(outputs, dim=1))
    torch.testing.assert_close(fusion(*outputs).final, expected)


def test_mixture_of_experts(outputs):
    fusion = build("MoEF")
    h = torch.cat(outputs, dim=1)
    gate, experts = linear(fusion.gate, h).exp(), linear(fusion.experts, h)
    expected = (gate * experts).sum(1) / gate.sum(1)
    torch.testing.assert_close(fusion(*outputs).final.squeeze(1), expected)


def test_voting_is_deterministic_at_inference_and_noisy_in_training(outputs):
    fusion = build("VF")
    logits = fusion(*outputs)
    votes = torch.cat(
        [linear(fusion.vote_simple, outputs[0]), linear(fusion.vote_complex, outputs[1])], 1
    )
    p = (votes / 0.8).exp()
    p = p / p.sum(1, keepdim=True)
    expected = p[:, [0]] * logits.simple + p[:, [1]] * logits.complex
    torch.testing.assert_close(logits.final, expected)
    assert torch.equal(fusion(*outputs).final, logits.final)
    fusion.train()
    assert not torch.equal(fusion(*outputs).final, fusion(*outputs).final)


@pytest.mark.parametrize("name", FUSIONS)
def test_heads_nobody_needs_are_not_built(name, outputs):
    fusion = build(name, heads=False)
    logits = fusion(*outputs)
    if name in ("CF", "MoEF"):
        assert logits.simple is None and not hasattr(fusion, "fc_simple")
    assert logits.final.shape == (B, 1)
