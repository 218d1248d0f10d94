"""What the runs are and how they compare: settings, main figures, intervals, speed and size."""

import json
from collections.abc import Callable, Sequence
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
    shortened,
    signed,
)
from fuxictr_tf4ctr.metrics.definitions import STREAMS, less_is_better
from fuxictr_tf4ctr.metrics.significance import Interval
from fuxictr_tf4ctr.schema import REQUIRED
from fuxictr_tf4ctr.settings.keys import DATASET_KEYS, KEYS

# Verdict -> in a table, in a sentence on the AUC, and its color.
_WORDS = {
    "better": ("better", "higher than", "good"),
    "worse": ("worse", "lower than", "bad"),
    "even": ("no clear difference", "not clearly different from", "quiet"),
}
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
    subject, others = runs[0], [run.name for run in runs[1:]]
    named_others = " and ".join(filter(None, (", ".join(others[:-1]), others[-1])))
    return Section(
        "comparison",
        "Side by side",
        f"{subject.name} against {named_others}, on the same {count(comparisons[0].rows)} test "
        f"rows. Intervals of 95% come from {count(comparisons[0].resamples)} resamples that draw "
        "the same rows for both runs; they do not cover the spread between seeds.",
        blocks=[_differences(runs, comparisons), _costs(runs)],
    )


def verdict(metric: str, difference: Interval) -> str:
    """Say whether a difference is "better", "worse" or neither, by its interval."""
    if difference.low <= 0 <= difference.high:
        return "even"
    return "better" if (difference.low > 0) != bool(less_is_better(metric)) else "worse"


def _differences(runs: Sequence[ReportedRun], comparisons: Sequence[Comparison]) -> Markup:
    rows = []
    for other, comparison in zip(runs[1:], comparisons, strict=True):
        p = comparison.delong.p_value
        for metric, intervals in comparison.metrics.items():
            outcome = verdict(metric, intervals.difference)
            said = _WORDS[outcome][0]
            if metric == "AUC":
                said += ", DeLong p " + ("< 0.0001" if p < 1e-4 else f"= {p:.2g}")
            rows.append(
                [
                    named(other),
                    metric,
                    _with_bounds(intervals.difference, signed),
                    _interval_drawing(intervals.difference, _WORDS[outcome][2]),
                    element("span", said, class_=f"verdict {outcome}"),
                    _with_bounds(intervals.second, number),
                    _with_bounds(intervals.first, number),
                ]
            )
    return table(("against", "metric", "difference", "", "verdict", runs[0].name, "other"), rows)


def _with_bounds(interval: Interval, write: Callable[[float, int], str]) -> Markup:
    bounds = f"{write(interval.low, 5)} to {write(interval.high, 5)}"
    return joined(write(interval.value, 5), element("small", bounds))


def _interval_drawing(interval: Interval, color: str) -> Markup:
    """Draw an interval about zero, which is in the middle."""
    reach = 1.08 * max(abs(interval.low), abs(interval.high), 1e-12)
    x = Scale(-reach, reach, 4, _BAR - 4)
    whisker = f"M{x(interval.low):.1f} 12H{x(interval.high):.1f}"
    return element(
        "svg",
        element("path", d=f"M{_BAR / 2:g} 2V22", class_="rule"),
        element("path", d=whisker, class_=f"whisker c-{color}"),
        element("circle", cx=x(interval.value), cy=12, r=4.0, class_=f"dot c-{color}"),
        viewBox=f"0 0 {_BAR} 24",
        width=_BAR,
        height=24,
        aria_hidden="true",
    )


def _costs(runs: Sequence[ReportedRun]) -> Markup:
    rows = []
    for run in runs:
        parameters, seconds, *speeds = run.scores.costs.values()
        sizes = [count(parameters), duration(seconds), *map(count, speeds)]
        rows.append([named(run), *sizes, str(run.record.settings["seed"]), run.started])
    speeds = "rows/s in training", "rows/s scored here"
    return table(("run", "parameters", "training", *speeds, "seed", "started"), rows)


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
        tiles(_tiles(runs, comparisons)),
    )


def _described(run: ReportedRun) -> str:
    record, params = run.record, run.params
    rows = record.data["rows"]
    kind = f"{record.settings['model']} on {record.settings['dataset_id']}"
    if run.is_two_stream and not params["twin_focus"]:
        kind += ", as a base model without the Twin Focus Loss"
    splits = ", ".join(f"{count(rows[s])} {s}" for s in ("train", "valid", "test") if rows.get(s))
    return f"{kind}: {splits} rows. Started {run.started} UTC."


def _in_brief(runs: Sequence[ReportedRun], comparisons: Sequence[Comparison]) -> str:
    run, rows = runs[0], count(len(runs[0].y_true))
    if not comparisons:
        return f"It reaches a test AUC of {number(run.record.test.get('AUC'), 5)} on {rows} rows."
    auc = comparisons[0].metrics["AUC"]
    outcome = _WORDS[verdict("AUC", auc.difference)][1]
    value, low, high = (
        signed(bound, 5)
        for bound in (auc.difference.value, auc.difference.low, auc.difference.high)
    )
    return (
        f"On {rows} test rows its AUC is {outcome} that of {runs[1].name}: {value}, "
        f"95% interval {low} to {high}."
    )


def _tiles(
    runs: Sequence[ReportedRun], comparisons: Sequence[Comparison]
) -> list[tuple[str, str, str | Markup]]:
    run, record, seconds = runs[0], runs[0].record, runs[0].record.seconds["train"]
    metrics = [name for name in _TILE_METRICS if name in record.test]
    metrics += [name for name in record.test if name not in metrics][: 3 - len(metrics)]
    size, time = "trainable", f"{count(run.scores.trained_rows_per_second)} rows/s"
    if len(runs) > 1:
        base = runs[1].record
        size = f"{record.parameters / base.parameters:.2f} × {runs[1].name}"
        time = f"{seconds / base.seconds['train']:.2f} × {runs[1].name}"
    return [
        *(
            (f"Test {m}", number(record.test[m], 5), _against(m, runs, comparisons))
            for m in metrics
        ),
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


_WIRES = (
    "M74 84C92 84 92 46 108 46",
    "M74 84C92 84 92 122 108 122",
    "M232 46C250 46 250 84 264 84",
    "M232 122C250 122 250 84 264 84",
    "M326 84H350",
)


def _blueprint(run: ReportedRun) -> Markup:
    """Draw a two-stream model as boxes, from the ids to the prediction."""
    if not run.is_two_stream:
        return Markup("")
    params = run.params
    names = {
        role: str(params.get(f"{role}_encoder") or params.get(f"{role}_model") or "stream")
        for role in STREAMS
    }
    selection = params.get("sample_selection", "own input each")
    loss = (
        f"TF Loss: c {params['c']:g}, γ {params['gamma']:g}, α {params['alpha']:g}"
        if params["twin_focus"]
        else "loss of the fused prediction alone"
    )
    # Left edge, middle, width, kind, name and style of each box.
    boxes = (
        (4, 84, 70, "selection", selection, "box"),
        (108, 46, 124, "simple encoder", names["simple"], "box c-simple"),
        (108, 122, 124, "complex encoder", names["complex"], "box c-complex"),
        (264, 84, 62, "fusion", params["fusion"], "box c-run1"),
    )
    drawn = [element("path", d=wire, class_="wire") for wire in _WIRES]
    for x, middle, width, kind, name, style in boxes:
        center = x + width / 2
        drawn += [
            element("rect", x=x, y=middle - 23, width=width, height=46, rx=9, class_=style),
            element("text", kind, x=center, y=middle - 4, class_="tick middle"),
            element(
                "text", shortened(name, width // 7), x=center, y=middle + 13, class_="name middle"
            ),
        ]
    return element(
        "svg",
        *drawn,
        element("text", "ŷ", x=362, y=89, class_="prediction"),
        element("text", loss, x=190, y=170, class_="note middle"),
        viewBox="0 0 380 180",
        role="img",
        aria_label=f"Two-stream model: {names['simple']} and {names['complex']}, "
        f"sample selection {selection}, fusion {params['fusion']}",
        class_="blueprint",
    )


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


def _unusual(run: ReportedRun) -> dict[str, Any]:
    """Return the defaults, the model's or FuxiCTR's, of the settings that differ from them."""
    defaults = {key: entry.default for key, entry in KEYS.items() if entry.default is not REQUIRED}
    defaults |= getattr(type(run.scores.run.model), "defaults", {})
    return {
        key: defaults.get(key)
        for key, value in run.record.settings.items()
        if key not in DATASET_KEYS.keys() | _UNSAID
        and value is not None
        and _plain(value) != _plain(defaults.get(key))
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _settings(runs: Sequence[ReportedRun]) -> Markup:
    defaults: dict[str, Any] = {}
    for run in reversed(runs):
        defaults |= _unusual(run)
    rows = [
        (key, *(_written(run.params.get(key)) for run in runs), _written(defaults[key]))
        for key in sorted(defaults)
    ]
    return table(("setting", *(run.name for run in runs), "default"), rows)


def _written(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(_plain(value), default=str)


def _details(run: ReportedRun) -> Markup:
    record, machine = run.record, run.record.machine
    facts: dict[str, str] = {
        "run": str(run.scores.run.folder),
        "command": record.command,
        "status": record.status,
        "resumed": ", ".join(record.resumed) or "never",
        "data": f"{record.settings['dataset_id']}, fingerprint {record.data['fingerprint'][:16]}",
        "machine": f"{machine.get('platform')}, {machine.get('cores')} cores, "
        f"{machine.get('torch_threads', '?')} threads, "
        + ", ".join(machine.get("gpus") or ["no GPU"]),
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
