"""``fuxictr run``: train and evaluate one experiment."""

import argparse
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.cli.options import add_config, add_overrides, parse_overrides


def add_commands(commands: Any) -> None:
    """Add ``run`` to the parser's commands."""
    run = commands.add_parser(
        "run",
        help="train and evaluate one experiment",
        description="Train and evaluate one experiment. The first run on a data set encodes it.",
    )
    run.add_argument("--expid", required=True, help="the experiment; 'fuxictr list' shows them")
    add_config(run)
    run.add_argument(
        "--gpu", type=int, metavar="N", help="index of the GPU, -1 for the CPU (default: -1)"
    )
    add_overrides(run, "--set epochs=5 --set 'metrics=[AUC]'")
    run.add_argument(
        "--output", metavar="DIR", help="folder of the runs (default: model_root, ./checkpoints)"
    )
    run.add_argument(
        "--resume",
        nargs="?",
        type=Path,
        const=True,
        default=False,
        metavar="RUN",
        help="go on with an unfinished run: the folder given, or the expid's latest",
    )
    run.set_defaults(call=_run)


def _run(arguments: argparse.Namespace) -> int:
    from fuxictr_tf4ctr.experiment import run_experiment
    from fuxictr_tf4ctr.records import metrics_line
    from fuxictr_tf4ctr.settings import load_settings

    overrides = parse_overrides(arguments.overrides)
    if arguments.gpu is not None:
        overrides["gpu"] = arguments.gpu
    if arguments.output is not None:
        overrides["model_root"] = arguments.output
    settings = load_settings(arguments.expid, arguments.config, overrides, arguments.zoo)
    record = run_experiment(settings, arguments.resume)
    print(f"{record.expid}: {record.parameters:,} parameters, {record.seconds['total']:.1f} s")
    for split, metrics in (("valid", record.valid), ("test", record.test)):
        if metrics:
            print(f"{split:>5}  {metrics_line(metrics)}")
    print(f"  run  {record.folder}")
    return 0
