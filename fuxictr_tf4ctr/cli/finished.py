"""What is done with finished runs: scored on new rows, exported, compared, explained, reported."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.cli.options import (
    ABOVE_ZERO,
    GPU,
    JSON,
    RUN,
    SEED,
    ZOO,
    choice,
    command,
    flag,
    given_run,
    number,
    only_for,
    option,
    together,
    whole_number,
)

_RUN = together(RUN, number("--gpu", "index of the GPU, -1 for the CPU", GPU, -1), ZOO)
_SKIPPING = flag(
    "--skip-bad-rows", "leave bad rows out and count them, instead of ending at the first"
)
_RESAMPLES = together(
    number("--resamples", "resamples", whole_number(1, 10**6), 1000),
    number("--seed", "seed of the resamples", SEED, 0),
)


def _split_or_input(parser: Any) -> None:
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--split", default="test", choices=("train", "valid", "test"), help="default: test"
    )
    data.add_argument(
        "--input", metavar="PATH", help="raw csv or parquet with the label: file, folder or pattern"
    )


@command(
    "evaluate",
    "compute a run's metrics on its own or on new data",
    _RUN,
    _split_or_input,
    _SKIPPING,
)
def _evaluate(arguments: argparse.Namespace) -> int:
    """Compute a run's metrics on a split of its own data, or on new raw data."""
    from fuxictr_tf4ctr.runs.records import metrics_line
    from fuxictr_tf4ctr.runs.scoring import evaluate_files
    from fuxictr_tf4ctr.training import evaluate

    if arguments.input is None:
        only_for(arguments, "--input", "--skip-bad-rows")
    run = given_run(arguments)
    if arguments.input is None:
        print(metrics_line(evaluate(run.model, run.loader(arguments.split), run.metrics)))
        return 0
    scored = evaluate_files(run, arguments.input, arguments.skip_bad_rows)
    print("\n".join([metrics_line(scored.metrics), *scored.lines()]))
    return 0


@command(
    "predict",
    "score new rows",
    _RUN,
    option(
        "--input", required=True, metavar="PATH", help="raw csv or parquet: file, folder or pattern"
    ),
    option("--output", required=True, type=Path, metavar="FILE", help="scores, .csv or .parquet"),
    option(
        "--keep", nargs="+", action="extend", default=[], metavar="COLUMN",
        help="columns to carry along",
    ),
    flag("--streams", "write y_simple and y_complex as well"),
    _SKIPPING,
)  # fmt: skip
def _predict(arguments: argparse.Namespace) -> int:
    """Score raw rows, encoded with the run's own vocabularies, in their order."""
    from fuxictr_tf4ctr.runs.scoring import predict_files

    scored = predict_files(
        given_run(arguments),
        arguments.input,
        arguments.output,
        list(dict.fromkeys(arguments.keep)),
        arguments.streams,
        arguments.skip_bad_rows,
    )
    print("\n".join([*scored.lines(), f"scores  {arguments.output}"]))
    return 0


@command(
    "export",
    "export a run's model to ONNX or torch.export",
    RUN,
    ZOO,
    choice("--format", ("onnx", "torch"), "form"),
    option("--output", required=True, type=Path, metavar="DIR", help="folder to make"),
    number("--tolerance", "largest difference allowed", ABOVE_ZERO, 1e-5),
    choice(
        "--tables",
        ("fp32", "fp16", "int8"),
        "numbers of the embedding tables; smaller ones are measured",
    ),
    flag("--card", "write a model card, README.md in Hugging Face's form"),
    lambda parser: parser.set_defaults(gpu=-1),
)
def _export(arguments: argparse.Namespace) -> int:
    """Export a run's model with its vocabularies, a manifest and a scoring script.

    Refuses where the exported model scores the run's data otherwise.
    """
    from fuxictr_tf4ctr.files import write_whole
    from fuxictr_tf4ctr.runs.records import metrics_line
    from fuxictr_tf4ctr.serving.export import export_run

    run = given_run(arguments)
    done = export_run(
        run, arguments.output, arguments.format, arguments.tolerance, arguments.tables
    )
    if arguments.card:
        from fuxictr_tf4ctr.analysis.card import model_card

        write_whole(done.folder / "README.md", model_card(run, done))
    print(f"{done.rows:,} rows scored alike: largest difference {done.difference:.3g}")
    for name, metrics in done.metrics.items():
        tables = done.tables if name == "rounded" else name
        print(f"{tables:<7} {metrics_line(metrics)}")
    print(f"export  {done.folder} ({done.bytes / 1e6:.1f} MB)")
    return 0


@command(
    "merge",
    "put a run's divided tables into one file, which FuxiCTR reads",
    option("run", type=Path, metavar="RUN", help="folder of a finished run"),
)
def _merge(arguments: argparse.Namespace) -> int:
    """Put the tables that table_sharding divided into the file of the run's other weights, which
    FuxiCTR reads then.

    It takes memory for the other weights alone, and disk for the tables twice. Other commands read
    divided tables too.
    """
    from fuxictr_tf4ctr.runs.loading import merge_run

    path, divided = merge_run(arguments.run)
    done = "merged" if divided else "whole already"
    print(f"{path}: {done}, {path.stat().st_size / 1e6:,.1f} MB")
    return 0


@command(
    "compare",
    "compare two finished runs on the same test rows",
    option("first", type=Path, metavar="A", help="folder of a run"),
    option("second", type=Path, metavar="B", help="folder of the run to compare"),
    _RESAMPLES,
    JSON,
)
def _compare(arguments: argparse.Namespace) -> int:
    """Compare two finished runs on the same test rows: metrics with paired bootstrap intervals,
    DeLong's test of the AUCs, speed and size.
    """
    from fuxictr_tf4ctr.analysis.compare import compare_runs

    comparison = compare_runs(
        arguments.first, arguments.second, arguments.resamples, arguments.seed
    )
    print(json.dumps(comparison.as_json(), indent=2) if arguments.json else comparison)
    return 0


@command(
    "explain",
    "what each field is worth to a finished run",
    option("run", type=Path, metavar="RUN", help="folder of a run"),
    option(
        "--pairs", nargs="+", default=[], metavar="A,B", help="fields to permute together as well"
    ),
    number("--rows", "test rows to score, from the first", whole_number(4, 10**9), 100_000),
    number("--seed", "seed of the permutations", SEED, 0),
    JSON,
)
def _explain(arguments: argparse.Namespace) -> int:
    """Permute the values of each field among a run's test rows and say what AUC and logloss lose,
    for a twin by encoder and gate.

    Kept as explanation.json in the run's folder, where fuxictr report finds it.
    """
    from fuxictr_tf4ctr.analysis.report.importance import explain_run, table_row
    from fuxictr_tf4ctr.analysis.results import as_text
    from fuxictr_tf4ctr.errors import SettingsError

    pairs = [tuple(pair.split(",")) for pair in arguments.pairs]
    for pair in pairs:
        if len(pair) != 2:
            raise SettingsError(f"--pairs {','.join(pair)}: two fields, joined by a comma")
    found = explain_run(arguments.run, pairs, arguments.rows, arguments.seed)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{found['rows']:,} test rows; 95% intervals\n")
        print(as_text([table_row(each) for each in found["importances"]]), end="")
    return 0


@command(
    "report",
    "draw finished runs, or a sweep, as one self-contained HTML page",
    option("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run; or one sweep's"),
    option(
        "--output", type=Path, default=Path("report.html"), metavar="FILE",
        help="the page to write (default: report.html)",
    ),
    _RESAMPLES,
)  # fmt: skip
def _report(arguments: argparse.Namespace) -> int:
    """Draw finished runs as one self-contained HTML page.

    The first run is its subject; the second, its base model, say, is what it is measured against.
    Of a sweep: its history, the importance of its keys, and its runs as parallel coordinates.
    """
    from fuxictr_tf4ctr.analysis.report import make_report, write_page
    from fuxictr_tf4ctr.sweep.pictures import sweep_page

    runs = arguments.runs
    if (runs[0] / "sweep.json").is_file() and len(runs) == 1:
        make = partial(sweep_page, runs[0])
    else:
        make = partial(make_report, runs, arguments.resamples, arguments.seed)
    write_page(arguments.output, make)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:,.0f} kB")
    return 0


def _two_of_them(parser: Any) -> None:
    two = parser.add_mutually_exclusive_group()
    two.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar="RUN",
        help="folders of two runs, whose settings and metrics to show side by side",
    )
    two.add_argument(
        "--paired",
        nargs=2,
        metavar="EXPID",
        help="two experiments to test against each other, paired by seed",
    )


@command(
    "results",
    "tabulate runs, or compare two",
    option(
        "folder", nargs="?", type=Path, default=Path("checkpoints"),
        help="where to look for runs (default: ./checkpoints)",
    ),
    option(
        "--where", action="append", default=[], metavar="CONDITION",
        help="only runs for which this holds: 'expid=*_frappe', 'test.AUC>0.98', 'status!=failed'; "
        "any setting may be named",
    ),
    option("--sort", metavar="COLUMN", help="sort by a column (default: started)"),
    flag("--descending", "greatest first"),
    option("--columns", nargs="+", default=[], metavar="SETTING", help="show these settings too"),
    choice("--format", ("text", "csv", "markdown", "json"), "form"),
    _two_of_them,
)  # fmt: skip
def _results(arguments: argparse.Namespace) -> int:
    """Tabulate all runs under a folder; compare two runs, or two experiments over their seeds."""
    from fuxictr_tf4ctr.analysis import results
    from fuxictr_tf4ctr.analysis.results import FORMATS

    columns = ("--sort", "--descending", "--columns")
    if arguments.compare:
        mend = "leave out these, or --compare"
        only_for(arguments, "the table of all runs", "--where", *columns, mend=mend)
        rows = results.side_by_side(*arguments.compare)
    elif arguments.paired:
        only_for(arguments, "the table of all runs", *columns, mend="leave out these, or --paired")
        found = results.matching(results.read_runs(arguments.folder), arguments.where)
        rows = results.paired_tests(found, *arguments.paired)
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


@command(
    "submit",
    "make a BARS leaderboard folder of a run or a sweep",
    option("source", type=Path, help="folder of a run or of a sweep"),
    option(
        "--to", type=Path, default=Path("bars"), metavar="DIR",
        help="checkout of BARS, or a folder to begin one (default: ./bars)",
    ),
    option("--expid", help="of a sweep: this experiment (default: the best)"),
    option(
        "--contributor", default="", metavar="NAME", help="who submits, 'Name' or 'Name <URL>'"
    ),
    flag("--draft", "write the folder, marked, even if rules are broken"),
)  # fmt: skip
def _submit(arguments: argparse.Namespace) -> int:
    """Check a finished run, or the best settings of a sweep with all their seeds, against the rules
    of the BARS leaderboard, and write the folder to submit.
    """
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
