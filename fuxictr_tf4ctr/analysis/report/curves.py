"""The numbers behind the charts: few points from many rows."""

from dataclasses import dataclass

import numpy as np

from fuxictr_tf4ctr.metrics.definitions import Ranking, auc, cross_entropy, truth_probability

# z of a 95 % interval.
_Z = 1.959964


def roc_curve(y_true: np.ndarray, y_pred: np.ndarray, points: int = 160) -> np.ndarray:
    """Trace the ROC curve.

    Args:
        y_true: [N] labels, 0 or 1.
        y_pred: [N] scores.
        points: How many points to keep at most, beside (0, 0) and (1, 1).

    Returns:
        [P, 2] false and true positive rates, both ascending. Where points are left out, the curve
        runs through the others.
    """
    # Ties are passed in one stroke: a corner at each distinct score, from the highest on.
    positives, negatives = Ranking.of(y_true, y_pred).corners()
    true_rate = 1 - np.append(0, positives[:-1])[::-1] / positives[-1]
    false_rate = 1 - np.append(0, negatives[:-1])[::-1] / negatives[-1]
    # Evenly along the curve, not along x: a good model's curve is almost all at x = 0.
    along = true_rate + false_rate
    kept = np.unique(np.searchsorted(along, np.linspace(0, 2, points), side="left"))
    kept = kept[kept < len(along)]
    curve = np.column_stack([false_rate[kept], true_rate[kept]])
    return np.vstack([[0, 0], curve, [1, 1]])


@dataclass(frozen=True)
class Calibration:
    """Predicted against observed click rate in bins of about as many rows each, [bins] arrays.

    Attributes:
        predicted: Mean prediction.
        observed: Click rate.
        low, high: Bounds of its 95 % interval.
        rows: Number of rows.
    """

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rows: np.ndarray


def calibration_curve(y_true: np.ndarray, y_pred: np.ndarray, bins: int = 12) -> Calibration:
    """Compare predictions with click rates, bin by bin.

    Args:
        y_true: [N] labels, 0 or 1.
        y_pred: [N] probabilities.
        bins: Number of bins; fewer where there are fewer rows.

    Source:
        The intervals are Wilson's (1927): they stay within [0, 1] at rates of 0 and 1.
    """
    parts = [part for part in np.array_split(np.argsort(y_pred, kind="stable"), bins) if len(part)]
    rows = np.array([len(part) for part in parts])
    predicted = np.array([y_pred[part].mean() for part in parts])
    observed = np.array([y_true[part].mean() for part in parts])
    scale = 1 + _Z**2 / rows
    center = (observed + _Z**2 / (2 * rows)) / scale
    spread = np.sqrt(observed * (1 - observed) / rows + _Z**2 / (4 * rows**2)) * _Z / scale
    return Calibration(predicted, observed, center - spread, center + spread, rows)


def shares(values: np.ndarray, edges: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the share of the values, or of their weights, that falls between each two edges."""
    counts, _ = np.histogram(values, edges, weights=weights)
    return counts / max(counts.sum(), np.finfo(float).tiny)


def difficulty_deciles(p_t: np.ndarray) -> list[np.ndarray]:
    """Divide rows into ten parts of about the same size, from the hardest (least p_t) on.

    Returns:
        The row numbers of each decile; fewer parts where there are fewer than ten rows.
    """
    return [part for part in np.array_split(np.argsort(p_t, kind="stable"), 10) if len(part)]


def decile_auc(y_true: np.ndarray, y_pred: np.ndarray, deciles: list[np.ndarray]) -> np.ndarray:
    """Return the AUC within each decile, NaN where it holds one class only."""
    return np.array([auc(y_true[d], y_pred[d]) for d in deciles])


@dataclass(frozen=True)
class Gain:
    """Mean logloss that a model saves against another, with its 95 % interval, [deciles] arrays."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def decile_gain(
    y_true: np.ndarray, y_pred: np.ndarray, base: np.ndarray, deciles: list[np.ndarray]
) -> Gain:
    """Return the logloss that ``y_pred`` saves against ``base`` in each decile."""
    saved = cross_entropy(y_true, base) - cross_entropy(y_true, y_pred)
    mean = np.array([saved[d].mean() for d in deciles])
    error = np.array([saved[d].std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else 0 for d in deciles])
    return Gain(mean, mean - _Z * error, mean + _Z * error)


@dataclass(frozen=True)
class Agreement:
    """Rows by what both encoders say, [bins, bins] arrays: simple downwards, complex rightwards.

    Attributes:
        rows: Number of rows.
        complex_right: Share of them to which the complex encoder comes nearer; NaN where none is.
    """

    rows: np.ndarray
    complex_right: np.ndarray


def agreement(
    y_true: np.ndarray, y_simple: np.ndarray, y_complex: np.ndarray, bins: int = 14
) -> Agreement:
    """Count rows by the probabilities of both encoders, and how often the complex one is nearer."""
    edges = np.linspace(0, 1, bins + 1)
    nearer = complex_nearer(y_true, y_simple, y_complex)
    rows, _, _ = np.histogram2d(y_simple, y_complex, (edges, edges))
    wins, _, _ = np.histogram2d(y_simple, y_complex, (edges, edges), weights=nearer)
    share = np.divide(wins, rows, out=np.full(rows.shape, np.nan), where=rows > 0)
    return Agreement(rows, share)


def complex_nearer(y_true: np.ndarray, y_simple: np.ndarray, y_complex: np.ndarray) -> np.ndarray:
    """Return 1 where the complex encoder comes nearer to the label, 0 where not, 1/2 if equal."""
    gain = truth_probability(y_true, y_complex) - truth_probability(y_true, y_simple)
    return (1 + np.sign(gain)) / 2
