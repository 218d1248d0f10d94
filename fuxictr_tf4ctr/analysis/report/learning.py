"""How the runs learned: loss terms, metrics and the twin's weights over the epochs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fuxictr_tf4ctr.analysis.report.page import Figure, ReportedRun, Section, run_legend
from fuxictr_tf4ctr.analysis.report.plot import Plot, Point, extent, number

_TERMS = {
    "bce": ("final prediction", "run1"),
    "simple": ("simple encoder", "simple"),
    "complex": ("complex encoder", "complex"),
    "regularization": ("regularization", "quiet"),
}
# More bands than this are too narrow to hit.
_BANDS = 60

Value = Callable[[Mapping[str, Any]], float | None]
Tip = tuple[float, list[str]]


def learning_section(runs: Sequence[ReportedRun]) -> Section | None:
    """Draw the evaluations during training; None where no run recorded any."""
    runs = [run for run in runs if run.record.evaluations]
    if not runs:
        return None
    subject = runs[0]
    figures = [_metric(name, runs) for name in _metric_names(runs)]
    figures += [_training_loss(runs), *_learning_rate(runs)]
    figures += [*_loss_terms(subject), *_twin_values(subject)]
    return Section(
        "learning",
        "Learning",
        "What each evaluation during training found. The ringed point is the checkpoint that was "
        "kept, and that everything below was drawn with.",
        figures,
    )


def epochs(run: ReportedRun) -> list[float]:
    """Return when each evaluation took place, in epochs."""
    rows, batch = run.record.data["rows"]["train"], run.record.settings["batch_size"]
    steps_per_epoch = -(-rows // batch)
    return [each["step"] / steps_per_epoch for each in run.record.evaluations]


def _metric_names(runs: Sequence[ReportedRun]) -> list[str]:
    return list(
        dict.fromkeys(
            name for run in runs for each in run.record.evaluations for name in each["metrics"]
        )
    )


def _metric(name: str, runs: Sequence[ReportedRun]) -> Figure:
    return _over_epochs(
        f"Validation {name}",
        "Look for the point from which one curve stays ahead, and for a fall after the ring: that "
        "is overfitting, which early stopping cut short.",
        runs,
        lambda each: each["metrics"].get(name),
    )


def _training_loss(runs: Sequence[ReportedRun]) -> Figure:
    return _over_epochs(
        "Training loss",
        "The whole loss, averaged since the last evaluation; a twin's holds the Twin Focus Loss "
        "on top, so compare the shapes of the curves, not their heights.",
        runs,
        lambda each: each["train_loss"],
    )


def _learning_rate(runs: Sequence[ReportedRun]) -> list[Figure]:
    """Draw the learning rate where it changed at all."""
    if len({each["learning_rate"] for run in runs for each in run.record.evaluations}) == 1:
        return []
    figure = _over_epochs(
        "Learning rate, as a power of ten",
        "Each step down follows an evaluation that got no better: a metric that only rises after a "
        "step may have started with too high a rate.",
        runs,
        lambda each: math.log10(each["learning_rate"]),
    )
    return [figure]


def _over_epochs(title: str, caption: str, runs: Sequence[ReportedRun], value: Value) -> Figure:
    series = {run.name: _points(run, value) for run in runs}
    plot = _epoch_plot([point for points in series.values() for point in points])
    for run in reversed(runs):
        points = series[run.name]
        plot.line(points, run.color)
        _mark_best(plot, run, points)
    subject = runs[0]
    tips = []
    for at, (x, y) in enumerate(series[subject.name]):
        rate = subject.record.evaluations[at]["learning_rate"]
        told = [f"epoch {x:.3g}", f"{title} {number(y, 5)}", f"learning rate {rate:.2g}"]
        tips.append((x, told))
    plot.tell(_thinned(tips))
    return Figure(title, caption, plot, run_legend(runs))


def _points(run: ReportedRun, value: Value) -> list[Point]:
    values = [value(each) for each in run.record.evaluations]
    return [(x, float("nan") if y is None else y) for x, y in zip(epochs(run), values, strict=True)]


def _epoch_plot(points: Sequence[Point], **options: Any) -> Plot:
    last = max(x for x, _ in points)
    first = min(x for x, _ in points)
    low = 0.0 if first < 1 or first == last else first - 0.04 * (last - first)
    return Plot((low, last), extent((y for _, y in points)), "epoch", **options)


def _mark_best(plot: Plot, run: ReportedRun, points: Sequence[Point]) -> None:
    best = [
        point
        for point, each in zip(points, run.record.evaluations, strict=True)
        if each.get("best")
    ]
    if best:
        plot.dots(best[-1:], f"{run.color} ring", 4.0)


def _loss_terms(run: ReportedRun) -> list[Figure]:
    terms = _recorded(run, "losses")
    if not terms:
        return []
    named = {name: _TERMS.get(name, (name, "quiet")) for name in terms}
    plot = _epoch_plot([point for points in terms.values() for point in points])
    for name, points in terms.items():
        plot.line(points, named[name][1])
    plot.tell(_thinned(_tips(terms, {name: text for name, (text, _) in named.items()})))
    return [
        Figure(
            "Loss by term",
            f"The parts of {run.name}'s training loss: look for an encoder whose term stops "
            "falling early, it learns no more from the samples it is given.",
            plot,
            list(named.values()),
        )
    ]


def _twin_values(run: ReportedRun) -> list[Figure]:
    """Draw what was recorded of gates and fusion, values of one kind in one figure."""
    recorded = _recorded(run, "twin")
    kinds: dict[str, dict[str, list[Point]]] = {}
    for name, points in recorded.items():
        kinds.setdefault(name.split("_")[0], {})[name] = points
    return [_twin_figure(run, kind, values) for kind, values in kinds.items()]


def _twin_figure(run: ReportedRun, kind: str, values: Mapping[str, list[Point]]) -> Figure:
    title = f"{kind.capitalize()} over training"
    plot = _epoch_plot([point for points in values.values() for point in points])
    legend = []
    for at, (name, points) in enumerate(values.items()):
        color = next((role for role in ("simple", "complex") if role in name), f"run{at % 6 + 1}")
        plot.line(points, color)
        legend.append((name.replace("_", " "), color))
    plot.tell(_thinned(_tips(values, {name: name.replace("_", " ") for name in values})))
    return Figure(
        title,
        f"Means over the last batches before each evaluation of {run.name}: look for an encoder "
        "that is faded out, and for values that still drift when training ends.",
        plot,
        legend,
    )


def _recorded(run: ReportedRun, entry: str) -> dict[str, list[Point]]:
    """Return the points of each name that evaluations hold under an entry, if they hold it."""
    names = dict.fromkeys(name for each in run.record.evaluations for name in each.get(entry) or {})
    return {
        name: _points(run, lambda each, name=name: (each.get(entry) or {}).get(name))
        for name in names
    }


def _tips(series: Mapping[str, list[Point]], names: Mapping[str, str]) -> list[Tip]:
    tips = []
    for points in zip(*series.values(), strict=True):
        told = (f"{names[name]} {number(y)}" for name, (_, y) in zip(series, points, strict=True))
        tips.append((points[0][0], [f"epoch {points[0][0]:.3g}", *told]))
    return tips


def _thinned(tips: Sequence[Tip]) -> Sequence[Tip]:
    return tips[:: max(1, -(-len(tips) // _BANDS))]
