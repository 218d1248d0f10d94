"""Sparse embeddings: only the rows of a batch are updated, by Adam with lazy moments.

A row that is not in the batch keeps weights and moments as they are, and is not regularised; a
dense Adam would move it by its moments and decay it. The bias correction counts all steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.training.regularization import penalty, slope
from fuxictr_tf4ctr.training.tables import TableGroup

Clip = Callable[[Tensor, Tensor, Tensor], Tensor]


def summed_by_row(group: TableGroup, clip: Clip | None = None) -> tuple[Tensor, Tensor] | None:
    """Take a group's rows looked up, each once, with the sum of its gradients.

    Args:
        group: The tables.
        clip: Given weights [U, width], gradients [U, width] and counts [U] of the rows, returns
            the gradients to use.

    Returns:
        Rows [U] and gradients [U, width]; None where nothing was looked up.
    """
    looked_up = group.take()
    if looked_up is None:
        return None
    ids, gradients = looked_up
    rows, places, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    sums = gradients.new_zeros(len(rows), gradients.shape[1]).index_add_(0, places, gradients)
    tables = rows < group.rows  # the row of padding is no table's
    rows, sums, counts = rows[tables], sums[tables], counts[tables]
    return rows, sums if clip is None else clip(group.weights[rows], sums, counts)


class RowGradients:
    """Gradients and Adam updates of the rows of a batch.

    Args:
        group: The tables.
        optimizer: Adam over the model's weights; it keeps the moments, as views of ours.
        clip: As for :func:`summed_by_row`.
    """

    def __init__(
        self, group: TableGroup, optimizer: torch.optim.Adam, clip: Clip | None = None
    ) -> None:
        self.group = group
        self.optimizer = optimizer
        self.clip = clip
        self.moments = [torch.zeros_like(group.weights) for _ in range(2)]
        self.steps = torch.zeros(())
        self.rows: Tensor | None = None
        self.gradients = group.weights.new_zeros(0)

    @torch.no_grad()
    def finish(self, portion: float = 1.0) -> Tensor | float:
        """Gather the gradients after a backward pass, regularization of their rows included.

        Args:
            portion: As for :meth:`DenseGradients.finish`.

        Returns:
            Loss of the regularization of these rows.
        """
        if any(weight.grad is not None for weight in self.group.members):
            raise SettingsError(
                "sparse_embeddings: the model uses a table beside FuxiCTR's embedding layers, "
                "which gives all its rows a gradient: leave sparse_embeddings out"
            )
        summed = summed_by_row(self.group, self.clip)
        if summed is None:
            self.rows = None
            return 0.0
        self.rows, gradients = summed
        weights = self.group.weights[self.rows]
        self.gradients = torch.empty_like(gradients)
        slope(weights, self.group.terms, self.gradients, portion)
        self.gradients.add_(gradients)
        return penalty(weights, self.group.terms)

    def tensors(self) -> list[Tensor]:
        """Return what the norm of all gradients is taken over, and clipping scales."""
        return [] if self.rows is None else [self.gradients]

    @torch.no_grad()
    def update(self) -> None:
        """Make one step of Adam on the rows of the batch."""
        self._take_over_state()
        self.steps += 1
        if self.rows is None:
            return
        options = next(
            group
            for group in self.optimizer.param_groups
            if any(weight is self.group.members[0] for weight in group["params"])
        )
        step, gradients = self.steps.item(), self.gradients
        beta_1, beta_2 = options["betas"]
        mean, square = (moment[self.rows] for moment in self.moments)
        mean.lerp_(gradients, 1 - beta_1)
        square.mul_(beta_2).addcmul_(gradients, gradients, value=1 - beta_2)
        spread = (square / (1 - beta_2**step)).sqrt_().add_(options["eps"])
        change = mean / spread
        self.group.weights.index_add_(
            0, self.rows, change, alpha=-float(options["lr"]) / (1 - beta_1**step)
        )
        for moment, new in zip(self.moments, (mean, square), strict=True):
            moment.index_copy_(0, self.rows, new)

    def _take_over_state(self) -> None:
        """Make the optimizer's state views of ours; after a resume, with the values it has."""
        states = self.optimizer.state
        if states[self.group.members[0]].get("step") is self.steps:
            return
        views = [self.group.views(moment) for moment in self.moments]
        for weight, mean, square in zip(self.group.members, *views, strict=True):
            state = states[weight]
            if state:
                mean.copy_(state["exp_avg"])
                square.copy_(state["exp_avg_sq"])
                self.steps.copy_(state["step"])
            states[weight] = {"step": self.steps, "exp_avg": mean, "exp_avg_sq": square}
