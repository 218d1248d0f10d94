"""FuxiCTR's metrics of whole columns, one process' or spread over ranks; no rank gets all rows.

Of rows that are spread, sums are added up. For metrics within groups each rank gets whole groups;
for AUC each gets a range of scores, within which it counts pairs. Pairs across ranges follow from
the numbers of positives and negatives in each. Nothing is approximated: AUC is that of one process
to the bit, the others differ in the order of their sums.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fuxictr_tf4ctr.distributed.ranks import Ranks
from fuxictr_tf4ctr.errors import DataError, DivergenceError, SettingsError, UserError
from fuxictr_tf4ctr.metrics.definitions import (
    Columns,
    needs_group,
    no_weights,
    sums_of,
    value_from,
)

# Those that a GPU computes where the scores are; their labels are 0 or 1.
_ON_DEVICE = frozenset({"AUC", "gAUC", "logloss", "binary_crossentropy"})
_OF_PROBABILITIES = {"logloss", "binary_crossentropy", "ece"}


def evaluate_metrics(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    metrics: Sequence[str],
    group_id: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> dict[str, float]:
    """Compute metrics of scores against labels.

    Args:
        y_true: [N] labels, 0 or 1 (MRR and NDCG also take graded relevance).
        y_pred: [N] scores; probabilities for logloss and ece.
        metrics: Names known to :func:`check_metric`, without a stream.
        group_id: [N] group of each row (a user, say), for the metrics that rank within groups.
        weights: [N] how often each row counts, 0 or more, which need not be whole; None for once.

    Returns:
        Metric values, keyed by the names as given and in their order.

    Raises:
        SettingsError: A name is unknown, or needs ``group_id`` and there is none, or cannot be
            weighted.
        DataError: The columns disagree in length, are empty, or leave a metric undefined; a weight
            is negative or no number.
        DivergenceError: A score is not a finite number.
    """
    grouped = [name for name in metrics if needs_group(name)]
    if grouped and group_id is None:
        raise SettingsError(
            f"metric {grouped[0]} ranks rows within groups, but no group_id is set: "
            "name the group's column as group_id, or drop the metric"
        )
    y_true, y_pred = checked_columns(y_true, y_pred, metrics)
    if grouped:
        group_id = np.asarray(group_id).ravel()
        if len(group_id) != len(y_true):
            raise DataError(f"{len(y_true)} labels but {len(group_id)} group ids")
    if weights is not None:
        if grouped:
            raise SettingsError(no_weights(grouped[0]))
        weights = np.asarray(weights, np.float64).ravel()
        if len(weights) != len(y_true):
            raise DataError(f"{len(y_true)} labels but {len(weights)} weights")
        bad = ~((weights >= 0) & (weights < np.inf))
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(f"weights must be 0 or more, found {weights[row]} in row {row}")
    sums = sums_of(metrics, Columns(y_true, y_pred, group_id, weights))
    return {name: value_from(name, each) for name, each in sums.items()}


def evaluate_on_device(columns: Columns, metrics: Sequence[str]) -> dict[str, float] | None:
    """Compute metrics where the scores are, on a GPU, without a copy to the host.

    Args:
        columns: Tensors; the scores float32 or float64, groups whole numbers, all but the scores
            on any device.
        metrics: Names of metrics.

    Returns:
        Metric values by name. None where one of them, or the columns, are left to
        :func:`evaluate_metrics`, which also says what is wrong with columns that have no metrics.

    Raises:
        DataError: The rows leave a metric undefined.
    """
    y_true, y_pred, group_id, weights = columns
    if not _ON_DEVICE.issuperset(metrics) or y_pred.numel() == 0:
        return None
    if "gAUC" in metrics and (group_id is None or weights is not None):
        return None
    y_true, y_pred = y_true.to(y_pred.device, torch.float64), y_pred.double()
    probabilities = (y_pred >= 0) & (y_pred <= 1)
    sound = (((y_true == 0) | (y_true == 1)) & probabilities).all()
    group_id = group_id if group_id is None else group_id.to(y_pred.device)
    weights = weights if weights is None else weights.to(y_pred.device, torch.float64)
    sums = sums_of(metrics, Columns(y_true, y_pred, group_id, weights))
    # One look at the device for all that was computed there.
    *numbers, sound = torch.cat([*sums.values(), sound.double().reshape(1)]).tolist()
    if not sound:
        return None
    found = iter(numbers)
    return {name: value_from(name, [next(found) for _ in each]) for name, each in sums.items()}


def checked_columns(
    y_true: ArrayLike, y_pred: ArrayLike, metrics: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores as float64 columns of one length that the metrics are defined for.

    Raises:
        DataError: The columns disagree in length, are empty, or hold a label or score that a metric
            is not defined for.
        DivergenceError: A score is not a finite number.
    """
    y_true = np.asarray(y_true, np.float64).ravel()
    y_pred = np.asarray(y_pred, np.float64).ravel()
    if len(y_true) != len(y_pred):
        raise DataError(f"{len(y_true)} labels but {len(y_pred)} predictions")
    if len(y_true) == 0:
        raise DataError("no rows to evaluate: the data set is empty")
    finite = np.isfinite(y_pred)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DivergenceError(
            f"{np.count_nonzero(~finite)} of {len(y_pred)} predictions are not finite numbers "
            f"(first: {y_pred[row]} in row {row}): the model has diverged, lower the learning rate"
        )
    binary = (y_true == 0) | (y_true == 1)
    if not binary.all() and not all(name.startswith(("MRR", "NDCG")) for name in metrics):
        row = int(np.argmin(binary))
        raise DataError(f"labels must be 0 or 1, found {y_true[row]} in row {row}")
    for metric in _OF_PROBABILITIES.intersection(metrics):
        if y_pred.min() < 0 or y_pred.max() > 1:
            raise DataError(
                f"{metric} needs probabilities, but the predictions reach from {y_pred.min():.6g} "
                f"to {y_pred.max():.6g}: use task binary_classification, or drop the metric"
            )
    return y_true, y_pred


# An odd number whose multiples scatter: 2^64 over the golden ratio.
_SCATTER = np.uint64(0x9E3779B97F4A7C15)


def evaluate_spread(
    columns: Columns, metrics: Sequence[str], ranks: Ranks
) -> dict[str, float] | None:
    """Compute metrics of the rows of all ranks; each rank calls this with its own.

    Args:
        columns: Tensors [rows]; groups are numbers.
        metrics: Names of metrics, without a stream.
        ranks: The ranks. Of the data, rank r has the rows r, r + size, r + 2 size, ….

    Returns:
        Metric values by name, the same on every rank; None on all where some rank's rows have no
        metrics, which is for a look at all rows to explain.

    Raises:
        DataError: All rows together leave a metric undefined.
    """
    grouped = [name for name in metrics if needs_group(name)]
    y_true, y_pred, group_id, weights = (None if c is None else c.cpu() for c in columns)
    try:
        labels, scores = checked_columns(y_true, y_pred, metrics)
        sound = not grouped or (group_id is not None and weights is None)
    except UserError:
        sound = False
    if any(ranks.agree(not sound)):
        return None
    row_weights = None if weights is None else weights.double().numpy()
    of_rows = [m for m in metrics if m != "AUC" and m not in grouped]
    sums = sums_of(of_rows, Columns(labels, scores, weights=row_weights))
    if grouped:
        sums |= _of_whole_groups(y_true, y_pred, group_id, grouped, ranks)
    counts = _counts_in_range(y_true, y_pred, weights, ranks) if "AUC" in metrics else None
    everybodys = ranks.all_gather((sums, counts))
    total = {name: sum(their[name] for their, _ in everybodys) for name in sums}
    if counts is not None:
        total["AUC"] = _joined_ranges([theirs for _, theirs in everybodys])
    return {name: value_from(name, total[name]) for name in metrics}


def _of_whole_groups(
    y_true: Tensor, y_pred: Tensor, group_id: Tensor, metrics: Sequence[str], ranks: Ranks
) -> dict[str, np.ndarray]:
    """Collect the rows of some groups in the order of the data, and return their sums."""
    row = torch.arange(len(y_true)) * ranks.size + ranks.rank
    # Which rank a group goes to; equal groups have equal numbers, and -0.0 is 0.0.
    scattered = (group_id.double().numpy() + 0.0).view(np.uint64) * _SCATTER
    target = torch.from_numpy((scattered >> np.uint64(33)).astype(np.int64) % ranks.size)
    columns = ranks.all_to_all([y_true, y_pred, group_id, row], target)
    if not len(columns[0]):
        return {name: np.zeros(3) for name in metrics}
    order = columns.pop().argsort()
    y_true, y_pred, group_id = (column[order] for column in columns)
    columns = y_true.double().numpy(), y_pred.double().numpy(), group_id.numpy()
    return sums_of(metrics, Columns(*columns))


def _counts_in_range(
    y_true: Tensor, y_pred: Tensor, weights: Tensor | None, ranks: Ranks
) -> np.ndarray:
    """Collect the rows of a range of scores, the lower the rank the lower, and count pairs.

    Source:
        Shi and Schaeffer, "Parallel sorting by regular sampling", 1992, for the ranges.
    """
    ascending = y_pred.sort().values
    places = torch.linspace(0, len(ascending) - 1, ranks.size).long()
    samples = torch.cat(ranks.all_gather(ascending[places])).sort().values
    bounds = samples[ranks.size // 2 :: ranks.size][1:].contiguous()
    target = torch.searchsorted(bounds, y_pred, right=True)  # equal scores stay together
    columns = [y_true, y_pred] if weights is None else [y_true, y_pred, weights]
    y_true, y_pred, *rest = (c.double().numpy() for c in ranks.all_to_all(columns, target))
    if not len(y_true):
        return np.zeros(3)
    return sums_of(["AUC"], Columns(y_true, y_pred, None, *rest))["AUC"]


def _joined_ranges(counts: Sequence[np.ndarray]) -> np.ndarray:
    """Join the pair counts of ranges of scores, the lowest first."""
    positives = negatives = above = 0.0
    for more_positives, more_negatives, within in counts:
        above += within + more_positives * negatives
        positives += more_positives
        negatives += more_negatives
    return np.array([positives, negatives, above])
