"""``fuxictr tune``, ``results`` and ``submit``: many runs and what comes of them."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.cli.options import add_engine, check_engine


def add_commands(commands: Any) -> None:
    """Add the commands on many runs to the parser's commands."""
    _add_tune(commands)
    _add_results(commands)
    _add_submit(commands)


def _add_tune(commands: Any) -> None:
    tune = commands.add_parser(
        "tune",
        help="search hyper-parameters by a FuxiCTR tuner file",
        description="Run the experiments of a FuxiCTR tuner file in parallel and rank them by the "
        "monitored metric on the validation data. Exit status 1: some runs failed; --resume "
        "makes what is missing.",
    )
    tune.add_argument("--config", required=True, metavar="FILE", help="the tuner file (YAML)")
    tune.add_argument("--expid", help="experiment to vary (default: the file's base_expid)")
    tune.add_argument(
        "--zoo", metavar="DIR", help="FuxiCTR checkout with more models (default: $FUXICTR_HOME)"
    )
    tune.add_argument(
        "--output",
        metavar="DIR",
        help="folder of the sweep (default: sweeps/<name of FILE>, EXPID before it)",
    )
    tune.add_argument(
        "--gpu", type=int, nargs="+", default=[-1], metavar="N",
        help="GPUs to use, -1 for the CPU (default: -1)",
    )  # fmt: skip
    tune.add_argument(
        "--workers", type=int, metavar="N", help="runs at once (default: one per device)"
    )
    tune.add_argument("--resume", action="store_true", help="make what is missing of the sweep")
    tune.add_argument(
        "--tag", nargs="+", default=[], metavar="PART",
        help="only expids with this part between underscores: 007, or 007_1a2b3c4d",
    )  # fmt: skip
    tune.add_argument(
        "--exclude", nargs="+", default=[], metavar="PART", help="no expids with this part"
    )
    tune.add_argument(
        "--max-points", type=int, default=300, metavar="N",
        help="refuse a larger grid (default: 300)",
    )  # fmt: skip
    tune.add_argument(
        "--search", default="grid", choices=("grid", "tpe", "random"),
        help="all points, or those Optuna chooses (default: grid)",
    )  # fmt: skip
    tune.add_argument(
        "--trials", type=int, default=30, metavar="N", help="points to choose (default: 30)"
    )
    tune.add_argument(
        "--no-prune", action="store_true", help="let hopeless runs of a search go on to their end"
    )
    tune.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="repeat the best settings, N seeds in all"
    )
    tune.add_argument(
        "--best", type=int, default=1, metavar="K", help="how many settings (default: 1)"
    )
    add_engine(tune, "run on this machine, or as trials of Ray Tune on a cluster")
    tune.set_defaults(call=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    from fuxictr_tf4ctr.analysis.tables import as_text
    from fuxictr_tf4ctr.sweep import SweepOptions, run_sweep

    check_engine(arguments)
    result = run_sweep(
        SweepOptions(
            file=arguments.config,
            expid=arguments.expid,
            output=arguments.output,
            devices=arguments.gpu,
            workers=arguments.workers,
            resume=arguments.resume,
            tags=arguments.tag,
            excluded=arguments.exclude,
            max_points=arguments.max_points,
            search=arguments.search,
            trials=arguments.trials,
            prune=not arguments.no_prune,
            seeds=arguments.seeds,
            best=arguments.best,
            checkout=arguments.zoo,
            carrier=_ray_trials(arguments.address) if arguments.engine == "ray" else None,
        )
    )
    if result.ranking:
        print(as_text(result.ranking[:10]), end="")
    if result.seeds:
        print(as_text(result.seeds), end="")
    print(f"sweep  {result.folder.path}")
    for expid, reason in result.failures.items():
        print(f"fuxictr: {expid} did not finish: {reason}", file=sys.stderr)
    return 1 if result.failures else 0


def _ray_trials(address: str | None) -> Any:
    from fuxictr_tf4ctr.engines.ray.sweeping import RayTrials

    return partial(RayTrials, address=address)


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
    from fuxictr_tf4ctr.analysis.tables import FORMATS

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
