"""Metrics of rows that are spread over ranks, computed by all of them; no rank gets all rows.

Sums over rows are added up. For metrics within groups each rank gets whole groups; for AUC each
gets a range of scores, within which it counts pairs. Pairs across ranges follow from the numbers of
positives and negatives in each. Nothing is approximated: AUC is that of one process to the bit, the
others differ in the order of their sums.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fuxictr_tf4ctr.distributed.ranks import Ranks
from fuxictr_tf4ctr.errors import UserError
from fuxictr_tf4ctr.metrics.definitions import sums_of, value_from
from fuxictr_tf4ctr.metrics.evaluate import checked_columns
from fuxictr_tf4ctr.metrics.names import needs_group

# An odd number whose multiples scatter: 2^64 over the golden ratio.
_SCATTER = np.uint64(0x9E3779B97F4A7C15)


def evaluate_spread(
    y_true: Tensor,
    y_pred: Tensor,
    metrics: Sequence[str],
    group_id: Tensor | None,
    ranks: Ranks,
) -> dict[str, float] | None:
    """Compute metrics of the rows of all ranks; each rank calls this with its own.

    Args:
        y_true: [rows] labels.
        y_pred: [rows] scores.
        metrics: Names of metrics, without a stream.
        group_id: [rows] numbers, the group of each row; None where no metric needs them.
        ranks: The ranks. Of the data, rank r has the rows r, r + size, r + 2 size, ….

    Returns:
        Metric values by name, the same on every rank; None on all where some rank's rows have no
        metrics, which is for a look at all rows to explain.

    Raises:
        DataError: All rows together leave a metric undefined.
    """
    grouped = [name for name in metrics if needs_group(name)]
    y_true, y_pred = y_true.cpu(), y_pred.cpu()
    try:
        labels, scores = checked_columns(y_true, y_pred, metrics)
        sound = not grouped or group_id is not None
    except UserError:
        sound = False
    if any(ranks.agree(not sound)):
        return None
    sums = sums_of([m for m in metrics if m != "AUC" and m not in grouped], labels, scores)
    if grouped:
        sums |= _of_whole_groups(y_true, y_pred, group_id.cpu(), grouped, ranks)
    counts = _counts_in_range(y_true, y_pred, ranks) if "AUC" in metrics else None
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
    return sums_of(metrics, *columns)


def _counts_in_range(y_true: Tensor, y_pred: Tensor, ranks: Ranks) -> np.ndarray:
    """Collect the rows of a range of scores, the lower the rank the lower, and count pairs.

    Source:
        Shi and Schaeffer, "Parallel sorting by regular sampling", 1992, for the ranges.
    """
    ascending = y_pred.sort().values
    places = torch.linspace(0, len(ascending) - 1, ranks.size).long()
    samples = torch.cat(ranks.all_gather(ascending[places])).sort().values
    bounds = samples[ranks.size // 2 :: ranks.size][1:].contiguous()
    target = torch.searchsorted(bounds, y_pred, right=True)  # equal scores stay together
    y_true, y_pred = ranks.all_to_all([y_true, y_pred], target)
    if not len(y_true):
        return np.zeros(3)
    return sums_of(["AUC"], y_true.double().numpy(), y_pred.double().numpy())["AUC"]


def _joined_ranges(counts: Sequence[np.ndarray]) -> np.ndarray:
    """Join the pair counts of ranges of scores, the lowest first."""
    positives = negatives = above = 0.0
    for more_positives, more_negatives, within in counts:
        above += within + more_positives * negatives
        positives += more_positives
        negatives += more_negatives
    return np.array([positives, negatives, above])
