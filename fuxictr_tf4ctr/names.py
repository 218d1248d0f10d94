"""Tables of named classes: one lookup for encoders, sample selections, fusions and models."""

import difflib
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fuxictr_tf4ctr.errors import SettingsError

T = TypeVar("T", bound=type)

# No name is longer; what is longer resembles none, and comparing it takes long.
_LONGEST_NAME = 200
_MOST_LISTED = 100
_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother = 3, 80, 80


def shown(value: Any) -> str:
    """Write a value for a message: as ``repr`` does, but never long, whatever it holds."""
    try:
        return _repr.repr(value)
    except ValueError:  # a number of thousands of digits, which Python refuses to write
        return f"a very large {type(value).__name__}"


def nearest(name: Any, known: Iterable[str], limit: int = 3) -> list[str]:
    """Return the known names most like ``name``, best first, ignoring case.

    Args:
        name: The name that was not found; what is no text resembles none.
    """
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        return []
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=limit, cutoff=0.5)
    return [by_lower[match] for match in close]


def misspelt(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that ``name`` is within a slip or two of, None if there is none.

    Unlike :func:`nearest` it takes names alike in meaning, such as ``group_id`` and
    ``group_index``, for different ones.
    """
    slips = 1 if len(name) < 6 else 2
    alike = (other for other in known if abs(len(other) - len(name)) <= slips)
    found = ((_slips(name, other), other) for other in alike)
    best = min(found, default=(slips + 1, None))
    return best[1] if best[0] <= slips else None


def _slips(one: str, other: str) -> int:
    """Count the letters left out, put in, changed or swapped between two names."""
    above: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, above, row = above, row, [i]
        for j, b in enumerate(other, start=1):
            best = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and b == one[i - 2]:
                best = min(best, before[j - 2] + 1)
            row.append(best)
    return row[-1]


def unknown(kind: str, name: Any, known: Iterable[str]) -> str:
    """Say that ``name`` is no known ``kind`` and which names come nearest."""
    known = sorted(map(str, known))
    close = nearest(name, known)
    if close:
        return f"unknown {kind} {shown(name)}; did you mean {' or '.join(map(shown, close))}?"
    listed = ", ".join(known[:_MOST_LISTED]) or "none"
    more = f", … ({len(known)} in all)" if len(known) > _MOST_LISTED else ""
    return f"unknown {kind} {shown(name)}; known: {listed}{more}"


class NameTable(dict[str, T]):
    """Classes by name, filled by a decorator.

    Args:
        kind: What is named here ("encoder", "fusion", ...), for error messages.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Return a class decorator that enters the class under ``name``.

        Raises:
            ValueError: Another class holds that name already.
        """

        def enter(cls: T) -> T:
            holder = self.setdefault(name, cls)
            if holder is not cls:
                raise ValueError(f"{self.kind} {name!r} is registered already, as {holder}")
            return cls

        return enter

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise SettingsError(unknown(self.kind, name, self))
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name)
