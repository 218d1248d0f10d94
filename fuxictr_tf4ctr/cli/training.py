"""``fuxictr run``, ``plan`` and ``tune``: train one experiment, or many of a tuner file."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fuxictr_tf4ctr.cli.options import (
    ABOVE_ZERO,
    CONFIG,
    GPU,
    PROCESSES,
    ZOO,
    check_engine,
    choice,
    command,
    engine,
    flag,
    number,
    only_for,
    option,
    overrides,
    parse_overrides,
    whole_number,
)

if TYPE_CHECKING:
    from fuxictr_tf4ctr.runs.records import RunRecord


@command(
    "run",
    "train and evaluate one experiment",
    option("--expid", required=True, help="the experiment; 'fuxictr list' shows them"),
    CONFIG,
    number("--gpu", "index of the GPU, -1 for the CPU (default: -1)", GPU),
    overrides("--set epochs=5 --set 'metrics=[AUC]'"),
    option(
        "--output", metavar="DIR", help="folder of the runs (default: model_root, ./checkpoints)"
    ),
    option(
        "--resume", nargs="?", type=Path, const=True, default=False, metavar="RUN",
        help="go on with an unfinished run: the folder given, or the expid's latest",
    ),
    option(
        "--continue-from", type=Path, metavar="RUN",
        help="train on from a finished run: its weights, its vocabularies grown by new values",
    ),
    number(
        "--workers",
        "processes that train together, each with its share of every batch (default: 1)",
        PROCESSES,
    ),
    number(
        "--max-restarts",
        "with --workers: how often to go on from the last checkpoint when one fails",
        whole_number(0),
        0,
    ),
    option(
        "--timeout", type=ABOVE_ZERO, metavar="SECONDS",
        help="with several workers: how long one waits for the others before it gives up "
        "(default: 300 to join, 1800 in training)",
    ),
    engine("start the workers by PyTorch's launcher, or by Ray Train on a cluster"),
)  # fmt: skip
def _run(arguments: argparse.Namespace) -> int:
    """Train and evaluate one experiment.

    The first run on a data set encodes it.
    """
    from fuxictr_tf4ctr.distributed.joining import (
        joined_ranks,
        launch,
        local_rank,
        started_by_launcher,
    )
    from fuxictr_tf4ctr.runs.experiment import check_workers, run_as_rank
    from fuxictr_tf4ctr.settings.reading import load_settings

    given = parse_overrides(arguments.overrides)
    if arguments.gpu is not None:
        given["gpu"] = arguments.gpu
    if arguments.output is not None:
        given["model_root"] = arguments.output
    if arguments.continue_from is not None:
        given["continue_from"] = str(arguments.continue_from.resolve())
    check_engine(arguments)
    if arguments.engine == "local" and arguments.workers is None:
        only_for(arguments, "--workers", "--max-restarts")
    if arguments.engine == "ray":
        from fuxictr_tf4ctr.engines.ray.runs import Request, train_on_ray

        request = Request(arguments.expid, arguments.config, given, arguments.zoo, arguments.resume)
        workers = 1 if arguments.workers is None else arguments.workers
        restarts, timeout = arguments.max_restarts, arguments.timeout
        _print(train_on_ray(request, workers, restarts, timeout, arguments.address))
        return 0
    settings = load_settings(arguments.expid, arguments.config, given, arguments.zoo)
    if not started_by_launcher() and arguments.workers is not None:
        check_workers(settings, arguments.workers)
        return launch(arguments.argv, arguments.workers, arguments.max_restarts)
    on_gpu = settings["gpu"] >= 0
    if started_by_launcher() and on_gpu:
        given["gpu"] = local_rank()
        settings = load_settings(arguments.expid, arguments.config, given, arguments.zoo)
    with joined_ranks(on_gpu, arguments.timeout) as ranks:
        record = run_as_rank(settings, arguments.resume, ranks)
    if ranks.leads:
        _print(record)
    return 0


@command(
    "plan",
    "what an experiment needs of every rank, before any job starts",
    option("expid", metavar="EXPID", help="the experiment; 'fuxictr list' shows them"),
    CONFIG,
    overrides("--set table_sharding=row_wise"),
    number("--workers", "ranks that train together", PROCESSES, 1),
    number("--hosts", "hosts they are on", PROCESSES, 1),
    option(
        "--gpu-memory",
        type=ABOVE_ZERO,
        metavar="GB",
        help="memory of a rank: say what does not fit",
    ),
)
def _plan(arguments: argparse.Namespace) -> int:
    """Compute what an experiment needs: memory of a rank, bytes over the network, time of a step.

    Tables take no memory here, however large; the data set must be encoded. Exit status 1: it does
    not fit into --gpu-memory.
    """
    from fuxictr_tf4ctr.runs.plan import plan
    from fuxictr_tf4ctr.settings.reading import RUNS_ELSEWHERE, load_settings

    settings = load_settings(
        arguments.expid,
        arguments.config,
        parse_overrides(arguments.overrides),
        arguments.zoo,
        RUNS_ELSEWHERE,
    )
    found = plan(settings, arguments.workers, arguments.hosts)
    print("\n".join(found.lines()))
    problem = found.problem(1e9 * (arguments.gpu_memory or float("inf")))
    if problem is not None:
        print(f"fuxictr: {settings.expid} does not fit: {problem}", file=sys.stderr)
    return 1 if problem else 0


def _print(record: "RunRecord") -> None:
    from fuxictr_tf4ctr.runs.records import metrics_line

    print(f"{record.expid}: {record.parameters:,} parameters, {record.seconds['total']:.1f} s")
    for split, metrics in (("valid", record.valid), ("test", record.test)):
        if metrics:
            print(f"{split:>5}  {metrics_line(metrics)}")
    print(f"  run  {record.folder}")


@command(
    "tune",
    "search hyper-parameters by a FuxiCTR tuner file",
    option(
        "--config", required=True, metavar="FILE",
        help="the tuner file (YAML), or a folder of experiments that lists them all",
    ),
    option("--expid", help="experiment to vary (default: the file's base_expid)"),
    ZOO,
    option(
        "--output", metavar="DIR",
        help="folder of the sweep (default: sweeps/<name of FILE>, EXPID before it)",
    ),
    option(
        "--gpu", type=GPU, nargs="+", default=[-1], metavar="N",
        help="GPUs to use, -1 for the CPU (default: -1)",
    ),
    number("--workers", "runs at once (default: one per device)", PROCESSES),
    flag("--resume", "make what is missing of the sweep"),
    option(
        "--tag", nargs="+", default=[], metavar="PART",
        help="only expids with this part between underscores: 007, or 007_1a2b3c4d",
    ),
    option("--exclude", nargs="+", default=[], metavar="PART", help="no expids with this part"),
    number("--max-points", "refuse a larger grid", default=300),
    choice("--search", ("grid", "tpe", "random"), "all points, or those Optuna chooses"),
    number("--trials", "points to choose", default=30),
    flag("--no-prune", "let hopeless runs of a search go on to their end"),
    number("--seeds", "repeat the best settings, so many seeds in all", default=1),
    number("--best", "with --seeds: how many settings", default=1),
    engine("run on this machine, or as trials of Ray Tune on a cluster"),
)  # fmt: skip
def _tune(arguments: argparse.Namespace) -> int:
    """Run the experiments of a FuxiCTR tuner file in parallel and rank them by the monitored metric
    on the validation data.

    Exit status 1: some runs failed; --resume makes what is missing.
    """
    from fuxictr_tf4ctr.analysis.results import as_text
    from fuxictr_tf4ctr.sweep import SweepOptions, run_sweep

    check_engine(arguments)
    if arguments.search == "grid":
        only_for(arguments, "--search tpe or random", "--trials", "--no-prune")
    else:
        only_for(arguments, "--search grid", "--tag", "--exclude", "--max-points")
    if arguments.seeds == 1:
        only_for(arguments, "--seeds 2 or more", "--best")
    carrier = None
    if arguments.engine == "ray":
        from fuxictr_tf4ctr.engines.ray.runs import RayTrials

        carrier = partial(RayTrials, address=arguments.address)
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
            carrier=carrier,
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
