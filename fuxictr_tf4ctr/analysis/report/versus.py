"""Several runs side by side: metrics with intervals, significance, speed and size."""

from collections.abc import Callable, Sequence

from fuxictr_tf4ctr.analysis.compare import Comparison
from fuxictr_tf4ctr.analysis.report.page import ReportedRun, Section, named, table
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
