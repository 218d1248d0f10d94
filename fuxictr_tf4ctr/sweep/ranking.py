"""What a sweep compares runs by, and what it found: its runs by validation, the best over seeds."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fuxictr_tf4ctr.runs.records import RunRecord
from fuxictr_tf4ctr.settings.keys import KEYS
from fuxictr_tf4ctr.sweep.points import Point


def monitored(settings: Mapping[str, Any], metrics: Mapping[str, float]) -> float | None:
    """Return the weighted sum of metrics that a run monitors, None where one is not there.

    Args:
        settings: Settings of the run; ``monitor`` is heeded.
        metrics: Its metrics on the validation data.
    """
    monitor = settings.get("monitor", KEYS["monitor"].default)
    weights = {monitor: 1} if isinstance(monitor, str) else monitor
    if any(name not in metrics for name, weight in weights.items() if weight):
        return None
    return sum(weight * metrics[name] for name, weight in weights.items() if weight)


def monitor_name(settings: Mapping[str, Any]) -> str:
    """Return the monitor as one reads it: ``AUC``, or ``AUC - 0.5 logloss``."""
    monitor = settings.get("monitor", KEYS["monitor"].default)
    if isinstance(monitor, str):
        return monitor
    terms = [
        f"{'-' if weight < 0 else '+'} {'' if abs(weight) == 1 else f'{abs(weight):g} '}{name}"
        for name, weight in monitor.items()
        if weight
    ]
    return " ".join(terms).removeprefix("+ ")


def more_is_better(settings: Mapping[str, Any]) -> bool:
    """Whether the greatest monitored value is the best."""
    return settings.get("monitor_mode", KEYS["monitor_mode"].default) == "max"


def ranking(
    runs: Iterable[tuple[Point, RunRecord]], base: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rank finished runs by their metrics on the validation data; test stands beside it.

    Args:
        runs: Each point with the record of its finished run.
        base: Settings that the runs share: all are ranked by the monitor in them, also where the
            one by which they stop varies.

    Returns:
        One row per run, best first: rank, expid, monitored value, metrics on both splits, number
        of parameters and of evaluations, seconds, and the keys in which the points differ.
    """
    runs = list(runs)
    if not runs:
        return []
    name, sign = monitor_name(base), -1 if more_is_better(base) else 1
    varied = [
        key
        for key in runs[0][0].values
        if any(point.values[key] != runs[0][0].values[key] for point, _ in runs)
    ]
    values = {p.expid: monitored(base, record.valid) for p, record in runs}
    # A run without validation data has nothing to be ranked by, and comes last.
    runs.sort(key=lambda run: (values[run[0].expid] is None, sign * (values[run[0].expid] or 0)))
    return [
        {
            "rank": rank,
            "expid": point.expid,
            f"monitor ({name})": values[point.expid],
            **_metrics("valid", record.valid),
            **_metrics("test", record.test),
            "parameters": record.parameters,
            "evaluations": len(record.evaluations),
            "seconds": round(record.seconds.get("total", 0.0)),
            **{key: point.values[key] for key in varied},
        }
        for rank, (point, record) in enumerate(runs, start=1)
    ]


def seed_table(runs: Mapping[str, Sequence[RunRecord]]) -> list[dict[str, Any]]:
    """Summarise experiments that ran under several seeds, as mean and sample deviation.

    Args:
        runs: Expid -> its finished runs, one per seed.
    """
    return [_seed_row(expid, records) for expid, records in runs.items() if records]


def _seed_row(expid: str, records: Sequence[RunRecord]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "expid": expid,
        "seeds": " ".join(str(record.settings["seed"]) for record in records),
    }
    for split in ("valid", "test"):
        for metric in getattr(records[0], split):
            values = [getattr(record, split)[metric] for record in records]
            row[f"{split} {metric} mean"] = statistics.fmean(values)
            row[f"{split} {metric} std"] = statistics.stdev(values) if len(values) > 1 else None
    return row


def _metrics(split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{split} {name}": value for name, value in metrics.items()}
