"""``fuxictr compare``, ``explain``, ``report``, ``results``, ``submit``: judge finished runs."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.cli.options import SEED, whole_number


def add_commands(commands: Any) -> None:
    """Add the commands to the parser's."""
    _add_compare(commands)
    _add_explain(commands)
    _add_report(commands)
    _add_results(commands)
    _add_submit(commands)


def _add_compare(commands: Any) -> None:
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


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser(
        "explain",
        help="what each field is worth to a finished run",
        description="Permute the values of each field among a run's test rows and say what AUC and "
        "logloss lose, for a twin by encoder and gate. Kept as explanation.json in the run's "
        "folder, where fuxictr report finds it.",
    )
    explain.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    explain.add_argument(
        "--pairs", nargs="+", default=[], metavar="A,B", help="fields to permute together as well"
    )
    explain.add_argument(
        "--rows",
        type=whole_number(4, 10**9),
        default=100_000,
        metavar="N",
        help="test rows to score, from the first (default: 100000)",
    )
    explain.add_argument(
        "--seed", type=SEED, default=0, help="seed of the permutations (default: 0)"
    )
    explain.add_argument("--json", action="store_true", help="print JSON instead of a table")
    explain.set_defaults(call=_explain)


def _add_report(commands: Any) -> None:
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
        "--resamples",
        type=whole_number(1, 10**6),
        default=1000,
        metavar="N",
        help="resamples (default: 1000)",
    )
    command.add_argument("--seed", type=SEED, default=0, help="seed of the resamples (default: 0)")


def _compare(arguments: argparse.Namespace) -> int:
    from fuxictr_tf4ctr.analysis.compare import compare_runs

    comparison = compare_runs(
        arguments.first, arguments.second, arguments.resamples, arguments.seed
    )
    print(json.dumps(comparison.as_json(), indent=2) if arguments.json else comparison)
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from fuxictr_tf4ctr.analysis.report.importance import explain_run
    from fuxictr_tf4ctr.analysis.results import as_text
    from fuxictr_tf4ctr.errors import SettingsError

    pairs = [tuple(pair.split(",")) for pair in arguments.pairs]
    for pair in pairs:
        if len(pair) != 2:
            raise SettingsError(f"--pairs {','.join(pair)}: two fields, joined by a comma")
    found = explain_run(arguments.run, pairs, arguments.rows, arguments.seed)
    if arguments.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        print(f"{found.rows:,} test rows; 95% intervals\n")
        print(as_text([importance.row() for importance in found.importances]), end="")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from fuxictr_tf4ctr.analysis.report import write_report

    write_report(arguments.runs, arguments.output, arguments.resamples, arguments.seed)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:,.0f} kB")
    return 0


def _add_results(commands: Any) -> None:
    results = commands.add_parser(
        "results",
        help="tabulate runs, or compare two",
        description="Tabulate all runs under a folder; compare two runs, or two experiments over "
        "their seeds.",
    )
    results.add_argument(
        "folder", nargs="?", type=Path, default=Path("checkpoints"),
        help="where to look for runs (default: ./checkpoints)",
    )  # fmt: skip
    results.add_argument(
        "--where", action="append", default=[], metavar="CONDITION",
        help="only runs for which this holds: 'expid=*_frappe', 'test.AUC>0.98', 'status!=failed'; "
        "any setting may be named",
    )  # fmt: skip
    results.add_argument("--sort", metavar="COLUMN", help="sort by a column (default: started)")
    results.add_argument("--descending", action="store_true", help="greatest first")
    results.add_argument(
        "--columns", nargs="+", default=[], metavar="SETTING", help="show these settings too"
    )
    results.add_argument(
        "--format", default="text", choices=("text", "csv", "markdown", "json"), help="form"
    )
    results.add_argument(
        "--compare", nargs=2, type=Path, metavar="RUN",
        help="folders of two runs, whose settings and metrics to show side by side",
    )  # fmt: skip
    results.add_argument(
        "--paired", nargs=2, metavar="EXPID",
        help="two experiments to test against each other, paired by seed",
    )  # fmt: skip
    results.set_defaults(call=_results)


def _results(arguments: argparse.Namespace) -> int:
    from fuxictr_tf4ctr.analysis import results
    from fuxictr_tf4ctr.analysis.results import FORMATS

    if arguments.compare:
        rows = results.side_by_side(*arguments.compare)
    elif arguments.paired:
        rows = results.paired_tests(results.read_runs(arguments.folder), *arguments.paired)
    else:
        rows = results.table(
            results.read_runs(arguments.folder),
            arguments.where,
            arguments.sort,
            arguments.descending,
            arguments.columns,
        )
    print(FORMATS[arguments.format](rows), end="")
    return 0


def _add_submit(commands: Any) -> None:
    submit = commands.add_parser(
        "submit",
        help="make a BARS leaderboard folder of a run or a sweep",
        description="Check a finished run, or the best settings of a sweep with all their seeds, "
        "against the rules of the BARS leaderboard, and write the folder to submit.",
    )
    submit.add_argument("source", type=Path, help="folder of a run or of a sweep")
    submit.add_argument(
        "--to", type=Path, default=Path("bars"), metavar="DIR",
        help="checkout of BARS, or a folder to begin one (default: ./bars)",
    )  # fmt: skip
    submit.add_argument("--expid", help="of a sweep: this experiment (default: the best)")
    submit.add_argument(
        "--contributor", default="", metavar="NAME", help="who submits, 'Name' or 'Name <URL>'"
    )
    submit.add_argument(
        "--draft", action="store_true", help="write the folder, marked, even if rules are broken"
    )
    submit.set_defaults(call=_submit)


def _submit(arguments: argparse.Namespace) -> int:
    from fuxictr_tf4ctr.leaderboard import submit

    submission = submit(
        arguments.source, arguments.to, arguments.expid, arguments.contributor, arguments.draft
    )
    for problem in submission.problems:
        print(f"fuxictr: not acceptable: {problem}", file=sys.stderr)
    for note in submission.notes:
        print(f"note   {note}")
    print(f"folder {submission.folder}")
    print(f"row    {submission.leaderboard_row}")
    return 0
