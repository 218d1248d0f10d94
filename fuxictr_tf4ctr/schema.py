"""What a value from a file or an option may be: kinds, records of keys, and a reader of json.

Settings, columns, tuner files and the json files of this package are all judged by it:

    >>> RUN = Record({"expid": TEXT, "epochs": Key(whole(1), default=100)})
    >>> RUN.problems({"expid": 7, "epoch": 3}, "run.json: ")
    ['run.json: expid=7 must be a text', "run.json: unknown key 'epoch'; did you mean 'epochs'?"]

No judgement raises, whatever the value, and its messages are short, however long the value.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.errors import DataError, SettingsError, UserError
from fuxictr_tf4ctr.names import shown, unknown

Shape = type | tuple["Shape", ...]

REQUIRED: Any = object()
"""The default of a key that must be given."""

# More problems than one reads are told by their number.
_MOST_PROBLEMS = 20
# Bytes of a file's name, with room for what is put behind it; systems allow 255.
_LONGEST_NAME = 200


class Kind:
    """What a value may be.

    Args:
        expected: What a value must be, to follow "must be".
        test: Whether a value is that. A TypeError, ValueError or OverflowError means that it is
            not; a UserError says more exactly what is wrong.
        shape: Type of the values that are meant to be of this kind, even if they are wrong.
    """

    def __init__(self, expected: str, test: Callable[[Any], bool], shape: Shape = ()) -> None:
        self.expected, self.shape = expected, shape
        self._test = test

    def problems(self, value: Any, where: str = "value") -> list[str]:
        """List all that is wrong with a value, a sentence each.

        Args:
            where: What holds the value: its key, behind the file or section it is in.
        """
        try:
            right = self._test(value)
        except UserError as error:
            return [f"{where}: {error}"]
        except (TypeError, ValueError, OverflowError):
            right = False
        return [] if right else [f"{where}={shown(value)} must be {self.expected}"]

    def expects(self, value: Any) -> str | None:
        """Say what a value must be, None where it is right."""
        return self.expected if self.problems(value) else None


class ListOf(Kind):
    """A list.

    Args:
        least: How many there must be.
        expected: What it must be, in other words than the entry's.
    """

    def __init__(self, entry: Kind, least: int = 0, expected: str | None = None) -> None:
        length = "a non-empty list" if least else "a list"
        expected = expected or f"{length}, each entry {entry.expected}"
        super().__init__(
            expected,
            lambda value: isinstance(value, self.shape) and len(value) >= least,
            (list, tuple),
        )
        self._entry = entry

    def problems(self, value: Any, where: str = "value") -> list[str]:
        """See :class:`Kind`."""
        return super().problems(value, where) or _few(
            problem
            for index, entry in enumerate(value)
            for problem in self._entry.problems(entry, f"{where}[{index}]")
        )


class AnyOf(Kind):
    """A value of one of several kinds."""

    def __init__(self, *kinds: Kind) -> None:
        self._kinds = kinds
        expected = " or ".join(kind.expected for kind in kinds)
        super().__init__(expected, lambda value: False, tuple(kind.shape for kind in kinds))

    def problems(self, value: Any, where: str = "value") -> list[str]:
        """See :class:`Kind`; the kind whose shape the value has says what is wrong."""
        found = [(kind, kind.problems(value, where)) for kind in self._kinds]
        if not all(problems for _, problems in found):
            return []
        meant = (problems for kind, problems in found if isinstance(value, kind.shape))
        return next(meant, super().problems(value, where))


@dataclass(frozen=True)
class Key:
    """One key of a record.

    Attributes:
        kind: What its value must be; it may be null as well where that is the default.
        help: One line on what the key means.
        default: Its value where it is not given, ``REQUIRED`` where it must be.
    """

    kind: Kind
    help: str = ""
    default: Any = None

    @property
    def value(self) -> Kind:
        """What its value must be, null included where that is the default."""
        return AnyOf(self.kind, NULL) if self.default is None else self.kind


class Record(Kind):
    """A mapping with known keys.

    Args:
        keys: Key -> what it is; a kind alone means that the key must be given.
        others: Kind of the values of further keys; None refuses them.
    """

    def __init__(self, keys: Mapping[str, Key | Kind], others: Kind | None = None) -> None:
        self.keys = {
            name: key if isinstance(key, Key) else Key(key, default=REQUIRED)
            for name, key in keys.items()
        }
        self._others = others
        required = [name for name, key in self.keys.items() if key.default is REQUIRED]
        expected = f"a mapping with {', '.join(required)}" if required else "a mapping"
        super().__init__(expected, lambda value: isinstance(value, Mapping), Mapping)

    def problems(self, value: Any, where: str = "") -> list[str]:
        """See :class:`Kind`.

        Args:
            where: What holds the mapping: its key, or its file and ": ".
        """
        whole_value = where.removesuffix(": ") or "value"
        return super().problems(value, whole_value) or _few(self._inner_problems(value, where))

    def _inner_problems(self, value: Mapping[Any, Any], where: str) -> Iterable[str]:
        inside = where if not where or where.endswith(": ") else f"{where}."
        for name, key in self.keys.items():
            if name in value:
                yield from key.value.problems(value[name], f"{inside}{name}")
            elif key.default is REQUIRED:
                yield f"{inside}{name} is missing" + (f": {key.help}" if key.help else "")
        for name in value:
            if not isinstance(name, str):
                yield f"{inside}{shown(name)} is no key: write it in quotes"
            elif name not in self.keys and self._others is None:
                head = f"{where}: " if inside.endswith(".") else where
                yield head + unknown("key", name, self.keys)
            elif name not in self.keys:
                yield from self._others.problems(value[name], f"{inside}{name}")


def read_json(path: Path, content: Kind, remedy: str) -> Any:
    """Read a json file of one of our own kinds.

    Args:
        content: What it must hold.
        remedy: What to do where it does not hold that, to end the message.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It cannot be read, or holds something else; the message names file and keys.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); {remedy}") from error
    problems = content.problems(value, f"{path}: ")
    if problems:
        raise DataError("\n".join([*problems, remedy]))
    return value


def _few(problems: Iterable[str]) -> list[str]:
    found = []
    for problem in problems:
        if len(found) == _MOST_PROBLEMS:
            return [*found, "… and more"]
        found.append(problem)
    return found


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_path(value: Any) -> bool:
    """Whether a file system takes a path: a text without NUL, no part too long for a name."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    encoded = value.encode()
    return len(encoded) <= 4000 and all(len(part) <= _LONGEST_NAME for part in encoded.split(b"/"))


def is_file_name(value: Any) -> bool:
    """Whether a name can be a file's: a printable text, no path."""
    return is_path(value) and "/" not in value and value.isprintable() and value[0] != "."


def whole(least: int, most: int = 2**63 - 1) -> Kind:
    """A whole number within bounds."""
    bounds = f">= {least}" if most == 2**63 - 1 else f"from {least} to {most}"
    return Kind(
        f"a whole number {bounds}", lambda value: is_whole(value) and least <= value <= most
    )


def one_of(*choices: str) -> Kind:
    """One of a few texts."""
    return Kind(
        f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices
    )


def name_of(kind: str, known: Collection[str]) -> Kind:
    """One of many names; the message tells the nearest."""

    def test(value: Any) -> bool:
        if isinstance(value, str) and value in known:
            return True
        raise SettingsError(unknown(kind, value, known))

    return Kind(f"the name of a known {kind}", test, str)


ANYTHING = Kind("anything", lambda value: True)
NULL = Kind("null", lambda value: value is None)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str) and value != "")
NUMBER = Kind("a number", is_number)
POSITIVE = Kind("a number > 0", lambda value: is_number(value) and value > 0)
NOT_NEGATIVE = Kind("a number >= 0", lambda value: is_number(value) and value >= 0)
SHARE = Kind("a number in [0, 1]", lambda value: is_number(value) and 0 <= value <= 1)
PATH = Kind("a path of names of at most 200 bytes", is_path)
FILE_NAME = Kind("a name of at most 200 bytes without / and control characters", is_file_name)
TEXTS = ListOf(TEXT, expected="a list of texts")
