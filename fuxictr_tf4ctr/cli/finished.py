"""What is done with finished runs: scored on new rows, exported, compared, explained, reported."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.cli.options import (
    ABOVE_ZERO,
    SEED,
    add_number,
    add_run,
    command,
    given_run,
    whole_number,
)


def add_commands(commands: Any) -> None:
    """Add the commands to the parser's."""
    _add_evaluate(commands)
    _add_predict(commands)
    _add_export(commands)
    _add_merge(commands)
    _add_compare(commands)
    _add_explain(commands)
    _add_report(commands)
    _add_results(commands)
    _add_submit(commands)


def _add_evaluate(commands: Any) -> None:
    summary = "compute a run's metrics on its own or on new data"
    evaluate = command(commands, "evaluate", _evaluate, summary)
    add_run(evaluate)
    data = evaluate.add_mutually_exclusive_group()
    data.add_argument(
        "--split", default="test", choices=("train", "valid", "test"), help="default: test"
    )
    data.add_argument(
        "--input", metavar="PATH", help="raw csv or parquet with the label: file, folder or pattern"
    )
    _add_skipping(evaluate)


def _add_predict(commands: Any) -> None:
    predict = command(commands, "predict", _predict, "score new rows")
    add_run(predict)
    predict.add_argument(
        "--input", required=True, metavar="PATH", help="raw csv or parquet: file, folder or pattern"
    )
    predict.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="scores, .csv or .parquet"
    )
    predict.add_argument(
        "--keep", nargs="+", action="extend", default=[], metavar="COLUMN",
        help="columns to carry along",
    )  # fmt: skip
    predict.add_argument(
        "--streams", action="store_true", help="write y_simple and y_complex as well"
    )
    _add_skipping(predict)


def _add_export(commands: Any) -> None:
    export = command(commands, "export", _export, "export a run's model to ONNX or torch.export")
    add_run(export, device=False)
    export.add_argument("--format", default="onnx", choices=("onnx", "torch"), help="default: onnx")
    export.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to make")
    add_number(export, "--tolerance", "largest difference allowed", ABOVE_ZERO, 1e-5)
    export.add_argument(
        "--tables",
        default="fp32",
        choices=("fp32", "fp16", "int8"),
        help="numbers of the embedding tables; smaller ones are measured (default: fp32)",
    )
    export.add_argument(
        "--card", action="store_true", help="write a model card, README.md in Hugging Face's form"
    )
    export.set_defaults(gpu=-1)


def _add_skipping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="leave bad rows out and count them, instead of ending at the first",
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    """Compute a run's metrics on a split of its own data, or on new raw data."""
    from fuxictr_tf4ctr.runs.records import metrics_line
    from fuxictr_tf4ctr.runs.scoring import evaluate_files
    from fuxictr_tf4ctr.training import evaluate

    run = given_run(arguments)
    if arguments.input is None:
        print(metrics_line(evaluate(run.model, run.loader(arguments.split), run.metrics)))
        return 0
    scored = evaluate_files(run, arguments.input, arguments.skip_bad_rows)
    print("\n".join([metrics_line(scored.metrics), *scored.lines()]))
    return 0


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


def _add_merge(commands: Any) -> None:
    summary = "put a run's divided tables into one file, which FuxiCTR reads"
    merge = command(commands, "merge", _merge, summary)
    merge.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")


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


def _add_compare(commands: Any) -> None:
    summary = "compare two finished runs on the same test rows"
    compare = command(commands, "compare", _compare, summary)
    compare.add_argument("first", type=Path, metavar="A", help="folder of a run")
    compare.add_argument("second", type=Path, metavar="B", help="folder of the run to compare")
    _add_resamples(compare)
    compare.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_explain(commands: Any) -> None:
    summary = "what each field is worth to a finished run"
    explain = command(commands, "explain", _explain, summary)
    explain.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    explain.add_argument(
        "--pairs", nargs="+", default=[], metavar="A,B", help="fields to permute together as well"
    )
    rows = "test rows to score, from the first"
    add_number(explain, "--rows", rows, whole_number(4, 10**9), 100_000)
    add_number(explain, "--seed", "seed of the permutations", SEED, 0)
    explain.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_report(commands: Any) -> None:
    summary = "draw finished runs, or a sweep, as one self-contained HTML page"
    report = command(commands, "report", _report, summary)
    report.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folder of a run; or one sweep's"
    )
    report.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page to write (default: report.html)",
    )
    _add_resamples(report)


def _add_resamples(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--resamples", "resamples", whole_number(1, 10**6), 1000)
    add_number(parser, "--seed", "seed of the resamples", SEED, 0)


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


def _explain(arguments: argparse.Namespace) -> int:
    """Permute the values of each field among a run's test rows and say what AUC and logloss lose,
    for a twin by encoder and gate.

    Kept as explanation.json in the run's folder, where fuxictr report finds it.
    """
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


def _add_results(commands: Any) -> None:
    results = command(commands, "results", _results, "tabulate runs, or compare two")
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


def _results(arguments: argparse.Namespace) -> int:
    """Tabulate all runs under a folder; compare two runs, or two experiments over their seeds."""
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
    summary = "make a BARS leaderboard folder of a run or a sweep"
    submit = command(commands, "submit", _submit, summary)
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
