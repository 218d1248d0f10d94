"""The ``tuner_space`` of a tuner file: what each key may be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuxictr_tf4ctr.errors import SettingsError

_RANGE_KEYS = {"low", "high", "step", "log"}


@dataclass(frozen=True)
class Range:
    """Numbers to search between, both ends included.

    Attributes:
        low: The least.
        high: The greatest.
        step: Only ``low``, ``low + step``, … are tried; None for all.
        log: Search by orders of magnitude.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))


Space = dict[str, list[Any] | Range]
"""Key -> its choices, or the range it is searched in."""


def read_space(section: Any, where: str) -> Space:
    """Read a ``tuner_space``: a list is choices, ``{low, high}`` a range, all else one choice.

    Args:
        section: The section as YAML has it.
        where: The file, for messages.

    Raises:
        SettingsError: Listing every key that has no choice or no proper range.
    """
    if not isinstance(section, Mapping) or not section:
        raise SettingsError(f"{where}: tuner_space must map keys to lists of values")
    space: Space = {}
    problems = []
    for key, value in section.items():
        if isinstance(value, Mapping) and {"low", "high"} <= value.keys() <= _RANGE_KEYS:
            problem = _range_problem(value)
            if problem:
                problems.append(f"{key}: {problem}")
            else:
                space[key] = Range(**value)
        elif value == []:
            problems.append(f"{key} is an empty list: give it at least one value")
        else:
            space[key] = list(value) if isinstance(value, list) else [value]
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise SettingsError(f"{where}: the tuner_space is not valid:\n{listed}")
    return space


def ranges(space: Space) -> list[str]:
    """Return the keys that have a range in place of choices."""
    return [key for key, values in space.items() if isinstance(values, Range)]


def _range_problem(value: Mapping[str, Any]) -> str | None:
    low, high, step = value["low"], value["high"], value.get("step")
    numbers = [low, high] if step is None else [low, high, step]
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        return (
            f"low, high and step must be numbers, not {numbers} (YAML reads 1e-3 as text: 1.0e-3)"
        )
    if low >= high:
        return f"low ({low}) must be below high ({high})"
    if step is not None and step <= 0:
        return f"step ({step}) must be above 0"
    if value.get("log") and (low <= 0 or step is not None):
        return "log needs low above 0 and no step"
    return None
