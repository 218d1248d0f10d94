"""What the runs are and how they compare: settings, main figures, intervals, speed and size."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fuxictr_tf4ctr.analysis.compare import Comparison
from fuxictr_tf4ctr.analysis.report.page import ReportedRun, Section, dot, named, table, tiles
from fuxictr_tf4ctr.analysis.report.plot import (
    Markup,
    Scale,
    count,
    duration,
    element,
    joined,
    number,
    signed,
)
from fuxictr_tf4ctr.metrics.significance import Interval, PairedIntervals
from fuxictr_tf4ctr.schema import REQUIRED
from fuxictr_tf4ctr.settings.keys import DATASET_KEYS, KEYS

_LESS_IS_BETTER = {"logloss", "ece"}
_BAR = 150


def versus_section(
    runs: Sequence[ReportedRun], comparisons: Sequence[Comparison]
) -> Section | None:
    """Compare the first run with each of the others; None for a single run.

    Args:
        runs: All runs.
        comparisons: One for each run after the first; its run A is that run, its run B the first.
    """
    if not comparisons:
        return None
    subject = runs[0]
    pairs = list(zip(runs[1:], comparisons, strict=True))
    return Section(
        "comparison",
        "Side by side",
        f"{subject.name} against {_listed([run.name for run in runs[1:]])}, on the same "
        f"{count(comparisons[0].rows)} test rows. Intervals of 95% come from "
        f"{count(comparisons[0].resamples)} resamples that draw the same rows for both "
        "runs; they do not cover the spread between seeds.",
        blocks=[_differences(subject, pairs), _costs(runs, comparisons)],
    )


def verdict(metric: str, difference: Interval) -> str:
    """Say whether a difference is "better", "worse" or neither, by its interval."""
    if difference.low <= 0 <= difference.high:
        return "even"
    return "better" if (difference.low > 0) != (metric in _LESS_IS_BETTER) else "worse"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _differences(subject: ReportedRun, pairs: Sequence[tuple[ReportedRun, Comparison]]) -> Markup:
    rows = []
    for other, comparison in pairs:
        for metric, intervals in comparison.metrics.items():
            rows.append(_difference_row(other, metric, intervals, comparison))
    header = ("against", "metric", "difference", "", "verdict", subject.name, "other")
    return table(header, rows)


def _difference_row(
    other: ReportedRun, metric: str, intervals: PairedIntervals, comparison: Comparison
) -> list[str | Markup]:
    outcome = verdict(metric, intervals.difference)
    said = {"better": "better", "worse": "worse", "even": "no clear difference"}[outcome]
    if metric == "AUC":
        said += f", DeLong p {_p(comparison.delong.p_value)}"
    return [
        named(other),
        metric,
        _with_bounds(intervals.difference, signed),
        _interval_drawing(intervals.difference, outcome),
        element("span", said, class_=f"verdict {outcome}"),
        _with_bounds(intervals.second, number),
        _with_bounds(intervals.first, number),
    ]


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


def _with_bounds(interval: Interval, write: Callable[[float, int], str]) -> Markup:
    bounds = f"{write(interval.low, 5)} to {write(interval.high, 5)}"
    return joined(write(interval.value, 5), element("small", bounds))


def _interval_drawing(interval: Interval, outcome: str) -> Markup:
    """Draw an interval about zero, which is in the middle."""
    reach = 1.08 * max(abs(interval.low), abs(interval.high), 1e-12)
    x = Scale(-reach, reach, 4, _BAR - 4)
    color = {"better": "good", "worse": "bad", "even": "quiet"}[outcome]
    return element(
        "svg",
        element("path", d=f"M{_BAR / 2:g} 2V22", class_="rule"),
        element(
            "path",
            d=f"M{x(interval.low):.1f} 12H{x(interval.high):.1f}",
            class_=f"whisker c-{color}",
        ),
        element("circle", cx=x(interval.value), cy=12, r=4.0, class_=f"dot c-{color}"),
        viewBox=f"0 0 {_BAR} 24",
        width=_BAR,
        height=24,
        aria_hidden="true",
    )


def _costs(runs: Sequence[ReportedRun], comparisons: Sequence[Comparison]) -> Markup:
    costs = [comparisons[0].costs[1], *(comparison.costs[0] for comparison in comparisons)]
    rows = [
        (
            named(run),
            count(cost.parameters),
            duration(cost.train_seconds),
            count(cost.train_rows_per_second),
            count(cost.score_rows_per_second),
            str(run.record.settings["seed"]),
            _started(run),
        )
        for run, cost in zip(runs, costs, strict=True)
    ]
    header = (
        "run",
        "parameters",
        "training",
        "rows/s in training",
        "rows/s scored here",
        "seed",
        "started",
    )
    return table(header, rows)


def _started(run: ReportedRun) -> str:
    return run.record.started[:16].replace("T", " ")


_TILE_METRICS = ("AUC", "logloss", "gAUC")


def page_header(runs: Sequence[ReportedRun], comparisons: Sequence[Comparison]) -> Markup:
    """Make the head of the page from its first run, measured against the second."""
    run = runs[0]
    words = element(
        "div",
        element("p", "Run report", class_="eyebrow"),
        element("h1", run.record.expid),
        element("p", _described(run), class_="lead"),
        element("p", _in_brief(runs, comparisons), class_="brief"),
    )
    return element(
        "header",
        element("div", words, _blueprint(run), class_="hero"),
        tiles(_tiles(run, runs, comparisons)),
    )


def _described(run: ReportedRun) -> str:
    record, params = run.record, run.params
    rows = record.data["rows"]
    kind = f"{record.settings['model']} on {record.settings['dataset_id']}"
    if run.is_two_stream and not params["twin_focus"]:
        kind += ", as a base model without the Twin Focus Loss"
    splits = ", ".join(f"{count(rows[s])} {s}" for s in ("train", "valid", "test") if rows.get(s))
    return f"{kind}: {splits} rows. Started {record.started[:16].replace('T', ' ')} UTC."


def _in_brief(runs: Sequence[ReportedRun], comparisons: Sequence[Comparison]) -> str:
    run, rows = runs[0], count(len(runs[0].y_true))
    if not comparisons:
        return f"It reaches a test AUC of {number(run.record.test.get('AUC'), 5)} on {rows} rows."
    auc = comparisons[0].metrics["AUC"]
    outcome = {
        "better": "higher than",
        "worse": "lower than",
        "even": "not clearly different from",
    }[verdict("AUC", auc.difference)]
    value, low, high = (
        signed(bound, 5)
        for bound in (auc.difference.value, auc.difference.low, auc.difference.high)
    )
    return (
        f"On {rows} test rows its AUC is {outcome} that of {runs[1].name}: {value}, "
        f"95% interval {low} to {high}."
    )


def _tiles(
    run: ReportedRun, runs: Sequence[ReportedRun], comparisons: Sequence[Comparison]
) -> list[tuple[str, str, str | Markup]]:
    metrics = [name for name in _TILE_METRICS if name in run.record.test]
    metrics += [name for name in run.record.test if name not in metrics][: 3 - len(metrics)]
    record, seconds = run.record, run.record.seconds["train"]
    entries = [
        (f"Test {name}", number(record.test[name], 5), _against(name, runs, comparisons))
        for name in metrics
    ]
    base = runs[1].record if len(runs) > 1 else None
    size = f"{record.parameters / base.parameters:.2f} × {runs[1].name}" if base else "trainable"
    time = (
        f"{seconds / base.seconds['train']:.2f} × {runs[1].name}"
        if base
        else f"{count(run.scores.trained_rows_per_second)} rows/s"
    )
    return [
        *entries,
        ("Parameters", count(record.parameters), size),
        ("Training", duration(seconds), time),
    ]


def _against(
    metric: str, runs: Sequence[ReportedRun], comparisons: Sequence[Comparison]
) -> str | Markup:
    if not comparisons or metric not in runs[1].record.test:
        valid = runs[0].record.valid.get(metric)
        return f"{number(valid, 5)} on validation rows" if valid is not None else ""
    difference = runs[0].record.test[metric] - runs[1].record.test[metric]
    intervals = comparisons[0].metrics.get(metric)
    outcome = verdict(metric, intervals.difference) if intervals else "even"
    return joined(
        element("b", signed(difference, 5), class_=f"verdict {outcome}"), f" vs {runs[1].name}"
    )


def _blueprint(run: ReportedRun) -> Markup:
    """Draw a two-stream model as boxes, from the ids to the prediction."""
    if not run.is_two_stream:
        return Markup("")
    params = run.params
    names = {role: _encoder(params, role) for role in ("simple", "complex")}
    selection = params.get("sample_selection", "own input each")
    loss = (
        f"TF Loss: c {params['c']:g}, γ {params['gamma']:g}, α {params['alpha']:g}"
        if params["twin_focus"]
        else "loss of the fused prediction alone"
    )
    wires = (
        "M74 84C92 84 92 46 108 46",
        "M74 84C92 84 92 122 108 122",
        "M232 46C250 46 250 84 264 84",
        "M232 122C250 122 250 84 264 84",
        "M326 84H350",
    )
    return element(
        "svg",
        *(element("path", d=wire, class_="wire") for wire in wires),
        *_box(4, 84, 70, "selection", selection, "box"),
        *_box(108, 46, 124, "simple encoder", names["simple"], "box c-simple"),
        *_box(108, 122, 124, "complex encoder", names["complex"], "box c-complex"),
        *_box(264, 84, 62, "fusion", params["fusion"], "box c-run1"),
        element("text", "ŷ", x=362, y=89, class_="prediction"),
        element("text", loss, x=190, y=170, class_="note middle"),
        viewBox="0 0 380 180",
        role="img",
        aria_label=f"Two-stream model: {names['simple']} and {names['complex']}, "
        f"sample selection {selection}, fusion {params['fusion']}",
        class_="blueprint",
    )


def _encoder(params: dict[str, Any], role: str) -> str:
    return str(params.get(f"{role}_encoder") or params.get(f"{role}_model") or "stream")


def _box(x: float, middle: float, width: float, kind: str, name: str, style: str) -> list[Markup]:
    shown = name if len(name) <= width / 7 else f"{name[: int(width / 7) - 1]}…"
    center = x + width / 2
    return [
        element("rect", x=x, y=middle - 23, width=width, height=46, rx=9, class_=style),
        element("text", kind, x=center, y=middle - 4, class_="tick middle"),
        element("text", shown, x=center, y=middle + 13, class_="name middle"),
    ]


# Named elsewhere on the page, or of no meaning without the machine.
_UNSAID = {"model", "model_id", "model_root", "gpu", "verbose"}


def provenance_section(runs: Sequence[ReportedRun]) -> Section:
    """Tell what the runs were made of."""
    return Section(
        "provenance",
        "Where this comes from",
        "The settings that differ from the defaults, and what the runs ran on.",
        blocks=[_settings(runs), *(_details(run) for run in runs)],
    )


def unusual_settings(run: ReportedRun) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from the model's and FuxiCTR's defaults: value, default."""
    model_class = type(run.scores.run.model)
    defaults = {key: entry.default for key, entry in KEYS.items() if entry.default is not REQUIRED}
    defaults |= getattr(model_class, "defaults", {})
    return {
        key: (value, defaults.get(key))
        for key, value in run.record.settings.items()
        if key not in DATASET_KEYS.keys() | _UNSAID
        and value is not None
        and _plain(value) != _plain(defaults.get(key))
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _settings(runs: Sequence[ReportedRun]) -> Markup:
    unusual = [unusual_settings(run) for run in runs]
    keys = sorted({key for settings in unusual for key in settings})
    rows = [
        (
            key,
            *(_written(run.params.get(key)) for run in runs),
            _written(next(settings[key][1] for settings in unusual if key in settings)),
        )
        for key in keys
    ]
    return table(("setting", *(run.name for run in runs), "default"), rows)


def _written(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(_plain(value), default=str)


def _details(run: ReportedRun) -> Markup:
    record = run.record
    facts: dict[str, str] = {
        "run": str(run.scores.run.folder),
        "command": record.command,
        "status": record.status,
        "resumed": ", ".join(record.resumed) or "never",
        "data": f"{record.settings['dataset_id']}, fingerprint {record.data['fingerprint'][:16]}",
        "machine": _machine(record.machine),
        "versions": ", ".join(f"{name} {number}" for name, number in record.versions.items()),
        "durations": ", ".join(
            f"{part} {duration(seconds)}" for part, seconds in record.seconds.items()
        ),
        "parameters": count(record.parameters),
    }
    entries = [
        part
        for name, value in facts.items()
        for part in (element("dt", name), element("dd", value))
    ]
    return element(
        "details",
        element("summary", dot(run.color), run.name),
        element("dl", *entries, class_="facts"),
        class_="card",
    )


def _machine(machine: Mapping[str, Any]) -> str:
    gpus = ", ".join(machine.get("gpus") or ["no GPU"])
    threads = machine.get("torch_threads", "?")
    return f"{machine.get('platform')}, {machine.get('cores')} cores, {threads} threads, {gpus}"
