"""AUC, gAUC and logloss where the scores are: on a GPU, without a copy to the host.

The definitions are those of :mod:`fuxictr_tf4ctr.metrics.whole`, in float64 as well. What is not
plain (other metrics, text groups, values that have no metric) is left to that module, which also
says what is wrong with them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

METRICS = frozenset({"AUC", "gAUC", "logloss", "binary_crossentropy"})


def evaluate_on_device(
    y_true: Tensor, y_pred: Tensor, metrics: Sequence[str], group_id: Tensor | None = None
) -> dict[str, float] | None:
    """Compute metrics on the device of the scores.

    Args:
        y_true: [N] labels.
        y_pred: [N] scores, float32 or float64.
        metrics: Names of metrics.
        group_id: [N] whole numbers, the group of each row, on any device.

    Returns:
        Metric values by name, None where one of them is left to the host.
    """
    if not METRICS.issuperset(metrics) or y_pred.numel() == 0:
        return None
    if "gAUC" in metrics and group_id is None:
        return None
    y_true = y_true.to(y_pred.device, torch.float64)
    probabilities = (y_pred >= 0) & (y_pred <= 1)
    sound = (((y_true == 0) | (y_true == 1)) & probabilities).all()
    values = [
        _gauc(y_true, y_pred, group_id.to(y_pred.device))
        if name == "gAUC"
        else _auc(y_true, y_pred)
        if name == "AUC"
        else _logloss(y_true, y_pred.double())
        for name in metrics
    ]
    # One look at the device for all that was computed there.
    *numbers, sound = torch.stack([*values, sound.double()]).tolist()
    if not sound or any(number != number for number in numbers):
        return None
    return dict(zip(metrics, numbers, strict=True))


def _logloss(y_true: Tensor, y_pred: Tensor) -> Tensor:
    eps = torch.finfo(torch.float64).eps
    given_to_truth = torch.where(y_true == 1, y_pred, 1 - y_pred)
    return -given_to_truth.clamp(eps, 1 - eps).log().mean()


def _auc(y_true: Tensor, y_pred: Tensor) -> Tensor:
    order = y_pred.argsort()
    aucs, _ = _aucs_of_sorted(y_true[order], y_pred[order], torch.zeros_like(order), 1)
    return aucs[0]


def _gauc(y_true: Tensor, y_pred: Tensor, group_id: Tensor) -> Tensor:
    order = y_pred.argsort()
    order = order[group_id[order].argsort(stable=True)]
    groups, group = torch.unique_consecutive(group_id[order], return_inverse=True)
    aucs, sizes = _aucs_of_sorted(y_true[order], y_pred[order], group, len(groups))
    weights = torch.where(aucs.isnan(), 0, sizes)
    return (aucs.nan_to_num() * weights).sum() / weights.sum()


def _aucs_of_sorted(
    y_true: Tensor, y_pred: Tensor, group: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """AUC, NaN where one class only, and rows of each group.

    Args:
        y_true: [N] labels, float64, sorted by group and within it by ascending score.
        y_pred: [N] scores in that order.
        group: [N] number of each row's group, from 0.
        groups: Number of groups G.
    """
    ties_with_last = (y_pred[1:] == y_pred[:-1]) & (group[1:] == group[:-1])
    tie = torch.cat([ties_with_last.new_zeros(1), ~ties_with_last]).cumsum(0)
    counts = tie.bincount()
    mean_ranks = (counts.cumsum(0) - (counts - 1) / 2)[tie]  # over all groups, from 1
    sizes = group.bincount(minlength=groups)
    mean_ranks = mean_ranks - (sizes.cumsum(0) - sizes)[group]
    # Sums of halves of whole numbers: exact in float64, in whatever order a GPU adds them up.
    zeros = y_true.new_zeros(groups)
    positives = zeros.index_add(0, group, y_true)
    rank_sums = zeros.index_add(0, group, mean_ranks.double() * y_true)
    pairs = positives * (sizes - positives)
    return (rank_sums - positives * (positives + 1) / 2) / pairs, sizes.double()
