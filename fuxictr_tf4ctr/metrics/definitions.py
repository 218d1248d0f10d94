"""What each metric is, once: its names, and its sums for arrays on the host and on any device.

A name that ends in ``_simple`` or ``_complex`` is the metric of that stream.

A metric is made of sums: over rows (logloss, ece, pcoc), over pairs of rows (AUC), over groups
(gAUC, MRR, …); :func:`value_from` turns the sums into its value. Sums of rows that lie on several
ranks are added up first; in those of resampled rows each counts as often as it was drawn. Where
FuxiCTR leaves the order of tied scores to an unstable sort (MRR, NDCG), the order here is fixed: of
rows with equal scores, the later row of the input ranks first, which is
``np.argsort(y_pred, kind="stable")[::-1]``.

Shapes: N rows, T distinct scores (within their groups), G groups.
"""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fuxictr_tf4ctr.errors import DataError, SettingsError

# Streams a two-stream model scores beside its final prediction: y_simple, y_complex.
STREAMS = ("simple", "complex")
# Beside y_pred, of a model that was calibrated after training.
CALIBRATED = "calibrated"
PLAIN = ("logloss", "binary_crossentropy", "AUC", "ece", "pcoc")
GROUPED = ("gAUC", "avgAUC", "MRR")
_LESS_IS_BETTER = ("logloss", "binary_crossentropy", "ece")
# NDCG and NDCG() mean FuxiCTR's default, k = 1.
_NDCG = re.compile(r"NDCG(?:@([1-9]\d*)|\(\s*(?:(?:k\s*=\s*)?([1-9]\d*))?\s*\))?")


def check_metric(name: str) -> None:
    """Raise SettingsError, naming the nearest known metrics, unless ``name`` is a metric."""
    metric, stream = split_stream(name)
    if stream == CALIBRATED:
        raise SettingsError(f"metric {name!r} comes by itself with the setting calibration")
    if metric in (*PLAIN, *GROUPED) or ndcg_places(metric):
        return
    known = {metric.lower(): metric for metric in (*PLAIN, *GROUPED, "NDCG(k=5)")}
    streams = {f"auc_{stream}": f"AUC_{stream}" for stream in STREAMS}
    nearest = difflib.get_close_matches(name.lower(), known | streams, n=2, cutoff=0.5)
    named = " or ".join((known | streams)[match] for match in nearest)
    hint = f"did you mean {named}? " if nearest else ""
    raise SettingsError(
        f"unknown metric {name!r}: {hint}Known metrics: {', '.join(known.values())}, "
        f"and of a stream with {' or '.join(f'_{stream}' for stream in STREAMS)} behind"
    )


def needs_group(name: str) -> bool:
    """Whether the metric ranks rows within groups and so needs ``group_id``.

    Raises:
        SettingsError: As :func:`check_metric`.
    """
    check_metric(name)
    return split_stream(name)[0] not in PLAIN


def less_is_better(name: str) -> bool | None:
    """Whether less of a metric is better; None for pcoc, best at 1, and for metrics of a model."""
    metric, _ = split_stream(name)
    if metric in _LESS_IS_BETTER:
        return True
    return False if metric in ("AUC", *GROUPED) or ndcg_places(metric) else None


def no_weights(name: str) -> str:
    """Say that a metric within groups is not defined for weighted rows."""
    return f"metric {name} ranks rows within groups and knows no weights: drop it, or weight_col"


def split_stream(name: str) -> tuple[str, str | None]:
    """Split ``AUC_simple`` into the metric and its stream, None for the final prediction's."""
    metric, _, stream = name.rpartition("_")
    return (metric, stream) if metric and stream in (*STREAMS, CALIBRATED) else (name, None)


def ndcg_places(name: str) -> int | None:
    """Return k of ``NDCG@k``, ``NDCG(k)`` or ``NDCG(k=k)``; None for other names."""
    ndcg = _NDCG.fullmatch(name)
    return int(ndcg[1] or ndcg[2] or 1) if ndcg else None


Array = np.ndarray | Tensor


class Columns(NamedTuple):
    """Rows that are scored, columns of one kind and on one device.

    Attributes:
        y_true: [N] labels.
        y_pred: [N] scores.
        group_id: [N] group of each row, for metrics within groups: gAUC (DIN, arXiv 1706.06978,
            section 6), avgAUC, MRR, NDCG.
        weights: [N] how often each row counts, which need not be whole; None for once. Metrics
            within groups know none.
    """

    y_true: Array
    y_pred: Array
    group_id: Array | None = None
    weights: Array | None = None


# As in Guo et al., arXiv 1706.04599.
_CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Ranking:
    """Rows in the order of their groups and, within each, of ascending score.

    Attributes:
        order: [N] the rows in that order.
        y_true: [N] their labels, float64.
        ties: [T] place of the last row of each run of equal scores.
        groups: [G] place of the last row of each group.
    """

    order: Array
    y_true: Array
    ties: Array
    groups: Array

    @classmethod
    def of(cls, y_true: Array, y_pred: Array, group_id: Array | None = None) -> "Ranking":
        """Sort [N] rows; without ``group_id`` they are one group.

        Tied rows of one of several groups stay in the order of the input; those of a single group
        come in any, as the faster sort leaves them.
        """
        if group_id is None:
            order = y_pred.argsort()
        elif isinstance(y_pred, Tensor):
            order = y_pred.argsort(stable=True)
            order = order[group_id[order].argsort(stable=True)]
        else:
            order = np.lexsort((y_pred, group_id))
        y_true, y_pred = y_true[order], y_pred[order]
        new_score = y_pred[1:] != y_pred[:-1]
        if group_id is None:
            ties = _lasts(new_score)
            return cls(order, y_true, ties, ties[-1:])
        group_id = group_id[order]
        new_group = group_id[1:] != group_id[:-1]
        return cls(order, y_true, _lasts(new_score | new_group), _lasts(new_group))

    def corners(self, weights: Array | None = None) -> tuple[Array, Array]:
        """Return the corners of the ROC curve: positives and negatives up to each distinct score.

        Args:
            weights: [N] how often each row counts; None for once.

        Returns:
            [T] each, added up over all groups, the lowest scores first.
        """
        if weights is None:
            positives = self.y_true.cumsum(0)[self.ties]
            return positives, self.ties + 1 - positives
        weights = weights[self.order]
        positives = (self.y_true * weights).cumsum(0)[self.ties]
        return positives, weights.cumsum(0)[self.ties] - positives

    def pair_counts(self, weights: Array | None = None) -> tuple[Array, Array, Array]:
        """Return [G] positives, negatives, and pairs of a positive above a negative, ties a half.

        That is the area of the trapezoids under the ROC curve. All are halves of whole numbers:
        exact in float64, in whatever order they are added up.
        """
        positives, negatives = self.corners(weights)
        above = (steps(positives) * middles(negatives)).cumsum(0)
        last = _module(self.ties).searchsorted(self.ties, self.groups)
        positives, negatives, above = positives[last], negatives[last], above[last]
        own, own_negatives = steps(positives), steps(negatives)
        # A group's positives were counted as above the negatives of the groups before it too.
        return own, own_negatives, steps(above) - own * (negatives - own_negatives)

    def auc(self, weights: Array | None = None) -> float:
        """Return the AUC of rows of one group, NaN where there is one class only."""
        positives, negatives, above = (float(each[0]) for each in self.pair_counts(weights))
        return above / (positives * negatives) if positives and negatives else math.nan

    def sizes(self) -> Array:
        """[G] rows of each group."""
        return steps(self.groups + 1)

    def places(self) -> np.ndarray:
        """[N] place of each row in its group, the highest score in place 1; on the host."""
        return np.repeat(self.groups, self.sizes()) + 1 - np.arange(len(self.order))

    def sum(self, values: np.ndarray) -> np.ndarray:
        """[G] sums over each group of [N] values; on the host."""
        return np.add.reduceat(values, self.groups + 1 - self.sizes())


def auc(y_true: Array, y_pred: Array) -> float:
    """Return the area under the ROC curve of [N] scores, NaN where there is one class only."""
    return Ranking.of(y_true, y_pred).auc()


def truth_probability(y_true: Array, y_pred: Array) -> Array:
    """Return p_t: the [N] probabilities given to the true class."""
    return _module(y_pred).where(y_true == 1, y_pred, 1 - y_pred)


def cross_entropy(y_true: Array, y_pred: Array) -> Array:
    """Return the binary cross entropy of [N] rows, clipped as in scikit-learn's ``log_loss``."""
    eps = np.finfo(np.float64).eps
    return -_module(y_pred).log(truth_probability(y_true, y_pred).clip(eps, 1 - eps))


def calibration_sums(
    y_true: np.ndarray, y_pred: np.ndarray
) -> Callable[[np.ndarray | None], np.ndarray]:
    """Prepare to compare predicted with observed clicks in 15 even parts of [0, 1].

    Args:
        y_true: [N] labels, 0 or 1.
        y_pred: [N] probabilities; each part of [0, 1] holds its lower bound.

    Returns:
        A function that takes [N] how often each row counts, or None for once. It returns [16]
        predicted less observed clicks of each part, and rows.
    """
    bins = (y_pred * _CALIBRATION_BINS).astype(np.int64)
    bins = np.minimum(bins, _CALIBRATION_BINS - 1)
    surplus = y_pred - y_true

    def sums(weights: np.ndarray | None) -> np.ndarray:
        rows = len(surplus) if weights is None else weights.sum()
        weighted = surplus if weights is None else weights * surplus
        return np.append(np.bincount(bins, weighted, minlength=_CALIBRATION_BINS), rows)

    return sums


def sums_of(metrics: Sequence[str], columns: Columns) -> dict[str, Array]:
    """Return what rows add to each metric.

    Args:
        metrics: Names of metrics, without a stream.
        columns: The rows, float64 but for their groups; all rows of a group must be among these.

    Returns:
        Name -> a few numbers. For AUC: positives, negatives, pairs of a positive above a negative,
        ties a half. For logloss, and for pcoc: numerator, denominator, rows. For ece what
        :func:`calibration_sums` says. Within groups: the groups' values by their weights, those
        weights, and how many groups there are.
    """
    grouped = [name for name in metrics if needs_group(name)]
    ranking = Ranking.of(*columns[:3]) if grouped else None
    return {
        name: _group_sums(name, ranking) if name in grouped else _row_sums(name, columns)
        for name in metrics
    }


def _row_sums(name: str, columns: Columns) -> Array:
    y_true, y_pred, _, weights = columns
    if name == "AUC":
        return _module(y_true).concatenate(Ranking.of(y_true, y_pred).pair_counts(weights))
    if name == "ece":
        return calibration_sums(y_true, y_pred)(weights)
    weight, rows = (1, len(y_true)) if weights is None else (weights, weights.sum())
    if name == "pcoc":
        return np.array([(weight * y_pred).sum(), (weight * y_true).sum(), rows])
    entropy = (weight * cross_entropy(y_true, y_pred)).sum()
    return _module(y_pred).stack([entropy, entropy * 0 + rows])


def _group_sums(name: str, ranking: Ranking) -> Array:
    if name in ("gAUC", "avgAUC"):
        values, sizes = group_aucs(ranking)
        weights = sizes if name == "gAUC" else sizes * 0 + 1
    else:
        values = _mrr(ranking) if name == "MRR" else _ndcg(ranking, ndcg_places(name))
        weights = np.ones(len(values))
    total = weights.sum() * 1.0
    return _module(values).stack([(values * weights).sum(), total, total * 0 + len(ranking.groups)])


def group_aucs(ranking: Ranking) -> tuple[Array, Array]:
    """Return AUC and rows of the groups that hold both classes: the others have no say."""
    positives, negatives, above = ranking.pair_counts()
    pairs = positives * negatives
    mixed = pairs > 0
    return above[mixed] / pairs[mixed], ranking.sizes()[mixed]


def _mrr(ranking: Ranking) -> np.ndarray:
    """Mean reciprocal places of each group's positives, 0 where there are none."""
    reciprocal_sums = ranking.sum(ranking.y_true / ranking.places())
    return reciprocal_sums / (ranking.sum(ranking.y_true) + 1e-12)


def _ndcg(ranking: Ranking, k: int) -> np.ndarray:
    """Discounted gains of each group's first k places, over the best there are."""
    places = ranking.places()
    discounts = np.where(places <= k, 1 / np.log2(places + 1), 0)
    groups = np.repeat(np.arange(len(ranking.groups)), ranking.sizes())
    ideal = ranking.y_true[np.lexsort((ranking.y_true, groups))]
    gains = ranking.sum((np.exp2(ranking.y_true) - 1) * discounts)
    return gains / (ranking.sum((np.exp2(ideal) - 1) * discounts) + 1e-12)


def value_from(name: str, sums: Sequence[float]) -> float:
    """Return a metric's value.

    Args:
        name: The metric.
        sums: What all rows, pairs or groups add to it.

    Raises:
        DataError: The rows leave the metric undefined.
    """
    if name in PLAIN and not (any(sums[:2]) if name == "AUC" else sums[-1]):
        raise DataError(f"{name} is undefined: all weights are 0")
    if name == "AUC":
        positives, negatives, above = sums
        if not positives or not negatives:
            label = 1 if positives else 0
            raise DataError(f"AUC is undefined: all labels are {label}, rows of weight 0 aside")
        return float(above / (positives * negatives))
    if name == "ece":
        return float(np.abs(sums[:-1]).sum() / sums[-1])
    if sums[1] == 0:
        if name == "pcoc":
            raise DataError(f"pcoc is undefined: all {sums[2]:.0f} labels are 0")
        raise DataError(
            f"gAUC and avgAUC are undefined: each of the {sums[2]:.0f} groups holds one class only"
        )
    return float(sums[0] / sums[1])


def steps(cumulated: Array) -> Array:
    """Return by how much [N] sums grow with each entry, from 0 on."""
    return _module(cumulated).diff(cumulated, prepend=cumulated[:1] * 0)


def middles(cumulated: Array) -> Array:
    """Return [N] sums with half of each entry's own: what lies below it, ties counted one half."""
    return cumulated - steps(cumulated) / 2


def _lasts(differs: Array) -> Array:
    """Return the last places of runs in [N] entries, by whether [N - 1] differ from the next."""
    places = _module(differs).argwhere(differs).reshape(-1)
    last = places[:0].sum().reshape(1) + len(differs)
    return _module(differs).concatenate([places, last])


def _module(array: Array) -> ModuleType:
    return torch if isinstance(array, Tensor) else np
