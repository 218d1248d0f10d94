"""Confidence intervals of two models' metrics and of their differences, by paired resampling."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fuxictr_tf4ctr.metrics.statistics import Statistic

CONFIDENCE = 0.95


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
            drawn[name][row] = [statistic(counts[statistic.units]) for statistic in pair]
    return {name: _intervals(pair, drawn[name]) for name, pair in pairs.items()}


def _draw(rng: np.random.Generator, units: int) -> np.ndarray:
    return np.bincount(rng.integers(units, size=units), minlength=units).astype(np.float64)


def _intervals(pair: tuple[Statistic, Statistic], drawn: np.ndarray) -> PairedIntervals:
    first, second = (statistic(np.ones(statistic.units)) for statistic in pair)
    columns = (drawn[:, 0], drawn[:, 1], drawn[:, 1] - drawn[:, 0])
    tails = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    # A resample of one class alone has no AUC.
    bounds = [map(float, np.nanquantile(column, tails)) for column in columns]
    values = (first, second, second - first)
    return PairedIntervals(
        *(Interval(value, *bound) for value, bound in zip(values, bounds, strict=True))
    )
