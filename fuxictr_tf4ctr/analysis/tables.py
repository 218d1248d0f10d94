"""Rows of named cells as text, csv, Markdown or JSON."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of all cells, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row))


def as_text(rows: Sequence[Row]) -> str:
    """Align columns with spaces, for a terminal."""
    names = columns_of(rows)
    lines = [names, *([cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def as_markdown(rows: Sequence[Row]) -> str:
    """Format a Markdown table."""
    names = columns_of(rows)
    lines = [names, ["---"] * len(names)]
    lines += [[cell(row.get(name)).replace("|", "\\|") for name in names] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_csv(rows: Sequence[Row]) -> str:
    """Format csv with a header; numbers keep all their digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _exact(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    """Format a JSON list of objects."""
    return json.dumps([dict(row) for row in rows], indent=2, default=str) + "\n"


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
    "text": as_text,
    "csv": as_csv,
    "markdown": as_markdown,
    "json": as_json,
}


def cell(value: Any) -> str:
    """Format one value to be read: six decimals, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}" if 0 < abs(value) < 1e-3 else f"{value:.6f}"
    return str(value)


def _exact(value: Any) -> Any:
    return json.dumps(value, default=str) if isinstance(value, list | dict) else value
