"""Embedding gradients row by row: sparse embeddings and CowClip.

Sparse embeddings: only the rows of a batch are updated, by Adam with lazy moments. A row that is
not in the batch keeps weights and moments as they are, and is not regularised; a dense Adam would
move it by its moments and decay it. The bias correction counts all steps.

CowClip: large batches with embedding gradients clipped row by row, and the rules that scale. A
frequent id gets a gradient from almost every sample, a rare one from few: one norm for all fits
neither. Each row's gradient is held below its weights' norm, times how often the batch has it.

Source:
    Zheng et al., CowClip, arXiv 2204.06240, algorithm 1 and its scaling rules.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.training.regularization import Penalty, Terms, penalties, slope
from fuxictr_tf4ctr.training.tables import DenseGradients, TableGroup

Clip = Callable[[Tensor, Tensor, Tensor], Tensor]
# CowClip's values for all its data sets.
RATIO, FLOOR = 1.0, 1e-5


def summed_by_row(group: TableGroup, clip: Clip | None = None) -> tuple[Tensor, Tensor] | None:
    """Take a group's rows looked up, each once, with the sum of its gradients.

    Args:
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
    def finish(self, portion: float = 1.0) -> list[Penalty]:
        """Gather the gradients after a backward pass, regularization of their rows included.

        Args:
            portion: As for :meth:`DenseGradients.finish`.

        Returns:
            Penalties of the regularization of these rows.
        """
        if any(weight.grad is not None for weight in self.group.members):
            raise SettingsError(
                "sparse_embeddings: the model uses a table beside FuxiCTR's embedding layers, "
                "which gives all its rows a gradient: leave sparse_embeddings out"
            )
        summed = summed_by_row(self.group, self.clip)
        if summed is None:
            self.rows = None
            return []
        self.rows, gradients = summed
        weights = self.group.weights[self.rows]
        self.gradients = torch.empty_like(gradients)
        slope(weights, self.group.terms, self.gradients, portion)
        self.gradients.add_(gradients)
        return penalties(weights, self.group.terms)

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


def cow_clip(
    weights: Tensor, gradients: Tensor, counts: Tensor, ratio: float = RATIO, floor: float = FLOOR
) -> Tensor:
    """Clip each row's gradient to ``count * max(ratio * ||weights||, floor)``.

    Args:
        weights: [U, width] rows.
        gradients: [U, width] their gradients, of the mean loss over the batch.
        counts: [U] how often the batch has each.
        ratio: Share r of the weights' norm.
        floor: Least threshold zeta of one occurrence.

    Returns:
        [U, width] clipped gradients.
    """
    limits = counts * (ratio * weights.norm(dim=1)).clamp(min=floor)
    norms = gradients.norm(dim=1)
    return gradients * (limits / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(
        max=1.0
    ).unsqueeze(1)


class ClippedGradients(DenseGradients):
    """Dense gradients whose looked-up part is clipped before the regularization is added."""

    def looked_up(self) -> tuple[Tensor, Tensor] | None:
        return summed_by_row(self.group, cow_clip)


def scaled_terms(
    terms: Mapping[nn.Parameter, Terms], embeddings: set[nn.Parameter], scale: float
) -> dict[nn.Parameter, Terms]:
    """Scale the regularization of embeddings in proportion to the batch size.

    Args:
        scale: Batch size over the one that the regularization is given for.
    """
    return {
        weight: tuple((order, strength * scale) for order, strength in own)
        if weight in embeddings
        else own
        for weight, own in terms.items()
    }


def scale_learning_rate(
    optimizer: torch.optim.Optimizer, embeddings: set[nn.Parameter], scale: float
) -> None:
    """Scale the learning rate of all but the embeddings by the root of the batch size's scale.

    Args:
        optimizer: Its one group of weights becomes two, embeddings and others.
        scale: Batch size over the one that the learning rate is given for.
    """
    group, *more = optimizer.param_groups
    if len(more) == 1 and embeddings.issuperset(group["params"]):
        return  # in a fit before
    others = [weight for weight in group["params"] if weight not in embeddings]
    group["params"] = [weight for weight in group["params"] if weight in embeddings]
    options = {key: value for key, value in group.items() if key != "params"}
    rate = options["lr"] * math.sqrt(scale)
    optimizer.add_param_group({**options, "params": others, "lr": rate})
