"""Metrics of resampled rows, and the confidence intervals that follow for two models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fuxictr_tf4ctr.metrics.definitions import (
    Calibration,
    Ranking,
    cross_entropy,
    group_aucs,
    value_from,
)

CONFIDENCE = 0.95


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
    calibration = Calibration(y_true, y_pred)
    prepared: dict[str, Callable[[], Statistic]] = {
        "AUC": lambda: Statistic(len(y_true), Ranking.of(y_true, y_pred).auc),
        "logloss": lambda: resampled_mean(cross_entropy(y_true, y_pred)),
        "binary_crossentropy": lambda: resampled_mean(cross_entropy(y_true, y_pred)),
        "ece": lambda: Statistic(
            len(y_true), lambda counts: value_from("ece", calibration.sums(counts))
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
    for row in range(resamples):
        counts = {
            units: _draw(rng, units) for units in sorted({s.units for s, _ in pairs.values()})
        }
        for name, pair in pairs.items():
            drawn[name][row] = [statistic.of(counts[statistic.units]) for statistic in pair]
    return {name: _intervals(pair, drawn[name]) for name, pair in pairs.items()}


def _draw(rng: np.random.Generator, units: int) -> np.ndarray:
    return np.bincount(rng.integers(units, size=units), minlength=units).astype(np.float64)


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
