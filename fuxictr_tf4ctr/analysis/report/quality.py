"""How good the predictions are: ranking, calibration, separation of the labels."""

from collections.abc import Mapping, Sequence

import numpy as np

from fuxictr_tf4ctr.analysis.report.curves import calibration_curve, roc_curve, shares
from fuxictr_tf4ctr.analysis.report.elements import count, number
from fuxictr_tf4ctr.analysis.report.parts import Figure, ReportedRun, Section, run_legend
from fuxictr_tf4ctr.analysis.report.plot import Plot, extent, root_ticks

_BINS = 40


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
        plot.render("ROC curve"),
        run_legend(runs),
    )


def roc_tips(curves: Mapping[str, np.ndarray]) -> list[tuple[float, str]]:
    """Tell the heights of ROC curves along x."""
    tips = []
    for x in np.linspace(0, 1, 41):
        heights = (f"{name} {_at(curve, x):.3f}" for name, curve in curves.items())
        tips.append((float(x), "\n".join([f"false positive rate {x:.3f}", *heights])))
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
        [
            (x, f"predicted {x:.4f}\nobserved {y:.4f}\n{count(n)} rows")
            for x, y, n in _apart(list(rows))
        ]
    )
    return Figure(
        "Calibration",
        "Click rates of twelve equal parts of the rows, with 95% intervals: on the dashed line "
        "a prediction of 0.3 means 3 clicks in 10; below it the model promises too many.",
        plot.render("Calibration"),
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
    middles = (edges[1:] + edges[:-1]) / 2
    plot.tell(
        [
            (
                x,
                "\n".join(
                    [f"prediction {left:.3f} to {right:.3f}"]
                    + [f"{name} {values[at]:.2%}" for name, (values, _) in by_label.items()]
                ),
            )
            for at, (x, left, right) in enumerate(zip(middles, edges, edges[1:], strict=False))
        ]
    )
    title = f"Scores by label: {run.name}"
    means = (number(float(run.y_pred[run.y_true == label].mean()), 3) for label in (0, 1))
    return Figure(
        title,
        "The less both outlines overlap, the better the labels are told apart; mean score {} "
        "without a click, {} with one (heights on a square-root scale).".format(*means),
        plot.render(title),
        [(name, color) for name, (_, color) in by_label.items()],
    )
