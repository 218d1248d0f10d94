"""``fuxictr evaluate``, ``predict`` and ``export``: a run's model on new rows."""

import argparse
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.cli.options import ABOVE_ZERO, add_run, given_run


def add_commands(commands: Any) -> None:
    """Add ``evaluate``, ``predict`` and ``export`` to the parser's commands."""
    _add_evaluate(commands)
    _add_predict(commands)
    _add_export(commands)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="compute a run's metrics on its own or on new data",
        description="Compute a run's metrics on a split of its own data, or on new raw data.",
    )
    add_run(evaluate)
    data = evaluate.add_mutually_exclusive_group()
    data.add_argument(
        "--split", default="test", choices=("train", "valid", "test"), help="default: test"
    )
    data.add_argument(
        "--input", metavar="PATH", help="raw csv or parquet with the label: file, folder or pattern"
    )
    _add_skipping(evaluate)
    evaluate.set_defaults(call=_evaluate)


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="score new rows",
        description="Score raw rows, encoded with the run's own vocabularies, in their order.",
    )
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
    predict.set_defaults(call=_predict)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="export a run's model to ONNX or torch.export",
        description="Export a run's model with its vocabularies, a manifest and a scoring script. "
        "Refuses where the exported model scores the run's data otherwise.",
    )
    add_run(export, device=False)
    export.add_argument("--format", default="onnx", choices=("onnx", "torch"), help="default: onnx")
    export.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to make")
    export.add_argument(
        "--tolerance",
        type=ABOVE_ZERO,
        default=1e-5,
        help="largest difference allowed (default: 1e-5)",
    )
    export.set_defaults(call=_export, gpu=-1)


def _add_skipping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="leave bad rows out and count them, instead of ending at the first",
    )


def _evaluate(arguments: argparse.Namespace) -> int:
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
    from fuxictr_tf4ctr.serving.predict import predict_files

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
    from fuxictr_tf4ctr.serving.export import export_run

    run = given_run(arguments)
    done = export_run(run, arguments.output, arguments.format, arguments.tolerance)
    print(f"{done.rows:,} rows scored alike: largest difference {done.difference:.3g}")
    print(f"export  {done.folder} ({done.bytes / 1e6:.1f} MB)")
    return 0
