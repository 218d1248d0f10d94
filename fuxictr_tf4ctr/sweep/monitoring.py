"""The value a sweep compares runs by: FuxiCTR's monitor on the validation data."""

from collections.abc import Mapping
from typing import Any

from fuxictr_tf4ctr.settings.keys import KEYS


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
