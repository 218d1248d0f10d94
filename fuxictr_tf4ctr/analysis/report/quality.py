"""How good the predictions are: ranking, calibration, labels apart, easy and hard samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fuxictr_tf4ctr.analysis.report.page import Figure, ReportedRun, Section, run_legend
from fuxictr_tf4ctr.analysis.report.plot import Axis, Plot, count, extent, number, signed
from fuxictr_tf4ctr.metrics.definitions import Ranking, auc, cross_entropy, truth_probability
from fuxictr_tf4ctr.metrics.significance import Interval, Z

# The bins of histograms of what lies in [0, 1].
EDGES = np.linspace(0, 1, 41)
MIDDLES = (EDGES[1:] + EDGES[:-1]) / 2


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


def decile_gain(
    y_true: np.ndarray, y_pred: np.ndarray, base: np.ndarray, deciles: list[np.ndarray]
) -> list[Interval]:
    """Return the mean logloss that ``y_pred`` saves against ``base`` in each decile."""
    saved = cross_entropy(y_true, base) - cross_entropy(y_true, y_pred)
    return [Interval.of_mean(saved[rows]) for rows in deciles]


def agreement(
    y_true: np.ndarray, y_simple: np.ndarray, y_complex: np.ndarray, bins: int = 14
) -> tuple[np.ndarray, np.ndarray]:
    """Count rows by the probabilities of both encoders, and how often the complex one is nearer.

    Returns:
        [bins, bins] rows, simple downwards, complex rightwards; and the share of them to which the
        complex encoder comes nearer to the label, NaN where there is none.
    """
    edges = np.linspace(0, 1, bins + 1)
    nearer = complex_nearer(y_true, y_simple, y_complex)
    rows, _, _ = np.histogram2d(y_simple, y_complex, (edges, edges))
    wins, _, _ = np.histogram2d(y_simple, y_complex, (edges, edges), weights=nearer)
    return rows, np.divide(wins, rows, out=np.full(rows.shape, np.nan), where=rows > 0)


def complex_nearer(y_true: np.ndarray, y_simple: np.ndarray, y_complex: np.ndarray) -> np.ndarray:
    """Return 1 where the complex encoder comes nearer to the label, 0 where not, 1/2 if equal."""
    gain = truth_probability(y_true, y_complex) - truth_probability(y_true, y_simple)
    return (1 + np.sign(gain)) / 2


_AXIS = "decile: 1 hardest, 10 easiest for the base model"


def quality_section(runs: Sequence[ReportedRun]) -> Section:
    """Draw what the runs predict for the test rows."""
    run = runs[0]
    by_label, legend = shares_by_label(run, run.y_pred)
    heights = {name: np.sqrt(values) for name, values in by_label.items()}
    y = Axis.root(max(map(np.max, heights.values())), "share of rows")
    plot = Plot(Axis(0, 1, "predicted probability"), y, 300)
    for name, color in legend:
        plot.steps(EDGES, heights[name], color)
    bins = zip(MIDDLES, EDGES, EDGES[1:], strict=False)
    heads = ((x, f"prediction {low:.3f} to {high:.3f}") for x, low, high in bins)
    plot.tell_series(heads, by_label, "{:.2%}".format)
    means = (number(float(run.y_pred[run.y_true == label].mean()), 3) for label in (0, 1))
    histogram = Figure(
        f"Scores by label: {run.name}",
        "The less both outlines overlap, the better the labels are told apart; mean score {} "
        "without a click, {} with one (heights on a square-root scale).".format(*means),
        plot,
        legend,
    )
    plot = roc_plot(run.y_true, {run.name: (run.y_pred, run.color) for run in runs}, 300, True)
    roc = Figure(
        "ROC curve",
        "The share of clicks found against the share of false alarms: the closer to the upper left "
        "corner, the better; the dashed line is a coin toss.",
        plot,
        run_legend(runs),
    )
    return Section(
        "predictions",
        "Predictions",
        f"All of it on the {count(len(run.y_true))} test rows, of which "
        f"{run.y_true.mean():.1%} are clicks.",
        [roc, _calibration(runs), histogram],
    )


def roc_plot(
    y_true: np.ndarray,
    scores: Mapping[str, tuple[np.ndarray, str]],
    height: float,
    filled: bool = False,
) -> Plot:
    """Draw ROC curves.

    Args:
        y_true: [N] labels.
        scores: What a curve is called -> its [N] scores and its color; the first lies on top.
        height: Height of the drawing.
        filled: Whether to fill what lies below the first.
    """
    plot = Plot(Axis(0, 1, "false positive rate"), Axis(0, 1, "true positive rate"), height)
    plot.rule((0, 0), (1, 1), "rule dashed")
    curves = {name: roc_curve(y_true, y_pred) for name, (y_pred, _) in scores.items()}
    if filled:
        name, (_, color) = next(iter(scores.items()))
        plot.area([tuple(point) for point in curves[name]], color)
    for name, (_, color) in reversed(scores.items()):
        plot.line(curves[name], color)
    places = np.linspace(0, 1, 41)
    # The upper end where a curve is upright.
    heights = {
        name: [curve[curve[:, 0] <= x, 1].max() for x in places] for name, curve in curves.items()
    }
    heads = ((float(x), f"false positive rate {x:.3f}") for x in places)
    plot.tell_series(heads, heights, "{:.3f}".format)
    return plot


def _calibration(runs: Sequence[ReportedRun]) -> Figure:
    curves = [calibration_curve(run.y_true, run.y_pred) for run in runs]
    top = min(1.0, 1.06 * max(max(each.predicted.max(), each.observed.max()) for each in curves))
    plot = Plot(Axis(0.0, top, "mean prediction"), Axis(0.0, top, "click rate"), 300)
    plot.rule((0, 0), (top, top), "rule dashed")
    for run, curve in reversed(list(zip(runs, curves, strict=True))):
        for x, low, high in zip(curve.predicted, curve.low, curve.high, strict=True):
            plot.whisker((x, low), (x, min(high, top)), run.color)
        points = zip(curve.predicted, curve.observed, strict=True)
        plot.dotted(points, run.color, "line thin")
    first = curves[0]
    _, apart = np.unique(first.predicted, return_index=True)
    plot.tell(
        (x, [f"predicted {x:.4f}", f"observed {y:.4f}", f"{count(rows)} rows"])
        for x, y, rows in np.column_stack([first.predicted, first.observed, first.rows])[apart]
    )
    return Figure(
        "Calibration",
        "Click rates of twelve equal parts of the rows, with 95% intervals: on the dashed line "
        "a prediction of 0.3 means 3 clicks in 10; below it the model promises too many.",
        plot,
        run_legend(runs),
    )


def shares_by_label(
    run: ReportedRun, values: np.ndarray
) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    """Return how [N] values of rows spread over the bins, for each label; and a legend."""
    found = {
        name: shares(values[run.y_true == label], EDGES)
        for label, name in enumerate(("no click", "click"))
    }
    return found, [("no click", "quiet"), ("click", "click")]


def decile_plot(deciles: Sequence[np.ndarray], y: Axis, label: str = _AXIS) -> Plot:
    """Begin a plot over deciles, from the hardest to the easiest, at x = 0, 1, …."""
    return Plot(Axis.of([str(at + 1) for at in range(len(deciles))], label), y)


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


def _auc_by_decile(runs: Sequence[ReportedRun], deciles: list[np.ndarray]) -> Figure:
    found = {
        run.name: [auc(run.y_true[rows], run.y_pred[rows]) for rows in deciles] for run in runs
    }
    bounds = extent(*found.values(), include=[0.0, 1.0])
    plot = decile_plot(deciles, Axis(*bounds, "AUC within the decile"))
    plot.rule((-0.5, 0.5), (len(deciles) - 0.5, 0.5), "rule dashed")
    for run in reversed(runs):
        plot.dotted(enumerate(found[run.name]), run.color)
    plot.tell_series(((at, f"decile {at + 1}") for at in range(len(deciles))), found, number)
    return Figure(
        "AUC by difficulty",
        "Only the hard end tells: where the base model is right about all rows of a decile, its "
        "AUC is 1 by construction. Look for a run that lifts the left end.",
        plot,
        run_legend(runs),
    )


def _click_rate(runs: Sequence[ReportedRun], deciles: list[np.ndarray]) -> Figure:
    observed = [float(runs[0].y_true[rows].mean()) for rows in deciles]
    found = {run.name: [float(run.y_pred[rows].mean()) for rows in deciles] for run in runs}
    bounds = extent(observed, *found.values(), include=[0.0])
    plot = decile_plot(deciles, Axis(*bounds, "click rate"))
    for at, rate in enumerate(observed):
        plot.bar((at - 0.36, at + 0.36), (0, rate), "faded")
    for run in reversed(runs):
        plot.dotted(enumerate(found[run.name]), run.color, "line thin")
    heads = ((at, f"decile {at + 1}") for at in range(len(deciles)))
    plot.tell_series(heads, {"click rate": observed, **found}, "{:.3f}".format)
    return Figure(
        "Clicks and mean predictions",
        "Bars are the click rate of each decile, dots the mean predictions: hard rows are those "
        "whose dots lie far from the top of the bar.",
        plot,
        [("clicks", "faded"), *run_legend(runs)],
    )


def _gain_by_decile(run: ReportedRun, base: ReportedRun, deciles: list[np.ndarray]) -> Figure:
    gains = decile_gain(run.y_true, run.y_pred, base.y_pred, deciles)
    bounds = extent((each.low for each in gains), (each.high for each in gains), [0.0])
    plot = decile_plot(deciles, Axis(*bounds, "logloss saved"))
    for at, gain in enumerate(gains):
        plot.bar((at - 0.3, at + 0.3), (0, gain.value), "good" if gain.value > 0 else "bad")
        plot.rule((at, gain.low), (at, gain.high), "error")
    plot.rule((-0.5, 0), (len(deciles) - 0.5, 0), "axis")
    plot.tell(
        (
            at,
            [
                f"decile {at + 1}",
                f"saves {signed(g.value)}",
                f"95%: {signed(g.low)} to {signed(g.high)}",
            ],
        )
        for at, g in enumerate(gains)
    )
    return Figure(
        f"Logloss saved by {run.name}",
        f"Mean logloss of {base.name} minus its own, with 95% intervals: a bar above zero is a "
        "decile it predicts better.",
        plot,
    )
