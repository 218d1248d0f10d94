"""Fusions with a bias, against their formulas."""

import pytest
import torch

from fuxictr_tf4ctr.twin import FUSIONS
from fuxictr_tf4ctr.twin.fusion import AffineFusion, BiasedSumFusion


@pytest.fixture
def outputs():
    torch.manual_seed(0)
    return torch.randn(5, 3), torch.randn(5, 2)


def test_affine_weighs_the_logits_and_adds_a_bias(outputs):
    fusion = AffineFusion(3, 2)
    logits = fusion(*outputs)
    (w_1, w_2), b = fusion.fc.weight[0], fusion.fc.bias
    torch.testing.assert_close(logits.final, w_1 * logits.simple + w_2 * logits.complex + b)


def test_biased_sum_adds_a_bias_that_starts_at_zero(outputs):
    fusion = BiasedSumFusion(3, 2)
    logits = fusion(*outputs)
    assert torch.equal(logits.final, logits.simple + logits.complex)
    with torch.no_grad():
        fusion.bias.fill_(2.0)
    assert torch.equal(fusion(*outputs).final, logits.simple + logits.complex + 2)


@pytest.mark.parametrize(
    ("name", "fusion_class"), [("affine", AffineFusion), ("biased_sum", BiasedSumFusion)]
)
def test_a_logit_is_taken_as_it_is_without_a_simple_head(name, fusion_class, outputs):
    assert FUSIONS[name] is fusion_class
    fusion = fusion_class(1, 2, simple_head=False, heads=False)
    h_s = outputs[0][:, :1]
    assert torch.equal(fusion(h_s, outputs[1]).simple, h_s)
