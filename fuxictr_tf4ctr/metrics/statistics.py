"""Metrics of resampled rows: each is prepared once and then told how often each row was drawn."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from fuxictr_tf4ctr.metrics.midranks import group_aucs, tie_starts

# As the metric ``ece``.
_CALIBRATION_BINS = 15


class Statistic:
    """A metric of units drawn with replacement.

    Attributes:
        units: How many units there are to draw from: rows, or groups of rows.
    """

    units: int

    def __call__(self, counts: np.ndarray) -> float:
        """Return the metric where unit i was drawn ``counts[i]`` times, NaN if it has none."""
        raise NotImplementedError


class AUC(Statistic):
    """Area under the ROC curve; tied scores count one half.

    Args:
        y_true: [N] labels, 0 or 1.
        y_pred: [N] scores.
    """

    def __init__(self, y_true: np.ndarray, y_pred: np.ndarray) -> None:
        self.units = len(y_true)
        self._order = np.argsort(y_pred)
        self._starts = tie_starts(y_pred[self._order])
        self._positive = y_true[self._order] == 1

    def __call__(self, counts: np.ndarray) -> float:
        counts = counts[self._order]
        positives = np.add.reduceat(np.where(self._positive, counts, 0.0), self._starts)
        negatives = np.add.reduceat(np.where(self._positive, 0.0, counts), self._starts)
        pairs = positives.sum() * negatives.sum()
        below = np.cumsum(negatives) - negatives / 2
        return float(positives @ below / pairs) if pairs else math.nan


class Mean(Statistic):
    """Mean of one value per unit.

    Args:
        values: [N] values: the cross entropy of each row, the AUC of each group.
        weights: [N] weights; None for equal ones.
    """

    def __init__(self, values: np.ndarray, weights: np.ndarray | None = None) -> None:
        self.units = len(values)
        self._values = values
        self._weights = np.ones(len(values)) if weights is None else weights

    def __call__(self, counts: np.ndarray) -> float:
        weights = counts * self._weights
        return float(weights @ self._values / weights.sum())


class CalibrationError(Statistic):
    """Expected calibration error, as the metric ``ece``.

    Args:
        y_true: [N] labels, 0 or 1.
        y_pred: [N] probabilities.
    """

    def __init__(self, y_true: np.ndarray, y_pred: np.ndarray) -> None:
        self.units = len(y_true)
        bins = (y_pred * _CALIBRATION_BINS).astype(np.int64)
        self._bins = np.minimum(bins, _CALIBRATION_BINS - 1)
        self._surplus = y_pred - y_true

    def __call__(self, counts: np.ndarray) -> float:
        surplus = np.bincount(self._bins, counts * self._surplus)
        return float(np.abs(surplus).sum() / counts.sum())


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
    prepared: dict[str, Callable[[], Statistic]] = {
        "AUC": lambda: AUC(y_true, y_pred),
        "logloss": lambda: Mean(cross_entropy(y_true, y_pred)),
        "binary_crossentropy": lambda: Mean(cross_entropy(y_true, y_pred)),
        "ece": lambda: CalibrationError(y_true, y_pred),
    }
    if group_id is not None:
        prepared["gAUC"] = lambda: Mean(*group_aucs(y_true, y_pred, group_id))
        prepared["avgAUC"] = lambda: Mean(group_aucs(y_true, y_pred, group_id)[0])
    return {name: prepared[name]() for name in metrics if name in prepared}


def cross_entropy(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Return the binary cross entropy of [N] rows, probabilities clipped as in ``logloss``."""
    eps = np.finfo(np.float64).eps
    given_to_truth = np.where(y_true == 1, y_pred, 1 - y_pred)
    return -np.log(np.clip(given_to_truth, eps, 1 - eps))
