"""What columns are, guessed from some of their rows: ids, numbers, sequences, times."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

# Names that say "id" of whole numbers.
_ID_NAME = re.compile(r"(^|_)(id|ids|user|item|code|zip|no|nr)($|_)|[a-z]Id$", re.IGNORECASE)
# Whole numbers of so few values are taken for ids, if each occurs often enough to learn from.
_FEW, _OFTEN = 100, 10
# Different amounts crowd at the low end of their range, different ids do not.
_LOW_END = 0.25
_SEPARATORS = "^|;, "
# Share of texts that must have a separator, and the longest sequence to keep whole.
_SEPARATED, _LONGEST = 0.1, 50
# How well a column alone may rank the label before it is told, and before it is left out.
_FORETELLS, _LEAKS = 0.8, 0.99
_BINS = 32
# 2000 to 2040 in seconds, milliseconds and microseconds since 1970.
_UNIX = [(946e6 * unit, 2209e6 * unit) for unit in (1, 10**3, 10**6)]


@dataclass(frozen=True)
class ColumnGuess:
    """What a column seems to be.

    Attributes:
        name: Its name.
        kind: "id", "number", "sequence" or "time".
        dtype: FuxiCTR's name of what it holds: "str", "int", "float" or "list".
        distinct: How many different values there are.
        missing: Share of the rows without a value.
        splitter: What separates the steps of a sequence.
        longest: Steps of the longest sequence.
        useless: Why no model should have it, if so.
        foretells: How well it ranks the label alone, as AUC, where that is suspicious.
    """

    name: str
    kind: str
    dtype: str
    distinct: int
    missing: float
    splitter: str = ""
    longest: int = 0
    useless: str = ""
    foretells: float | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """The column's entry in ``feature_cols``."""
        entry: dict[str, Any] = {"name": self.name, "active": True}
        if self.kind == "number":
            return entry | {"dtype": "float", "type": "numeric", "normalizer": "StandardScaler"}
        if self.kind == "sequence":
            entry |= {"dtype": self.dtype, "type": "sequence", "splitter": self.splitter}
            return entry | ({"max_len": _LONGEST} if self.longest > _LONGEST else {})
        return entry | {"dtype": self.dtype, "type": "categorical"}

    def row(self) -> dict[str, Any]:
        """What a table says of it."""
        kind = f"sequence by {self.splitter!r}" if self.splitter else self.kind
        note = ""
        if self.useless:
            note = f"left out: {self.useless}"
        elif self.foretells is not None:
            note = f"alone ranks the label with AUC {self.foretells:.2f}: is it known before?"
        row = {"column": self.name, "is": kind, "distinct": self.distinct}
        return row | {"missing": f"{self.missing:.1%}" if self.missing else "", "note": note}


def guess_columns(
    frame: pl.DataFrame, label: pl.Series | None = None, ids: Collection[str] = ()
) -> list[ColumnGuess]:
    """Guess what columns are.

    Texts are ids, unless they are numbers, times, or sequences joined by one of ``^|;,`` and blank.
    Whole numbers are ids where they are called so, are few, or spread over their range. Other
    numbers, and frames' floats, are numbers.

    Args:
        frame: Some rows [N, columns].
        label: Labels 0 and 1 [N], to find columns that give them away; None looks for none.
        ids: Columns known to be ids.
    """
    return [_guess(frame[name], label, name in ids) for name in frame.columns]


def _guess(values: pl.Series, label: pl.Series | None, known_id: bool) -> ColumnGuess:
    rows = len(values)
    if values.dtype == pl.String:
        values = values.set(values == "", None)
    present = values.drop_nulls()
    kind, splitter, longest = ("id", "", 0) if known_id else _kind(values.name, present)
    distinct = present.n_unique()
    dtype = "list" if isinstance(values.dtype, pl.List) else "str"
    if values.dtype.is_numeric() or values.dtype == pl.Boolean:
        dtype = "float" if values.dtype.is_float() else "int"
    foretells = None
    if distinct + (len(present) < rows) < 2:
        useless = "constant"
    elif kind == "id" and distinct == rows > _FEW:
        useless = "another value in every row"
    elif kind == "time":
        useless = "a time, which does not come again"
    else:
        useless = ""
        auc = 0.5 if label is None or kind == "sequence" else _auc_alone(values, label, kind)
        foretells = auc if auc >= _FORETELLS else None
        if auc >= _LEAKS:
            useless = f"alone ranks the label with AUC {auc:.3f}, so it gives it away"
    missing = 1 - len(present) / rows if rows else 0.0
    return ColumnGuess(
        values.name, kind, dtype, distinct, missing, splitter, longest, useless, foretells
    )


def _kind(name: str, present: pl.Series) -> tuple[str, str, int]:
    """Return kind, splitter and longest sequence of the values there are."""
    if isinstance(present.dtype, pl.List):
        return "sequence", "^", present.list.len().max() or 0
    if present.dtype.is_temporal() or (len(present) and _are_times(present)):
        return "time", "", 0
    if present.dtype.is_float():
        return "number", "", 0
    if present.dtype.is_integer():
        return "id" if _are_ids(name, present) else "number", "", 0
    if present.dtype != pl.String or not len(present):
        return "id", "", 0
    numbers = present.cast(pl.Float64, strict=False)
    # Whole numbers with zeros before them are codes.
    if not numbers.null_count() and not present.str.contains(r"^0\d").any():
        whole = present.str.contains(r"^-?\d+$").all()
        return "id" if whole and _are_ids(name, numbers) else "number", "", 0
    return _sequence(present) or ("id", "", 0)


def _are_ids(name: str, whole: pl.Series) -> bool:
    if _ID_NAME.search(name):
        return True
    different = whole.unique()
    if len(different) <= min(_FEW, len(whole) / _OFTEN):
        return True
    low, middle, high = different.min(), different.median(), different.max()
    often = len(different) <= len(whole) / 2
    return low >= -1 and often and middle - low > _LOW_END * (high - low)


def _are_times(present: pl.Series) -> bool:
    if not present.dtype.is_numeric() and present.dtype != pl.String:
        return False
    texts = present.cast(pl.String, strict=False)
    if present.dtype.is_numeric() or texts.str.contains(r"^\d+$").all():
        if not texts.str.contains(r"^\d{8,17}$").all():
            return False
        numbers = texts.cast(pl.Float64)
        if any(numbers.is_between(*bounds).all() for bounds in _UNIX):
            return True
        # 20241231, 2024123123 and Avazu's 24123123.
        return any(
            not texts.str.slice(0, length).str.to_date(form, strict=False).null_count()
            and texts.str.len_chars().n_unique() == 1
            and (hours is None or (texts.str.slice(hours, 2).cast(pl.Int64) < 24).all())
            for length, form, hours in ((8, "%Y%m%d", None), (6, "%y%m%d", 6))
        )
    try:
        return not present.str.to_datetime(strict=False).null_count()
    except pl.exceptions.ComputeError:  # no format is that of any value
        return False


def _sequence(texts: pl.Series) -> tuple[str, str, int] | None:
    """Return kind, splitter and length of texts that are made of fewer tokens than they are."""
    for separator in _SEPARATORS:
        share = texts.str.contains(separator, literal=True).mean()
        if share is None or share < _SEPARATED:
            continue
        steps = texts.str.split(separator)
        tokens = steps.explode(empty_as_null=False)
        if tokens.n_unique() < texts.n_unique() and steps.list.len().n_unique() > 1:
            return "sequence", separator, steps.list.len().max()
    return None


def _auc_alone(values: pl.Series, label: pl.Series, kind: str) -> float:
    """Rank every other row by the mean label that its value has in the rows between."""
    from sklearn.metrics import roc_auc_score

    if kind == "number":
        numbers = values.cast(pl.Float64, strict=False)
        values = (numbers.rank("average") * _BINS / len(numbers)).floor()
    odd = np.arange(len(label)) % 2 == 1
    rows = pl.DataFrame({"value": values, "label": label})
    known, asked = rows.filter(~pl.Series(odd)), rows.filter(pl.Series(odd))
    if not len(known) or asked["label"].n_unique() < 2:
        return 0.5
    prior = known["label"].mean()
    means = known.group_by("value").agg(
        score=(pl.col("label").sum() + _OFTEN * prior) / (pl.len() + _OFTEN)
    )
    scored = asked.join(means, on="value", how="left", nulls_equal=True, maintain_order="left")
    return float(roc_auc_score(asked["label"], scored["score"].fill_null(prior)))
