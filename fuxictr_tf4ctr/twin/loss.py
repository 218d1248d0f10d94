"""The Twin Focus Loss: the simple encoder learns easy samples, the complex one hard samples."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxictr_tf4ctr.schema import NOT_NEGATIVE, SHARE, one_of

Reduction = Literal["mean", "sum", "none"]
_REDUCTION = one_of("mean", "sum", "none")


def focus_weights(
    logit_simple: Tensor, logit_complex: Tensor, y_true: Tensor, c: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return the weight of each sample for the simple and for the complex encoder.

    With p_t the probability an encoder gives to the true class, the simple encoder's weight
    (c + p_t)^gamma grows where the sample is easy for it, the complex encoder's
    ((2 - c) - p_t)^gamma where it is hard.

    Args:
        logit_simple: Logits of the simple encoder, any shape.
        logit_complex: Logits of the complex encoder, same shape.
        y_true: Labels in [0, 1], same shape.
        c: Offset of the weights, in [0, 1].
        gamma: Sharpness of the weights, >= 0; 0 gives weight 1 everywhere.

    Returns:
        Two tensors of the logits' shape. Gradients flow through both.

    Example:
        A sample that is easy for both encoders (p_t = 0.9), and one that is hard (p_t = 0.1):

        >>> z = torch.logit(torch.tensor([0.9, 0.1]))
        >>> focus_weights(z, z, torch.ones(2), c=0.8, gamma=1)
        (tensor([1.7000, 0.9000]), tensor([0.3000, 1.1000]))

    Source:
        TF4CTR, arXiv 2405.03167, Twin Focus Loss.
    """
    return _weights(torch.stack([logit_simple, logit_complex]), y_true, c, gamma).unbind()


def _weights(logits: Tensor, y_true: Tensor, c: float, gamma: float) -> Tensor:
    """Return the weights [2, ...] of both encoders, from their logits [2, ...] and the labels."""
    y_true = y_true.to(logits.dtype)
    # p_t of the simple encoder and 1 - p_t of the complex one, the latter from the other tail of
    # the sigmoid: no cancellation where p_t is close to 1.
    classes = torch.stack([y_true, 1 - y_true])
    shares = torch.lerp(torch.sigmoid(-logits), torch.sigmoid(logits), classes)
    offsets = torch.linspace(c, 1 - c, 2, dtype=logits.dtype, device=logits.device)
    bases = shares + offsets.view(-1, *[1] * y_true.ndim)
    if gamma == 1:
        return bases
    # A base of exactly 0 (c = 0 or 1, saturated encoder) has an infinite slope for gamma < 1.
    return bases.clamp_min(torch.finfo(bases.dtype).tiny).pow(gamma)


def twin_focus_loss(
    logit_simple: Tensor,
    logit_complex: Tensor,
    y_true: Tensor,
    *,
    c: float = 0.8,
    gamma: float = 1.0,
    alpha: float = 0.25,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute L_TF = alpha * L_simple + (1 - alpha) * L_complex from the two encoders' logits.

    Each part is the binary cross entropy of one encoder, weighted sample by sample with
    :func:`focus_weights`. It comes on top of the model's own loss on its final prediction.

    Args:
        logit_simple: Logits of the simple encoder, any shape, usually [B, 1].
        logit_complex: Logits of the complex encoder, same shape.
        y_true: Labels in [0, 1], same shape.
        c: Offset of the weights, in [0, 1].
        gamma: Sharpness of the weights, >= 0; 0 leaves plain cross entropy.
        alpha: Share of the simple encoder's loss, in [0, 1].
        reduction: "mean" or "sum" over all samples, or "none" for one loss per sample.

    Returns:
        A scalar, or a tensor of the logits' shape for reduction "none".

    Raises:
        ValueError: A parameter is outside its range, or the shapes differ.

    Example:
        >>> z = torch.logit(torch.tensor([[0.9], [0.1]]))
        >>> y = torch.ones(2, 1)
        >>> twin_focus_loss(z, z, y)
        tensor(1.2431)
        >>> twin_focus_loss(z, z, y, gamma=0) == F.binary_cross_entropy_with_logits(z, y)
        tensor(True)

    Source:
        TF4CTR, arXiv 2405.03167, Twin Focus Loss. The weights are not detached.
    """
    return TwinFocusLoss(c, gamma, alpha, reduction)(logit_simple, logit_complex, y_true)


def focus_problems(c: float, gamma: float, alpha: float) -> list[str]:
    """List what is wrong with the loss's parameters, one sentence each; empty if all is well.

    Example:
        >>> focus_problems(c=0.8, gamma=-1, alpha=0.25)
        ['gamma=-1 must be a number >= 0']
    """
    return [
        *SHARE.problems(c, "c"),
        *NOT_NEGATIVE.problems(gamma, "gamma"),
        *SHARE.problems(alpha, "alpha"),
    ]


class TwinFocusLoss(nn.Module):
    """:func:`twin_focus_loss` with its parameters fixed: a loss term for any two-stream model.

    Args:
        c: Offset of the weights, in [0, 1].
        gamma: Sharpness of the weights, >= 0.
        alpha: Share of the simple encoder's loss, in [0, 1].
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: A parameter is outside its range.

    Example:
        In the ``add_loss`` of a model with two streams, beside the loss of its prediction:

        >>> twin_focus = TwinFocusLoss(c=0.8, gamma=2, alpha=0.25)
        >>> logit_simple, logit_complex = torch.zeros(2, 4, 1, requires_grad=True)
        >>> twin_focus(logit_simple, logit_complex, torch.ones(4, 1)).backward()

    Source:
        TF4CTR, arXiv 2405.03167.
    """

    def __init__(
        self,
        c: float = 0.8,
        gamma: float = 1.0,
        alpha: float = 0.25,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        problems = focus_problems(c, gamma, alpha) + _REDUCTION.problems(reduction, "reduction")
        if problems:
            raise ValueError("; ".join(problems))
        self.c, self.gamma, self.alpha, self.reduction = c, gamma, alpha, reduction

    def forward(
        self,
        logit_simple: Tensor,
        logit_complex: Tensor,
        y_true: Tensor,
        row_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of two logit tensors and labels of one shape, usually [B, 1].

        ``row_weight``, of that shape, is a factor of each sample's loss; None is 1 everywhere.
        """
        return self.combine(*self.streams(logit_simple, logit_complex, y_true, row_weight))

    def streams(
        self,
        logit_simple: Tensor,
        logit_complex: Tensor,
        y_true: Tensor,
        row_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return L_simple and L_complex, reduced; arguments as of :meth:`forward`."""
        if not logit_simple.shape == logit_complex.shape == y_true.shape:
            raise ValueError(
                "logit_simple, logit_complex and y_true must have one shape, not "
                f"{tuple(logit_simple.shape)}, {tuple(logit_complex.shape)}, {tuple(y_true.shape)}"
            )
        logits = torch.stack([logit_simple, logit_complex])
        labels = y_true.to(logits.dtype).expand_as(logits)
        bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        losses = _weights(logits, y_true, self.c, self.gamma) * bce
        if row_weight is not None:
            losses = row_weight * losses
        if self.reduction == "none":
            return losses.unbind()
        each = losses.reshape(2, -1)
        return (each.mean(1) if self.reduction == "mean" else each.sum(1)).unbind()

    def combine(self, loss_simple: Tensor, loss_complex: Tensor) -> Tensor:
        """Return alpha * L_simple + (1 - alpha) * L_complex."""
        return torch.lerp(loss_complex, loss_simple, self.alpha)

    def extra_repr(self) -> str:
        return f"c={self.c}, gamma={self.gamma}, alpha={self.alpha}"
