"""All records under a folder, tabulated and tested; rows as text, csv, Markdown or JSON."""

import csv
import fnmatch
import io
import json
import logging
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.runs.records import RunRecord, read_run
from fuxictr_tf4ctr.schema import is_number
from fuxictr_tf4ctr.settings.sections import parse_yaml

LOG = logging.getLogger(__name__)
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
    for row in rows:
        lists = {name: each for name, each in row.items() if isinstance(each, list | dict)}
        writer.writerow({**row, **{name: json.dumps(lists[name], default=str) for name in lists}})
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


# Settings that differ between any two runs and say nothing of either.
_INCIDENTAL = {"model_id", "model_root"}
_CONDITION = re.compile(r"\s*([^<>=!]+?)\s*(>=|<=|!=|=|>|<)\s*(.*?)\s*")
_ORDER: dict[str, Callable[[float, float], bool]] = {
    ">": lambda found, wanted: found > wanted,
    "<": lambda found, wanted: found < wanted,
    ">=": lambda found, wanted: found >= wanted,
    "<=": lambda found, wanted: found <= wanted,
}


def read_runs(folder: Path) -> list[RunRecord]:
    """Read all records under a folder; one that cannot be read is reported and left out.

    Raises:
        DataError: There is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name one that holds runs")
    records = []
    for file in sorted(folder.rglob("run.json")):
        try:
            records.append(read_run(file.parent))
        except DataError as error:
            LOG.warning("left out: %s", error)
    if not records:
        raise DataError(f"{folder} holds no run that this version can read")
    return records


def table(
    records: Iterable[RunRecord],
    conditions: Sequence[str] = (),
    sort: str | None = None,
    descending: bool = False,
    settings: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Tabulate runs.

    Args:
        records: The runs.
        conditions: Each ``name=pattern``, ``name!=pattern``, or ``name`` compared with a number by
            ``>``, ``<``, ``>=``, ``<=``; a name is a column or a setting.
        sort: Column or setting to sort by; None for the time of the start.
        descending: Greatest first.
        settings: Settings to show as further columns.

    Returns:
        One row per run.

    Raises:
        SettingsError: A condition, column or setting is not known.
    """
    shown, rows = _rows(list(records))
    rows = [row for row in rows if _meets(conditions, row)]
    name = sort or "started"
    rows.sort(key=lambda row: _sort_key(_value(row, name)), reverse=descending)
    if sort:  # what has no such value comes last either way
        rows.sort(key=lambda row: row[name] is None)
    return [{key: _value(row, key) for key in dict.fromkeys([*shown, *settings])} for row in rows]


def matching(records: Sequence[RunRecord], conditions: Sequence[str]) -> list[RunRecord]:
    """Return the runs that meet all conditions, as :func:`table` has them.

    Raises:
        SettingsError: A condition, column or setting is not known.
    """
    _, rows = _rows(records)
    pairs = zip(records, rows, strict=True)
    return [record for record, row in pairs if _meets(conditions, row)]


def side_by_side(first: Path, second: Path) -> list[dict[str, Any]]:
    """Show where two runs differ in settings, and their metrics.

    Args:
        first: Folder of a run.
        second: Folder of another.

    Returns:
        One row per setting that differs, then one per metric with the difference.

    Raises:
        DataError: One of the folders is none of a run.
    """
    one, other = read_run(first), read_run(second)
    keys = sorted((one.settings.keys() | other.settings.keys()) - _INCIDENTAL)
    settings = [(key, one.settings.get(key), other.settings.get(key)) for key in keys]
    entries = [
        ("expid", one.expid, other.expid),
        *(entry for entry in settings if entry[1] != entry[2]),
        ("parameters", one.parameters, other.parameters),
    ]
    for split in ("valid", "test"):
        a, b = getattr(one, split), getattr(other, split)
        entries += [(f"{split} {name}", a.get(name), b.get(name)) for name in {**a, **b}]
    return [
        {
            "": name,
            "first": a,
            "second": b,
            "second - first": b - a if is_number(a) and is_number(b) else None,
        }
        for name, a, b in entries
    ]


def paired_tests(records: Iterable[RunRecord], first: str, second: str) -> list[dict[str, Any]]:
    """Test whether two experiments differ, over the seeds under which both were run.

    The paired t-test asks for differences that are about normal; Wilcoxon's signed-rank test does
    not, and needs six seeds before it can fall below 0.05.

    Args:
        records: Runs, those of the two among them; of a seed's finished runs the latest counts.
        first: Expid of one experiment.
        second: Expid of the other.

    Returns:
        One row per test metric: number of seeds, mean of each, mean and sample deviation of the
        difference (first minus second), and the two-sided p of both tests.

    Raises:
        SettingsError: An expid has no finished run, or they share fewer than two seeds.
    """
    from scipy.stats import ttest_rel, wilcoxon  # takes most of a second

    finished = sorted((r for r in records if r.status == "finished"), key=lambda r: r.started)
    found = {
        expid: {r.settings["seed"]: r for r in finished if r.expid == expid}
        for expid in (first, second)
    }
    for expid, runs in found.items():
        if not runs:
            raise SettingsError(unknown("finished expid", expid, {r.expid for r in finished}))
    seeds = sorted(found[first].keys() & found[second].keys())
    if len(seeds) < 2:
        raise SettingsError(
            f"{first} and {second} have {len(seeds)} seed in common, a paired test needs 2: run "
            "both under the same seeds (--set seed=…, or fuxictr tune --seeds)"
        )
    rows = []
    for metric in found[first][seeds[0]].test:
        one, other = (
            [found[expid][seed].test.get(metric, math.nan) for seed in seeds]
            for expid in (first, second)
        )
        differences = [a - b for a, b in zip(one, other, strict=True)]
        equal = not any(differences)
        alike = equal or math.isclose(statistics.stdev(differences), 0, abs_tol=1e-15)
        rows.append(
            {
                "metric": f"test {metric}",
                "seeds": len(seeds),
                first: statistics.fmean(one),
                second: statistics.fmean(other),
                "difference": statistics.fmean(differences),
                "std": statistics.stdev(differences),
                # Both are undefined where nothing varies.
                "p (paired t)": None if alike else float(ttest_rel(one, other).pvalue),
                "p (Wilcoxon)": None if equal else float(wilcoxon(one, other).pvalue),
            }
        )
    return rows


def _rows(records: Sequence[RunRecord]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the names of the columns, and a row per run, with its settings beside them."""
    found = [_row(record) for record in records]
    shown = columns_of(found)
    # A run has the settings that its configuration gives: others may lack some of them.
    empty = dict.fromkeys([*columns_of([record.settings for record in records]), *shown])
    pairs = zip(records, found, strict=True)
    return shown, [{**empty, **record.settings, **row} for record, row in pairs]


def _row(record: RunRecord) -> dict[str, Any]:
    settings = record.settings
    return {
        "expid": record.expid,
        "model": settings.get("model"),
        "dataset_id": settings.get("dataset_id"),
        "seed": settings.get("seed"),
        "status": record.status,
        **{f"valid.{name}": value for name, value in record.valid.items()},
        **{f"test.{name}": value for name, value in record.test.items()},
        "parameters": record.parameters,
        "evaluations": len(record.evaluations),
        "seconds": round(record.seconds.get("total", 0.0)),
        "started": record.started,
        "folder": str(record.folder),
    }


def _value(row: Row, name: str) -> Any:
    if name not in row:
        raise SettingsError(unknown("column or setting", name, row))
    return row[name]


def _meets(conditions: Iterable[str], row: Row) -> bool:
    return all(_holds(condition, row) for condition in conditions)


def _holds(condition: str, row: Row) -> bool:
    match = _CONDITION.fullmatch(condition)
    if match is None:
        raise SettingsError(f"{condition!r} is no condition: write 'expid=*_frappe' or 'c>=0.8'")
    name, operator, wanted = match.groups()
    found = _value(row, name)
    if operator in ("=", "!="):
        return _equal(found, wanted) == (operator == "=")
    try:
        return found is not None and _ORDER[operator](float(found), float(wanted))
    except (TypeError, ValueError):
        raise SettingsError(f"{condition!r}: {operator} compares numbers, not {found!r}") from None


def _equal(found: Any, wanted: str) -> bool:
    if fnmatch.fnmatchcase(str(found), wanted):
        return True
    try:
        return found == parse_yaml(wanted)
    except yaml.YAMLError:
        return False


def _sort_key(value: Any) -> tuple[bool, float, str]:
    return (not is_number(value), float(value) if is_number(value) else 0.0, str(value))
