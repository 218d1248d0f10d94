"""How the runs learned: loss terms, metrics and the twin's weights over the epochs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fuxictr_tf4ctr.analysis.report.page import Figure, ReportedRun, Section, run_legend
from fuxictr_tf4ctr.analysis.report.plot import Axis, Plot, Point, extent, number
from fuxictr_tf4ctr.metrics.definitions import STREAMS

_TERMS = {
    "bce": ("final prediction", "run1"),
    "simple": ("simple encoder", "simple"),
    "complex": ("complex encoder", "complex"),
    "regularization": ("regularization", "quiet"),
}
# More bands than this are too narrow to hit.
_BANDS = 60

Value = Callable[[Mapping[str, Any]], float | None]


def learning_section(runs: Sequence[ReportedRun]) -> Section | None:
    """Draw the evaluations during training; None where no run recorded any."""
    runs = [run for run in runs if run.record.evaluations]
    if not runs:
        return None
    evaluations = [each for run in runs for each in run.record.evaluations]
    figures = [
        _over_epochs(
            f"Validation {name}",
            "Look for the point from which one curve stays ahead, and for a fall after the ring: "
            "that is overfitting, which early stopping cut short.",
            runs,
            lambda each, name=name: each["metrics"].get(name),
        )
        for name in dict.fromkeys(name for each in evaluations for name in each["metrics"])
    ]
    figures.append(
        _over_epochs(
            "Training loss",
            "The whole loss, averaged since the last evaluation; a twin's holds the Twin Focus "
            "Loss on top, so compare the shapes of the curves, not their heights.",
            runs,
            lambda each: each["train_loss"],
        )
    )
    if len({each["learning_rate"] for each in evaluations}) > 1:
        figures.append(
            _over_epochs(
                "Learning rate, as a power of ten",
                "Each step down follows an evaluation that got no better: a metric that only rises "
                "after a step may have started with too high a rate.",
                runs,
                lambda each: math.log10(each["learning_rate"]) if each["learning_rate"] else None,
            )
        )
    return Section(
        "learning",
        "Learning",
        "What each evaluation during training found. The ringed point is the checkpoint that was "
        "kept, and that everything below was drawn with.",
        [*figures, *_loss_terms(runs[0]), *_twin_values(runs[0])],
    )


def epochs(run: ReportedRun) -> list[float]:
    """Return when each evaluation took place, in epochs."""
    rows, batch = run.record.data["rows"]["train"], run.record.settings["batch_size"]
    steps_per_epoch = -(-rows // batch)
    return [each["step"] / steps_per_epoch for each in run.record.evaluations]


def _over_epochs(title: str, caption: str, runs: Sequence[ReportedRun], value: Value) -> Figure:
    series = {run.name: _points(run, value) for run in runs}
    plot = _epoch_plot(series)
    for run in reversed(runs):
        points = series[run.name]
        plot.line(points, run.color)
        kept = zip(points, run.record.evaluations, strict=True)
        best = [point for point, each in kept if each.get("best")]
        plot.dots(best[-1:], f"{run.color} ring", 4.0)
    subject = runs[0]
    tips = []
    for (x, y), each in zip(series[subject.name], subject.record.evaluations, strict=True):
        rate = "–" if each["learning_rate"] is None else f"{each['learning_rate']:.2g}"
        tips.append((x, [f"epoch {x:.3g}", f"{title} {number(y, 5)}", f"learning rate {rate}"]))
    plot.tell(_thinned(tips))
    return Figure(title, caption, plot, run_legend(runs))


def _loss_terms(run: ReportedRun) -> list[Figure]:
    terms = _recorded(run, "losses")
    if not terms:
        return []
    return [
        _figure(
            "Loss by term",
            f"The parts of {run.name}'s training loss: look for an encoder whose term stops "
            "falling early, it learns no more from the samples it is given.",
            [(*_TERMS.get(name, (name, "quiet")), points) for name, points in terms.items()],
        )
    ]


def _twin_values(run: ReportedRun) -> list[Figure]:
    """Draw what was recorded of gates and fusion, values of one kind in one figure."""
    kinds: dict[str, list[tuple[str, str, list[Point]]]] = {}
    for name, points in _recorded(run, "twin").items():
        values = kinds.setdefault(name.split("_")[0], [])
        color = next((role for role in STREAMS if role in name), f"run{len(values) % 6 + 1}")
        values.append((name.replace("_", " "), color, points))
    return [
        _figure(
            f"{kind.capitalize()} over training",
            f"Means over the last batches before each evaluation of {run.name}: look for an "
            "encoder that is faded out, and for values that still drift when training ends.",
            values,
        )
        for kind, values in kinds.items()
    ]


def _recorded(run: ReportedRun, entry: str) -> dict[str, list[Point]]:
    """Return the points of each name that evaluations hold under an entry, if they hold it."""
    names = dict.fromkeys(name for each in run.record.evaluations for name in each.get(entry) or {})
    return {
        name: _points(run, lambda each, name=name: (each.get(entry) or {}).get(name))
        for name in names
    }


def _figure(title: str, caption: str, lines: Sequence[tuple[str, str, list[Point]]]) -> Figure:
    """Draw lines over the epochs, each with a name and a color."""
    series = {name: points for name, _, points in lines}
    plot = _epoch_plot(series)
    for _, color, points in lines:
        plot.line(points, color)
    heads = _thinned([(x, f"epoch {x:.3g}") for x, _ in lines[0][2]])
    values = {name: _thinned([y for _, y in points]) for name, points in series.items()}
    plot.tell_series(heads, values, number)
    return Figure(title, caption, plot, [(name, color) for name, color, _ in lines])


def _points(run: ReportedRun, value: Value) -> list[Point]:
    values = [value(each) for each in run.record.evaluations]
    return [(x, float("nan") if y is None else y) for x, y in zip(epochs(run), values, strict=True)]


def _epoch_plot(series: Mapping[str, Sequence[Point]]) -> Plot:
    places, heights = zip(*(point for points in series.values() for point in points), strict=True)
    first, last = min(places), max(places)
    low = 0.0 if first < 1 or first == last else first - 0.04 * (last - first)
    return Plot(Axis(low, last, "epoch"), Axis(*extent(heights)))


def _thinned(entries: list[Any]) -> list[Any]:
    return entries[:: -(-len(entries) // _BANDS)]
