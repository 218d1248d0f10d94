"""Dropout masks drawn another way: the same ones bit by bit, or others of the same distribution."""

import pytest
import torch
from torch import nn

from fuxictr_tf4ctr.training.regularization import (
    fast_noise,
    faster_dropout,
    masks_agree,
    torch_noise,
)


@pytest.mark.skipif(not masks_agree(), reason="this PyTorch draws masks with MKL's generator")
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8, 1 / 3])
@pytest.mark.parametrize("drawn_before", [0, 1, 311, 623, 624, 1000])
def test_masks_are_pytorchs_bit_by_bit(probability, drawn_before):
    results = []
    for fill in (lambda noise, p: noise.bernoulli_(p).div_(p), torch_noise):
        torch.manual_seed(5)
        torch.rand(drawn_before)
        noise = torch.empty(70_001)
        fill(noise, probability)
        results.append((noise, torch.rand(7), torch.randn(40), torch.get_rng_state()))
    for theirs, ours in zip(*results, strict=True):
        assert torch.equal(theirs, ours)


def test_fast_masks_follow_the_seed_and_the_probability():
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        noise = torch.empty(200_001)
        fast_noise(noise, 0.7)
        drawn.append(noise)
    assert torch.equal(*drawn)
    values = noise.unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.7]))
    kept = (noise > 0).double()
    deviation = (0.7 * 0.3 / len(noise)) ** 0.5
    assert abs(kept.mean().item() - 0.7) < 5 * deviation
    for apart in (1, 2, 4):  # draws of one word of the generator, and of the next
        pairs = (kept[apart:] * kept[:-apart]).mean().item()
        assert abs(pairs - 0.49) < 10 * deviation
    fast_noise(noise, 0.7)
    assert not torch.equal(noise, drawn[0])


@pytest.mark.parametrize("fill", [torch_noise, fast_noise])
def test_layers_drop_and_scale_as_pytorchs_do_and_get_their_own_back(fill):
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.25))
    inputs = torch.ones(50, 4)
    with faster_dropout(model, fill):
        dense = model[0](inputs)
        outputs = model(inputs)
        kept = outputs != 0
        torch.testing.assert_close(outputs[kept], dense[kept] / 0.75)
        assert 0.6 < kept.float().mean() < 0.9
        outputs.sum().backward()
        slope = kept.float().sum(0) / 0.75
        torch.testing.assert_close(model[0].bias.grad, slope)
        model.eval()
        assert torch.equal(model(inputs), model[0](inputs))
    assert "forward" not in vars(model[1])
