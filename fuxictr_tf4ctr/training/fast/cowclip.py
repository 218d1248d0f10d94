"""CowClip: large batches with embedding gradients clipped row by row, and the rules that scale.

A frequent id gets a gradient from almost every sample, a rare one from few: one norm for all fits
neither. Each row's gradient is held below its weights' norm, times how often the batch has it.

Source:
    Zheng et al., CowClip, arXiv 2204.06240, algorithm 1 and its scaling rules.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fuxictr_tf4ctr.training.fast.row_gradients import summed_by_row
from fuxictr_tf4ctr.training.table_gradients import DenseGradients
from fuxictr_tf4ctr.training.tables import Terms

# The paper's values for all its data sets.
RATIO, FLOOR = 1.0, 1e-5


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
        terms: Regularization of each weight.
        embeddings: Weights of the tables.
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
        embeddings: Weights of the tables.
        scale: Batch size over the one that the learning rate is given for.
    """
    (group,) = optimizer.param_groups
    others = [weight for weight in group["params"] if weight not in embeddings]
    group["params"] = [weight for weight in group["params"] if weight in embeddings]
    options = {key: value for key, value in group.items() if key != "params"}
    rate = options["lr"] * math.sqrt(scale)
    optimizer.add_param_group({**options, "params": others, "lr": rate})
