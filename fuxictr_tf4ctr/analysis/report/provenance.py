"""Where the numbers come from: settings, environment, data, files."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fuxictr_tf4ctr.analysis.report.elements import Markup, count, duration, element
from fuxictr_tf4ctr.analysis.report.page import ReportedRun, Section, dot, table
from fuxictr_tf4ctr.schema import REQUIRED
from fuxictr_tf4ctr.settings.keys import DATASET_KEYS, KEYS

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
