"""``fuxictr compare`` and ``fuxictr report``: judge finished runs."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add ``compare`` and ``report`` to the parser's commands."""
    compare = commands.add_parser(
        "compare",
        help="compare two finished runs on the same test rows",
        description="Compare two finished runs on the same test rows: metrics with paired "
        "bootstrap intervals, DeLong's test of the AUCs, speed and size.",
    )
    compare.add_argument("first", type=Path, metavar="A", help="folder of a run")
    compare.add_argument("second", type=Path, metavar="B", help="folder of the run to compare")
    _add_resamples(compare)
    compare.add_argument("--json", action="store_true", help="print JSON instead of a table")
    compare.set_defaults(call=_compare)

    report = commands.add_parser(
        "report",
        help="draw finished runs as one self-contained HTML page",
        description="Draw finished runs as one self-contained HTML page. The first run is its "
        "subject; the second, its base model, say, is what it is measured against.",
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    report.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page to write (default: report.html)",
    )
    _add_resamples(report)
    report.set_defaults(call=_report)


def _add_resamples(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="resamples (default: 1000)"
    )
    command.add_argument("--seed", type=int, default=0, help="seed of the resamples (default: 0)")


def _compare(arguments: argparse.Namespace) -> int:
    from fuxictr_tf4ctr.analysis.compare import compare_runs

    comparison = compare_runs(
        arguments.first, arguments.second, arguments.resamples, arguments.seed
    )
    print(json.dumps(comparison.as_json(), indent=2) if arguments.json else comparison)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from fuxictr_tf4ctr.analysis.report import write_report

    write_report(arguments.runs, arguments.output, arguments.resamples, arguments.seed)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:,.0f} kB")
    return 0
