"""A sweep as one HTML page: how it went, which keys mattered, and what the best settings share."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_tf4ctr.analysis.report.page import Figure, Section, render_page, table, tiles
from fuxictr_tf4ctr.analysis.report.plot import (
    WIDTH,
    Axis,
    Plot,
    element,
    extent,
    number,
    shortened,
)
from fuxictr_tf4ctr.errors import DataError
from fuxictr_tf4ctr.runs.records import RunRecord, read_run
from fuxictr_tf4ctr.schema import is_number
from fuxictr_tf4ctr.sweep.folder import monitor_name, monitored, more_is_better, read_sweep

LOG = logging.getLogger(__name__)

# As many axes as can be told apart side by side, and rows of the table.
_AXES, _ROWS = 6, 10
# A forest's importances of fewer trials are noise.
_LEAST_TRIALS = 4


@dataclass(frozen=True)
class Trial:
    """A run of a sweep.

    Attributes:
        record: Its run.json.
        values: Key -> value of the keys in which the runs differ.
        value: What the sweep ranks by, on validation data: the final one of a finished run, else
            that of its best evaluation.
    """

    record: RunRecord
    values: Mapping[str, Any]
    value: float

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end, neither pruned nor cut off."""
        return self.record.status == "finished"


def sweep_page(folder: Path) -> str:
    """Return the page about a sweep.

    Args:
        folder: The folder of a sweep, of runs that are all done or not.

    Raises:
        DataError: It holds no sweep, or none of its runs was evaluated on validation data.
    """
    sweep, content = read_sweep(folder)
    records = [read_run(file.parent) for file in sweep.runs.glob("*/*/*/run.json")]
    records = sorted((r for r in records if r.evaluations), key=lambda record: record.started)
    if not records:
        raise DataError(f"{folder}: no run of this sweep has been evaluated yet")
    # A sweep of an earlier version does not say what it ranks by; its first run is the base's.
    settings = {**records[0].settings, **content.get("judged_by", {})}
    found = [(record, _value(settings, record)) for record in records]
    found = [(record, value) for record, value in found if value is not None]
    if not found:
        raise DataError(f"{folder}: its runs have no validation data to be ranked by")
    points = {point["expid"]: point["values"] for point in content["points"]}
    columns = {
        key: [points.get(r.expid, {}).get(key, r.settings.get(key)) for r, _ in found]
        for key in sorted({key for values in points.values() for key in values})
    }
    varied = {key: each for key, each in columns.items() if len(set(map(_written, each))) > 1}
    trials = [
        Trial(record, {key: each[at] for key, each in varied.items()}, value)
        for at, (record, value) in enumerate(found)
    ]
    importances = key_importances(trials)
    shown = sorted(varied, key=lambda key: -importances.get(key, 0.0))
    sections = [
        _history(trials, settings),
        _importance(importances),
        _parallel(trials, settings, shown),
    ]
    header = _header(sweep.name, trials, settings)
    return render_page(sweep.name, header, sections)


def key_importances(trials: Sequence[Trial]) -> dict[str, float]:
    """Return the share of each key in the spread of the finished trials' values, largest first.

    Source:
        Hutter, Hoos and Leyton-Brown, ICML 2014 (fANOVA), by Optuna's FanovaImportanceEvaluator.

    Returns:
        Key -> importance, 1 in all; empty where Optuna is not installed or there is too little.
    """
    done = [trial for trial in trials if trial.finished]
    if len(done) < _LEAST_TRIALS or len({trial.value for trial in done}) < 2 or not done[0].values:
        return {}
    try:
        import optuna
    except ImportError:
        LOG.warning("importance of keys needs Optuna: pip install 'fuxictr-tf4ctr[tune]'")
        return {}
    columns = {key: [trial.values[key] for trial in done] for key in done[0].values}
    axes = {key: _Column(column) for key, column in columns.items()}
    axes = {key: axis for key, axis in axes.items() if len(set(axis.places)) > 1}
    spaces = {key: axis.distribution(optuna.distributions) for key, axis in axes.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for at, trial in enumerate(done):
            params = {key: axis.suggested(at) for key, axis in axes.items()}
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=spaces, value=trial.value)
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


class _Column:
    """The values of one key: numbers where all are, else choices at whole places."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._numeric = all(map(is_number, values))
        self._log = self._numeric and min(values) > 0 and max(values) >= 50 * min(values)
        self._values = list(values) if self._numeric else list(map(_written, values))
        self._choices = sorted(set(self._values))
        self.places = [self._place(value) for value in self._values]

    def _place(self, value: Any) -> float:
        if not self._numeric:
            return float(self._choices.index(value))
        return float(np.log(value)) if self._log else float(value)

    def suggested(self, at: int) -> Any:
        """Return the value of a trial as Optuna takes it."""
        return self.places[at] if self._numeric else self._values[at]

    def distribution(self, distributions: Any) -> Any:
        """Return the space that Optuna would have drawn the values from."""
        if self._numeric:
            return distributions.FloatDistribution(min(self.places), max(self.places))
        return distributions.CategoricalDistribution(self._choices)

    def shares(self) -> list[float]:
        """Return where each value lies between the least (0) and the greatest (1)."""
        low, high = min(self.places), max(self.places)
        return [(place - low) / (high - low or 1) for place in self.places]

    def ends(self) -> tuple[str, str]:
        """Return the least and the greatest value in words."""
        return _written(self._choices[0]), _written(self._choices[-1])


def _value(settings: Mapping[str, Any], record: RunRecord) -> float | None:
    if record.status == "finished":
        return monitored(settings, record.valid)
    best = max if more_is_better(settings) else min
    found = [monitored(settings, each["metrics"]) for each in record.evaluations]
    return best((value for value in found if value is not None), default=None)


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _header(name: str, trials: Sequence[Trial], settings: Mapping[str, Any]) -> Any:
    best = _ranked(trials, settings)[0]
    done = sum(trial.finished for trial in trials)
    seconds = sum(trial.record.seconds.get("total", 0.0) for trial in trials)
    return element(
        "header",
        element("p", "Sweep report", class_="eyebrow"),
        element("h1", name),
        element("p", f"{settings['model']} on {settings['dataset_id']}.", class_="lead"),
        tiles(
            [
                (f"Best {monitor_name(settings)}", number(best.value, 5), best.record.expid),
                ("Runs", str(len(trials)), f"{done} trained to the end"),
                ("Run time", f"{seconds / 3600:.1f} h", "of all runs together"),
            ]
        ),
    )


def _ranked(trials: Sequence[Trial], settings: Mapping[str, Any]) -> list[Trial]:
    """Sort the finished trials, or all where none is, the best first."""
    found = [trial for trial in trials if trial.finished] or list(trials)
    return sorted(found, key=lambda trial: trial.value, reverse=more_is_better(settings))


def _history(trials: Sequence[Trial], settings: Mapping[str, Any]) -> Section:
    values = [trial.value for trial in trials]
    name = monitor_name(settings)
    plot = Plot(Axis(0.5, len(trials) + 0.5, "run"), Axis(*extent(values), name))
    best = np.maximum if more_is_better(settings) else np.minimum
    plot.line(list(enumerate(best.accumulate(values).tolist(), 1)), "run1")
    for finished, color in ((False, "quiet"), (True, "run1")):
        plot.dots([(n, t.value) for n, t in enumerate(trials, 1) if t.finished is finished], color)
    plot.tell(
        (n, [f"{t.record.expid}: {number(t.value, 5)}{'' if t.finished else ', not finished'}"])
        for n, t in enumerate(trials, 1)
    )
    rows = [
        [t.record.expid, number(t.value, 5), *map(_written, t.values.values())]
        for t in _ranked(trials, settings)[:_ROWS]
    ]
    return Section(
        "history",
        "How the sweep went",
        f"The {name} of each run on the validation data, in the order they were started, and the "
        "best so far. The best of many is luck in part: repeat the first few under more seeds.",
        [
            Figure(
                "History",
                "A line that is level for long says that more runs would gain little.",
                plot,
                [("finished", "run1"), ("pruned or cut off: best evaluation", "quiet")],
            )
        ],
        [table(["run", name, *trials[0].values], rows)],
    )


def _importance(importances: Mapping[str, float]) -> Section | None:
    if not importances:
        return None
    names = list(importances)[::-1]
    shares = [importances[name] for name in names]
    plot = Plot(
        Axis(0, max(1e-9, max(shares)) * 1.05, "share of the spread"),
        Axis.of(names, margin=0.6),
        70 + 24 * len(names),
        14 + 6.2 * max(map(len, names)),
    )
    for at, share in enumerate(shares):
        plot.bar((0, share), (at - 0.3, at + 0.3), "run1")
    plot.tell_rows([f"{n}: {s:.1%}"] for n, s in zip(names, shares, strict=True))
    return Section(
        "importance",
        "Which keys mattered",
        "The share of each key in the spread of the finished runs' values, by fANOVA: what a "
        "random forest makes of them. Of few runs, or of runs that a search drew where it expected "
        "good ones, it is rough.",
        [Figure("Importance", "Keys at the bottom may be left alone.", plot)],
    )


def _parallel(
    trials: Sequence[Trial], settings: Mapping[str, Any], keys: Sequence[str]
) -> Section | None:
    if not keys:
        return None
    name, keys = monitor_name(settings), keys[:_AXES]
    ranked = _ranked(trials, settings)[::-1]
    axes = [_Column([trial.values[key] for trial in ranked]) for key in keys]
    axes.append(_Column([trial.value for trial in ranked]))
    names = [*keys, name]
    room = int((WIDTH - 54) / len(keys) / 6)  # a letter is about six pixels wide
    written = [shortened(each, room) for each in names]
    plot = Plot(Axis(0, len(keys), names=written), Axis(-0.09, 1.09, names=[]), 300)
    columns = [axis.shares() for axis in axes]
    best = max(1, len(ranked) // 10)
    for at in range(len(ranked)):
        is_best = at >= len(ranked) - best
        points = [(place, column[at]) for place, column in enumerate(columns)]
        plot.line(points, "run1" if is_best else "quiet", "line" if is_best else "line thin")
    for place, axis in enumerate(axes):
        plot.rule((place, 0), (place, 1))
        anchor = "end" if place == len(axes) - 1 else "start" if place == 0 else "middle"
        for y, text in zip((-0.08, 1.04), axis.ends(), strict=True):
            plot.note(place, y, shortened(text, room), anchor)
    ends = (axis.ends() for axis in axes)
    plot.tell((at, [f"{names[at]}: {low} to {high}"]) for at, (low, high) in enumerate(ends))
    return Section(
        "parallel",
        "What the best runs share",
        f"A line for each run through its values, least to greatest from the bottom up, to its "
        f"{name}; texts in alphabetical order.",
        [
            Figure(
                "Parallel coordinates",
                "Where the marked lines meet on an axis, the sweep has found a value.",
                plot,
                [(f"the best {best}", "run1"), ("all others", "quiet")],
            )
        ],
    )
