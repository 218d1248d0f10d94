"""Where runs win and lose against a base model: by the difficulty of the samples for it."""

from collections.abc import Sequence

from fuxictr_tf4ctr.analysis.report.curves import (
    decile_auc,
    decile_gain,
    difficulty_deciles,
)
from fuxictr_tf4ctr.analysis.report.elements import number, signed
from fuxictr_tf4ctr.analysis.report.parts import Figure, ReportedRun, Section, run_legend
from fuxictr_tf4ctr.analysis.report.plot import Plot, extent
from fuxictr_tf4ctr.metrics.definitions import truth_probability

_AXIS = "decile: 1 hardest, 10 easiest for the base model"


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
            _auc(runs, deciles),
            *(_gain(run, base, deciles) for run in others),
            _click_rate(runs, deciles),
        ],
    )


def _auc(runs: Sequence[ReportedRun], deciles: list) -> Figure:
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
        [
            (
                at,
                "\n".join(
                    [f"decile {at + 1}"]
                    + [f"{name} {number(float(values[at]))}" for name, values in found.items()]
                ),
            )
            for at in range(len(deciles))
        ]
    )
    return Figure(
        "AUC by difficulty",
        "Only the hard end tells: where the base model is right about all rows of a decile, its "
        "AUC is 1 by construction. Look for a run that lifts the left end.",
        plot.render("AUC by difficulty"),
        run_legend(runs),
    )


def _click_rate(runs: Sequence[ReportedRun], deciles: list) -> Figure:
    observed = [float(runs[0].y_true[rows].mean()) for rows in deciles]
    found = {run.name: [float(run.y_pred[rows].mean()) for rows in deciles] for run in runs}
    names = [str(at + 1) for at in range(len(deciles))]
    bounds = extent(observed, *found.values(), include=[0.0])
    plot = Plot((-0.5, len(names) - 0.5), bounds, _AXIS, "click rate", x_names=names)
    for at, rate in enumerate(observed):
        plot.bar((at - 0.36, at + 0.36), (0, rate), "faded")
    for run in reversed(runs):
        points = list(enumerate(found[run.name]))
        plot.line(points, run.color, "line thin")
        plot.dots(points, run.color)
    plot.tell(
        [
            (
                at,
                "\n".join(
                    [f"decile {at + 1}", f"click rate {rate:.3f}"]
                    + [f"{name} {values[at]:.3f}" for name, values in found.items()]
                ),
            )
            for at, rate in enumerate(observed)
        ]
    )
    return Figure(
        "Clicks and mean predictions",
        "Bars are the click rate of each decile, dots the mean predictions: hard rows are those "
        "whose dots lie far from the top of the bar.",
        plot.render("Clicks and mean predictions"),
        [("clicks", "faded"), *run_legend(runs)],
    )


def _gain(run: ReportedRun, base: ReportedRun, deciles: list) -> Figure:
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
        [
            (
                at,
                f"decile {at + 1}\nsaves {signed(mean)}\n95%: {signed(low)} to {signed(high)}",
            )
            for at, (mean, low, high) in enumerate(zip(gain.mean, gain.low, gain.high, strict=True))
        ]
    )
    title = f"Logloss saved by {run.name}"
    return Figure(
        title,
        f"Mean logloss of {base.name} minus its own, with 95% intervals: a bar above zero is a "
        "decile it predicts better.",
        plot.render(title),
    )
