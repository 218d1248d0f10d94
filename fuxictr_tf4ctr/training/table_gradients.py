"""Gradients of a group of tables: every row of it, as FuxiCTR's dense optimizers have them."""

import torch
from torch import Tensor

from fuxictr_tf4ctr.training.regularization import penalty, slope
from fuxictr_tf4ctr.training.tables import TableGroup


class DenseGradients:
    """The gradient of a group in one buffer, each weight's ``grad`` a view of it.

    Args:
        group: The tables.
    """

    def __init__(self, group: TableGroup) -> None:
        self.group = group
        self.buffer = torch.zeros_like(group.weights)
        self.views = group.views(self.buffer)

    @torch.no_grad()
    def finish(self, portion: float = 1.0) -> Tensor | float:
        """Gather the gradient after a backward pass, this portion of the regularization's included.

        Returns:
            Loss of the whole regularization.
        """
        group = self.group
        looked_up = self.looked_up()
        # Where a model uses a weight beside its lookups, autograd left a gradient there.
        outside = [weight.grad for weight in group.members]
        if looked_up is None and not group.terms and all(each is None for each in outside):
            return 0.0
        slope(group.weights, group.terms, self.buffer, portion)
        if looked_up is not None:
            self.buffer.index_add_(0, *looked_up)
            self.buffer[-1].zero_()
        for weight, more, view in zip(group.members, outside, self.views, strict=True):
            if more is not None:
                view.add_(more)
            weight.grad = view
        return penalty(group.weights, group.terms)

    def looked_up(self) -> tuple[Tensor, Tensor] | None:
        """Take the rows looked up, [N], and the gradients to add to them, [N, width]."""
        return self.group.take()

    def tensors(self) -> list[Tensor]:
        """Return what the norm of all gradients is taken over, and clipping scales."""
        return [self.buffer] if self.group.members[0].grad is not None else []

    def update(self) -> None:
        """Do nothing: the model's optimizer updates weights that have a ``grad``."""
