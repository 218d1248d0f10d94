"""How sure two models differ: DeLong's test of their AUCs, and intervals from resampled rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fuxictr_tf4ctr.metrics.definitions import (
    Ranking,
    calibration_sums,
    cross_entropy,
    group_aucs,
    middles,
    steps,
    value_from,
)


@dataclass(frozen=True)
class DeLong:
    """Outcome of the test.

    Attributes:
        aucs: AUC of the first and of the second model.
        standard_error: Standard error of their difference.
        z: Difference, second minus first, over its standard error.
        p_value: Two-sided probability of a difference at least as large if the AUCs are equal.
    """

    aucs: tuple[float, float]
    standard_error: float
    z: float
    p_value: float


def delong_test(y_true: np.ndarray, first: np.ndarray, second: np.ndarray) -> DeLong:
    """Test whether two models' AUCs on the same rows differ.

    Args:
        y_true: [N] labels, 0 or 1, at least two of each.
        first: [N] scores of the first model.
        second: [N] scores of the second model.

    Raises:
        ValueError: A class has fewer than two rows.

    Source:
        DeLong, DeLong, Clarke-Pearson, Biometrics 44 (1988) 837; the placements from mid-ranks, in
        O(N log N), as Sun, Xu, IEEE Signal Processing Letters 21 (2014) 1389.
    """
    positive = y_true == 1
    num_positives, num_negatives = int(positive.sum()), int((~positive).sum())
    if min(num_positives, num_negatives) < 2:
        raise ValueError(
            f"DeLong's test needs two rows of each class, not {num_positives} positive and "
            f"{num_negatives} negative"
        )
    pairs = zip(*(_placements(positive, scores) for scores in (first, second)), strict=True)
    of_positives, of_negatives = map(np.array, pairs)
    covariance = np.cov(of_positives) / num_positives + np.cov(of_negatives) / num_negatives
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    aucs = of_positives.mean(axis=1)
    difference, error = float(aucs[1] - aucs[0]), math.sqrt(max(float(variance), 0.0))
    # Two models that rank alike differ by nothing, with no error: 0 / 0.
    z = difference / error if error else math.copysign(math.inf, difference) if difference else 0.0
    return DeLong((float(aucs[0]), float(aucs[1])), error, z, math.erfc(abs(z) / math.sqrt(2)))


def _placements(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place every row in the other class, ties counting one half.

    Returns:
        For each positive, the share of negatives below it; for each negative, the share of
        positives above it. The mean of either is the AUC.
    """
    ranking = Ranking.of(positive.astype(np.float64), scores)
    below = np.empty((2, len(scores)))  # positives and negatives below each row
    for class_, corners in enumerate(ranking.corners()):
        below[class_, ranking.order] = np.repeat(middles(corners), steps(ranking.ties + 1))
    positives, negatives = below / [[positive.sum()], [(~positive).sum()]]
    return negatives[positive], 1 - positives[~positive]


CONFIDENCE = 0.95
# How many standard errors reach that far.
Z = 1.959964


@dataclass(frozen=True)
class Statistic:
    """A metric of units drawn with replacement, prepared so that each draw is quick.

    Attributes:
        units: How many units there are to draw from: rows, or groups of rows.
        of: The metric where unit i was drawn ``counts[i]`` times, NaN if it then has none.
    """

    units: int
    of: Callable[[np.ndarray], float]


def resampled_mean(values: np.ndarray, weights: np.ndarray | None = None) -> Statistic:
    """Prepare the mean of one value per unit: the cross entropy of a row, the AUC of a group.

    Args:
        values: [N] values.
        weights: [N] weights; None for equal ones.
    """

    def of(counts: np.ndarray) -> float:
        counts = counts if weights is None else counts * weights
        return float(counts @ values / counts.sum())

    return Statistic(len(values), of)


def statistics(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    metrics: Sequence[str],
    group_id: np.ndarray | None = None,
) -> dict[str, Statistic]:
    """Prepare those metrics that can be resampled; the others are left out.

    Rows are drawn for AUC, logloss and ece, whole groups for gAUC and avgAUC.

    Args:
        y_true: [N] labels, 0 or 1.
        y_pred: [N] probabilities.
        metrics: Names of metrics.
        group_id: [N] group of each row; None leaves metrics within groups out.
    """
    calibration = calibration_sums(y_true, y_pred)
    prepared: dict[str, Callable[[], Statistic]] = {
        "AUC": lambda: Statistic(len(y_true), Ranking.of(y_true, y_pred).auc),
        "logloss": lambda: resampled_mean(cross_entropy(y_true, y_pred)),
        "binary_crossentropy": lambda: resampled_mean(cross_entropy(y_true, y_pred)),
        "ece": lambda: Statistic(
            len(y_true), lambda counts: value_from("ece", calibration(counts))
        ),
    }
    if group_id is not None:
        aucs, sizes = group_aucs(Ranking.of(y_true, y_pred, group_id))
        prepared["gAUC"] = lambda: resampled_mean(aucs, sizes)
        prepared["avgAUC"] = lambda: resampled_mean(aucs)
    return {name: prepared[name]() for name in metrics if name in prepared}


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"

    @classmethod
    def of(cls, value: float, error: float) -> "Interval":
        """Return the interval of a value that is about normal, by its standard error."""
        return cls(value, value - Z * error, value + Z * error)

    @classmethod
    def of_mean(cls, values: np.ndarray) -> "Interval":
        """Return the interval of the mean of [N] values; of one value, it has no width."""
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return cls.of(float(values.mean()), float(error))


@dataclass(frozen=True)
class PairedIntervals:
    """One metric of two models, and the difference: second minus first."""

    first: Interval
    second: Interval
    difference: Interval


def paired_bootstrap(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, PairedIntervals]:
    """Bound the metrics of two models by the percentiles of resamples.

    Every resample draws the same rows for both models, so that what is easy or hard for both drops
    out of their difference.

    Args:
        first: Statistics of the first model, by metric.
        second: Those of the second, over the same rows or groups in the same order.
        resamples: How many resamples to draw.
        seed: Seed of the draws.

    Returns:
        The intervals of the metrics that both have.

    Source:
        Efron, Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    pairs = {name: (first[name], second[name]) for name in first if name in second}
    drawn = {name: np.empty((resamples, 2)) for name in pairs}
    rng = np.random.default_rng(seed)
    units = sorted({statistic.units for pair in pairs.values() for statistic in pair})
    for row in range(resamples):
        drawn_rows = {n: np.bincount(rng.integers(n, size=n), minlength=n) for n in units}
        counts = {n: drawn.astype(np.float64) for n, drawn in drawn_rows.items()}
        for name, pair in pairs.items():
            drawn[name][row] = [statistic.of(counts[statistic.units]) for statistic in pair]
    return {name: _intervals(pair, drawn[name]) for name, pair in pairs.items()}


def _intervals(pair: tuple[Statistic, Statistic], drawn: np.ndarray) -> PairedIntervals:
    first, second = (statistic.of(np.ones(statistic.units)) for statistic in pair)
    columns = (drawn[:, 0], drawn[:, 1], drawn[:, 1] - drawn[:, 0])
    tails = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    # A resample of one class alone has no AUC.
    bounds = [map(float, np.nanquantile(column, tails)) for column in columns]
    values = (first, second, second - first)
    return PairedIntervals(
        *(Interval(value, *bound) for value, bound in zip(values, bounds, strict=True))
    )
