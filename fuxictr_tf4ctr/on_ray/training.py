"""One experiment by several ranks that Ray Train starts, watches and starts again."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from fuxictr_tf4ctr.distributed import joined_ranks
from fuxictr_tf4ctr.errors import EngineError, UserError
from fuxictr_tf4ctr.experiment import check_workers, run_experiment
from fuxictr_tf4ctr.on_ray.cluster import connected, in_folder
from fuxictr_tf4ctr.records import RunRecord, read_run
from fuxictr_tf4ctr.resume import runs_of, unfinished_runs
from fuxictr_tf4ctr.settings import load_settings


@dataclass(frozen=True)
class Request:
    """What to run: the arguments of :func:`load_settings`, and what to resume.

    Attributes:
        expid: The experiment.
        config: Folder of the configuration.
        overrides: Settings that replace those of the configuration.
        checkout: Root of a FuxiCTR checkout.
        resume: As :func:`run_experiment` takes it.
    """

    expid: str
    config: str | None
    overrides: Mapping[str, Any]
    checkout: str | None
    resume: bool | Path


def train_on_ray(
    request: Request, workers: int, max_restarts: int, address: str | None
) -> RunRecord:
    """Train and evaluate one experiment on a Ray cluster.

    Args:
        request: The experiment.
        workers: Ranks, each on a core or, where the settings name a GPU, on a GPU.
        max_restarts: How often all ranks start again, from the last checkpoint, when one fails.
        address: The cluster; see :func:`connected`.

    Raises:
        UserError: What a rank raised, or :class:`EngineError` where ranks were lost too often.
    """
    settings = load_settings(request.expid, request.config, request.overrides, request.checkout)
    check_workers(settings, workers)
    on_gpu = settings["gpu"] >= 0
    known = [str(folder) for folder in runs_of(settings)]
    job = {**asdict(request), "folder": os.getcwd(), "known": known}
    # Ray keeps notes of its own, of which nothing is needed in the end.
    notes = Path(settings["model_root"]).resolve() / ".ray"
    with connected(address, {"GPU" if on_gpu else "CPU": workers}, echo=True):
        trainer = TorchTrainer(
            _rank,
            train_loop_config=job,
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu),
            run_config=RunConfig(
                storage_path=str(notes), failure_config=FailureConfig(max_failures=max_restarts)
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _reason(error) from error
        finally:
            shutil.rmtree(notes, ignore_errors=True)
    new = [folder for folder in runs_of(settings) if str(folder) not in known]
    resumed = request.resume if isinstance(request.resume, Path) else None
    return read_run(resumed or (new or runs_of(settings))[0])


def _rank(job: dict[str, Any]) -> None:
    """Be one rank, in a process of Ray's."""
    with in_folder(job["folder"]):
        overrides = dict(job["overrides"])
        on_gpu = overrides.get("gpu", -1) >= 0
        if on_gpu:
            overrides["gpu"] = ray.train.torch.get_device().index
        settings = load_settings(job["expid"], job["config"], overrides, job["checkout"])
        with joined_ranks(on_gpu) as ranks:
            # A run of this job that is there already was begun before the ranks were restarted.
            ours = [run for run in unfinished_runs(settings) if str(run) not in job["known"]]
            run_experiment(settings, ours[0] if ours else job["resume"], ranks)


def _reason(error: TrainingFailedError) -> UserError:
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if isinstance(failure, UserError):
            return failure
    listed = [f"rank {rank}: {failure}" for rank, failure in failures.items()] or [str(error)]
    return EngineError("Ray gave up training; more --max-restarts allow more:\n" + listed[0])
