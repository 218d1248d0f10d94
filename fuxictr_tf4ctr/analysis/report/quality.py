"""How good the predictions are: ranking, calibration, labels apart, easy and hard samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fuxictr_tf4ctr.analysis.report.page import Figure, ReportedRun, Section, run_legend
from fuxictr_tf4ctr.analysis.report.plot import Plot, count, extent, number, root_ticks, signed
from fuxictr_tf4ctr.metrics.definitions import Ranking, auc, cross_entropy, truth_probability
from fuxictr_tf4ctr.metrics.significance import Z


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
    scale = 1 + Z**2 / rows
    center = (observed + Z**2 / (2 * rows)) / scale
    spread = np.sqrt(observed * (1 - observed) / rows + Z**2 / (4 * rows**2)) * Z / scale
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
    return Gain(mean, mean - Z * error, mean + Z * error)


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


_BINS = 40
_AXIS = "decile: 1 hardest, 10 easiest for the base model"


def quality_section(runs: Sequence[ReportedRun]) -> Section:
    """Draw what the runs predict for the test rows."""
    return Section(
        "predictions",
        "Predictions",
        f"All of it on the {count(len(runs[0].y_true))} test rows, of which "
        f"{runs[0].y_true.mean():.1%} are clicks.",
        [_roc(runs), _calibration(runs), _histogram(runs[0])],
    )


def _roc(runs: Sequence[ReportedRun]) -> Figure:
    plot = Plot((0, 1), (0, 1), "false positive rate", "true positive rate", height=300)
    plot.rule((0, 0), (1, 1), "rule dashed")
    curves = {run.name: roc_curve(run.y_true, run.y_pred) for run in runs}
    plot.area([tuple(point) for point in curves[runs[0].name]], runs[0].color)
    for run in reversed(runs):
        plot.line(curves[run.name], run.color)
    plot.tell(roc_tips(curves))
    return Figure(
        "ROC curve",
        "The share of clicks found against the share of false alarms: the closer to the upper left "
        "corner, the better; the dashed line is a coin toss.",
        plot,
        run_legend(runs),
    )


def roc_tips(curves: Mapping[str, np.ndarray]) -> list[tuple[float, list[str]]]:
    """Tell the heights of ROC curves along x."""
    tips = []
    for x in np.linspace(0, 1, 41):
        heights = (f"{name} {_at(curve, x):.3f}" for name, curve in curves.items())
        tips.append((float(x), [f"false positive rate {x:.3f}", *heights]))
    return tips


def _at(curve: np.ndarray, x: float) -> float:
    """Return the height of a ROC curve, the upper end where it is upright."""
    return float(curve[curve[:, 0] <= x, 1].max())


def _calibration(runs: Sequence[ReportedRun]) -> Figure:
    curves = [calibration_curve(run.y_true, run.y_pred) for run in runs]
    top = max(max(curve.predicted.max(), curve.observed.max()) for curve in curves)
    bounds = (0.0, min(1.0, 1.06 * top))
    plot = Plot(bounds, bounds, "mean prediction", "click rate", height=300)
    plot.rule((0, 0), (bounds[1], bounds[1]), "rule dashed")
    for run, curve in reversed(list(zip(runs, curves, strict=True))):
        bars = zip(curve.predicted, curve.low, curve.high, strict=True)
        for x, low, high in bars:
            plot.whisker((x, low), (x, min(high, bounds[1])), run.color)
        points = list(zip(curve.predicted, curve.observed, strict=True))
        plot.line(points, run.color, "line thin")
        plot.dots(points, run.color)
    rows = zip(curves[0].predicted, curves[0].observed, curves[0].rows, strict=True)
    plot.tell(
        (x, [f"predicted {x:.4f}", f"observed {y:.4f}", f"{count(n)} rows"])
        for x, y, n in _apart(list(rows))
    )
    return Figure(
        "Calibration",
        "Click rates of twelve equal parts of the rows, with 95% intervals: on the dashed line "
        "a prediction of 0.3 means 3 clicks in 10; below it the model promises too many.",
        plot,
        run_legend(runs),
    )


def _apart(rows: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Leave out rows whose x is that of the row before."""
    return [row for at, row in enumerate(rows) if at == 0 or row[0] > rows[at - 1][0]]


def _histogram(run: ReportedRun) -> Figure:
    edges = np.linspace(0, 1, _BINS + 1)
    by_label = {
        "no click": (shares(run.y_pred[run.y_true == 0], edges), "quiet"),
        "click": (shares(run.y_pred[run.y_true == 1], edges), "click"),
    }
    heights = {name: np.sqrt(values) for name, (values, _) in by_label.items()}
    bounds = extent(*heights.values(), include=[0.0])
    plot = Plot((0, 1), bounds, "predicted probability", "share of rows", height=300)
    plot.ticks_at(root_ticks(bounds[1]))
    for name, (_, color) in by_label.items():
        plot.steps(edges, heights[name], color)
    tips = []
    for at, x in enumerate((edges[1:] + edges[:-1]) / 2):
        told = (f"{name} {values[at]:.2%}" for name, (values, _) in by_label.items())
        tips.append((x, [f"prediction {edges[at]:.3f} to {edges[at + 1]:.3f}", *told]))
    plot.tell(tips)
    title = f"Scores by label: {run.name}"
    means = (number(float(run.y_pred[run.y_true == label].mean()), 3) for label in (0, 1))
    return Figure(
        title,
        "The less both outlines overlap, the better the labels are told apart; mean score {} "
        "without a click, {} with one (heights on a square-root scale).".format(*means),
        plot,
        [(name, color) for name, (_, color) in by_label.items()],
    )


def difficulty_section(runs: Sequence[ReportedRun]) -> Section | None:
    """Draw all runs by deciles of the second run's p_t; None for a single run."""
    if len(runs) < 2:
        return None
    base = runs[1]
    deciles = difficulty_deciles(truth_probability(base.y_true, base.y_pred))
    others = [run for run in runs if run is not base]
    return Section(
        "difficulty",
        "Easy and hard samples",
        f"The test rows in ten equal parts, from those that {base.name} finds hardest to its "
        "easiest. The parts are cut by that run's own errors, so any other run, even the same "
        "model with another seed, gains at the hard end and loses at the easy one: give such a "
        "run as a third to see how much of a gain is more than that.",
        [
            _auc_by_decile(runs, deciles),
            *(_gain_by_decile(run, base, deciles) for run in others),
            _click_rate(runs, deciles),
        ],
    )


def _auc_by_decile(runs: Sequence[ReportedRun], deciles: list) -> Figure:
    found = {run.name: decile_auc(run.y_true, run.y_pred, deciles) for run in runs}
    names = [str(at + 1) for at in range(len(deciles))]
    bounds = extent(*found.values(), include=[0.0, 1.0])
    plot = Plot((-0.5, len(names) - 0.5), bounds, _AXIS, "AUC within the decile", x_names=names)
    plot.rule((-0.5, 0.5), (len(names) - 0.5, 0.5), "rule dashed")
    for run in reversed(runs):
        points = list(enumerate(found[run.name]))
        plot.line(points, run.color)
        plot.dots(points, run.color)
    plot.tell(
        (
            at,
            [f"decile {at + 1}", *(f"{n} {number(float(each[at]))}" for n, each in found.items())],
        )
        for at in range(len(deciles))
    )
    return Figure(
        "AUC by difficulty",
        "Only the hard end tells: where the base model is right about all rows of a decile, its "
        "AUC is 1 by construction. Look for a run that lifts the left end.",
        plot,
        run_legend(runs),
    )


def _click_rate(runs: Sequence[ReportedRun], deciles: list) -> Figure:
    observed = [float(runs[0].y_true[rows].mean()) for rows in deciles]
    found = {run.name: [float(run.y_pred[rows].mean()) for rows in deciles] for run in runs}
    names = [str(at + 1) for at in range(len(deciles))]
    bounds = extent(observed, *found.values(), include=[0.0])
    plot = Plot((-0.5, len(names) - 0.5), bounds, _AXIS, "click rate", x_names=names)
    tips = []
    for at, rate in enumerate(observed):
        plot.bar((at - 0.36, at + 0.36), (0, rate), "faded")
    for run in reversed(runs):
        points = list(enumerate(found[run.name]))
        plot.line(points, run.color, "line thin")
        plot.dots(points, run.color)
    for at, rate in enumerate(observed):
        told = (f"{name} {values[at]:.3f}" for name, values in found.items())
        tips.append((at, [f"decile {at + 1}", f"click rate {rate:.3f}", *told]))
    plot.tell(tips)
    return Figure(
        "Clicks and mean predictions",
        "Bars are the click rate of each decile, dots the mean predictions: hard rows are those "
        "whose dots lie far from the top of the bar.",
        plot,
        [("clicks", "faded"), *run_legend(runs)],
    )


def _gain_by_decile(run: ReportedRun, base: ReportedRun, deciles: list) -> Figure:
    gain = decile_gain(run.y_true, run.y_pred, base.y_pred, deciles)
    names = [str(at + 1) for at in range(len(deciles))]
    plot = Plot(
        (-0.5, len(names) - 0.5),
        extent(gain.low, gain.high, [0.0]),
        _AXIS,
        "logloss saved",
        x_names=names,
    )
    for at, mean in enumerate(gain.mean):
        plot.bar((at - 0.3, at + 0.3), (0, mean), "good" if mean > 0 else "bad")
        plot.rule((at, gain.low[at]), (at, gain.high[at]), "error")
    plot.rule((-0.5, 0), (len(names) - 0.5, 0), "axis")
    plot.tell(
        (at, [f"decile {at + 1}", f"saves {signed(mean)}", f"95%: {signed(low)} to {signed(high)}"])
        for at, (mean, low, high) in enumerate(zip(gain.mean, gain.low, gain.high, strict=True))
    )
    title = f"Logloss saved by {run.name}"
    return Figure(
        title,
        f"Mean logloss of {base.name} minus its own, with 95% intervals: a bar above zero is a "
        "decile it predicts better.",
        plot,
    )
