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

from fuxictr_tf4ctr.distributed.joining import WAIT_SECONDS, joined_ranks
from fuxictr_tf4ctr.engines.ray import connected, in_folder
from fuxictr_tf4ctr.errors import EngineError, UserError
from fuxictr_tf4ctr.runs.experiment import check_workers, run_as_rank
from fuxictr_tf4ctr.runs.records import RunRecord, read_run
from fuxictr_tf4ctr.settings.reading import load_settings


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
    request: Request,
    workers: int,
    max_restarts: int = 0,
    timeout: float | None = None,
    address: str | None = None,
) -> RunRecord:
    """Train and evaluate one experiment on a Ray cluster.

    Args:
        request: The experiment.
        workers: Ranks, each on a core or, where the settings name a GPU, on a GPU.
        max_restarts: How often all ranks start again, from the last checkpoint, when one fails.
        timeout: Seconds one rank waits for the others; see :func:`joined_ranks`.
        address: The cluster; see :func:`connected`.

    Raises:
        UserError: What a rank raised, or :class:`EngineError` where ranks were lost too often.
    """
    settings = load_settings(
        request.expid, request.config, request.overrides, request.checkout, runs_here=False
    )
    check_workers(settings, workers)
    on_gpu = settings["gpu"] >= 0
    # Ray keeps files of its own, of which nothing is needed in the end.
    files = Path(settings["model_root"]).resolve() / ".ray"
    with connected(address, {"GPU" if on_gpu else "CPU": workers}, echo=True):
        notes = _Notes(_Dictionary.remote())
        job = {**asdict(request), "folder": os.getcwd(), "on_gpu": on_gpu}
        trainer = TorchTrainer(
            _rank,
            train_loop_config={**job, "timeout": timeout, "notes": notes},
            torch_config=TorchConfig(
                backend="nccl" if on_gpu else "gloo", timeout_s=int(timeout or WAIT_SECONDS) or 1
            ),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu),
            run_config=RunConfig(
                storage_path=str(files), failure_config=FailureConfig(max_failures=max_restarts)
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _reason(error) from error
        finally:
            shutil.rmtree(files, ignore_errors=True)
        return read_run(Path(notes.get("run")))


def _rank(job: dict[str, Any]) -> None:
    """Be one rank, in a process of Ray's."""
    with in_folder(job["folder"]):
        gpu = ray.train.torch.get_device().index if job["on_gpu"] else -1
        overrides = {**job["overrides"], "gpu": gpu}
        settings = load_settings(job["expid"], job["config"], overrides, job["checkout"])
        with joined_ranks(job["on_gpu"], job["timeout"], job["notes"]) as ranks:
            run_as_rank(settings, job["resume"], ranks)


@ray.remote(num_cpus=0)
class _Dictionary:
    """What ranks note for those after them, in a process that none of them is."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def set(self, name: str, value: str) -> None:
        self._values[name] = value

    def get(self, name: str) -> str | None:
        return self._values.get(name)


class _Notes:
    """A :class:`Memory` that lies in an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def set(self, name: str, value: str) -> None:
        ray.get(self._actor.set.remote(name, value))

    def get(self, name: str) -> str | None:
        return ray.get(self._actor.get.remote(name))


def _reason(error: TrainingFailedError) -> UserError:
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if isinstance(failure, UserError):
            return failure
    listed = [f"rank {rank}: {failure}" for rank, failure in failures.items()] or [str(error)]
    return EngineError("Ray gave up training; more --max-restarts allow more:\n" + listed[0])
