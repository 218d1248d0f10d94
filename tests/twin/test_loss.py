"""Twin Focus Loss against its formula, written out sample by sample."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_tf4ctr.twin import TwinFocusLoss, focus_weights, twin_focus_loss


def by_hand(z_simple, z_complex, y, c, gamma, alpha):
    """The loss of one sample, from the definition, in Python floats."""

    def parts(z):
        p = 1 / (1 + math.exp(-z))
        return y * p + (1 - y) * (1 - p), -(y * math.log(p) + (1 - y) * math.log(1 - p))

    (p_simple, bce_simple), (p_complex, bce_complex) = parts(z_simple), parts(z_complex)
    return (
        alpha * (c + p_simple) ** gamma * bce_simple
        + (1 - alpha) * ((2 - c) - p_complex) ** gamma * bce_complex
    )


@settings(max_examples=100)
@given(
    logits=st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=1, max_size=5),
    labels=st.lists(st.sampled_from([0.0, 1.0]), min_size=5, max_size=5),
    c=st.floats(0, 1),
    gamma=st.floats(0, 4),
    alpha=st.floats(0, 1),
)
def test_equals_its_definition(logits, labels, c, gamma, alpha):
    labels = labels[: len(logits)]
    expected = [by_hand(*z, y, c, gamma, alpha) for z, y in zip(logits, labels, strict=True)]
    z = torch.tensor(logits, dtype=torch.float64)
    y = torch.tensor(labels, dtype=torch.float64)
    arguments = {"c": c, "gamma": gamma, "alpha": alpha}
    each = twin_focus_loss(z[:, 0], z[:, 1], y, **arguments, reduction="none")
    torch.testing.assert_close(each, torch.tensor(expected, dtype=torch.float64))
    total = twin_focus_loss(z[:, 0], z[:, 1], y, **arguments, reduction="sum")
    assert total.item() == pytest.approx(sum(expected))
    mean = TwinFocusLoss(c, gamma, alpha)(z[:, 0], z[:, 1], y)
    assert mean.item() == pytest.approx(sum(expected) / len(expected))


def test_gamma_0_is_plain_cross_entropy():
    z_s, z_c = torch.randn(2, 9, 1)
    y = (torch.arange(9) % 2).float().view(-1, 1)
    loss = twin_focus_loss(z_s, z_c, y, gamma=0, alpha=0.3)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    assert loss.item() == pytest.approx((0.3 * bce(z_s, y) + 0.7 * bce(z_c, y)).item())


def test_simple_weight_grows_with_ease_and_complex_weight_with_difficulty():
    z = torch.linspace(-6, 6, 25)
    simple, complex_ = focus_weights(z, z, torch.ones_like(z), c=0.8, gamma=2)
    assert (simple.diff() > 0).all()
    assert (complex_.diff() < 0).all()


def test_gradients_flow_through_the_weights():
    z_s, z_c = torch.randn(2, 4, 1, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: twin_focus_loss(a, b, y, c=0.7, gamma=1.5, alpha=0.4), (z_s, z_c)
    )


@pytest.mark.parametrize("c", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stays_finite_for_saturated_encoders(c, gamma, dtype):
    z = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], dtype=dtype)
    for y in (torch.zeros(5), torch.ones(5)):
        z_s, z_c = z.clone().requires_grad_(), z.clone().requires_grad_()
        loss = twin_focus_loss(z_s, z_c, y, c=c, gamma=gamma)
        loss.backward()
        for value in (loss, z_s.grad, z_c.grad):
            assert torch.isfinite(value).all()


@pytest.mark.parametrize(
    "wrong", [{"c": -0.1}, {"c": 1.2}, {"gamma": -1}, {"alpha": 2}, {"gamma": "1"}, {"c": True}]
)
def test_parameters_outside_their_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        TwinFocusLoss(**wrong)
    with pytest.raises(ValueError, match=name):
        twin_focus_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), **wrong)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        twin_focus_loss(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="reduction"):
        twin_focus_loss(torch.zeros(3), torch.zeros(3), torch.zeros(3), reduction="median")
