"""Runs on a cluster: one by several ranks of Ray Train, or many as trials of Ray Tune."""

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train.torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from fuxictr_tf4ctr.distributed.joining import WAIT_SECONDS, joined_ranks
from fuxictr_tf4ctr.engines.ray import connected, in_folder
from fuxictr_tf4ctr.errors import EngineError, SettingsError, Terminated, UserError
from fuxictr_tf4ctr.runs.experiment import check_workers, run_as_rank, run_experiment
from fuxictr_tf4ctr.runs.records import RunRecord, read_run
from fuxictr_tf4ctr.settings.reading import RUNS_ELSEWHERE, load_settings
from fuxictr_tf4ctr.sweep import SweepOptions
from fuxictr_tf4ctr.sweep.folder import SweepFolder
from fuxictr_tf4ctr.sweep.plan import Outcome, Plan, Progress
from fuxictr_tf4ctr.sweep.points import Job


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
        request.expid, request.config, request.overrides, request.checkout, RUNS_ELSEWHERE
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


# A trial that was lost with its host goes on elsewhere, this often.
_RESTARTS = 3


class RayTrials:
    """Carries out the plans of one sweep on a Ray cluster.

    Args:
        folder: The sweep's folder, on a file system of all hosts.
        options: Each run takes a GPU where ``devices`` names any, else a core; ``workers`` None
            is as many runs at once as there is room for.
        address: The cluster; None for one of this machine.

    Raises:
        SettingsError: Fewer than one run at once is asked for.
    """

    def __init__(self, folder: SweepFolder, options: SweepOptions, address: str | None) -> None:
        if options.workers is not None and options.workers < 1:
            raise SettingsError(f"--workers {options.workers}: at least 1 is needed")
        on_gpu = max(options.devices) >= 0
        self.folder = SweepFolder(folder.path.resolve(), folder.name)
        self._resources = {"cpu": 1, "gpu": int(on_gpu)}
        self._workers = options.workers
        self._address = address
        self.common = {
            "folder": os.getcwd(),
            "sweep": str(self.folder.path),
            "name": self.folder.name,
            "gpu": 0 if on_gpu else -1,
            "checkout": None if options.checkout is None else str(options.checkout),
        }

    def __call__(self, plan: Plan, progress: Progress) -> list[Outcome]:
        """Run all jobs of a plan.

        Args:
            plan: What to run.
            progress: Where to show how runs ended.

        Returns:
            How each job ended.

        Raises:
            SettingsError: There is no cluster at the address, or it lacks a GPU.
            KeyboardInterrupt: The sweep was asked to end; all trials have.
        """
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # which heeds verbose=0
        jobs = _Jobs(plan, progress, self)
        if not jobs.has_more():  # Tune would wait for the first
            return []
        needed = {"GPU" if self._resources["gpu"] else "CPU": 1}
        with connected(self._address, needed):
            tune.Tuner(
                tune.with_resources(_trial, self._resources),
                tune_config=tune.TuneConfig(
                    search_alg=jobs,
                    scheduler=_Stopping(jobs),
                    num_samples=-1,
                    max_concurrent_trials=self._workers,
                ),
                run_config=tune.RunConfig(
                    name=time.strftime("%Y%m%d-%H%M%S"),
                    storage_path=str(self.folder.path / "ray"),
                    failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                    verbose=0,
                ),
            ).fit()
        if jobs.running:
            raise KeyboardInterrupt
        return jobs.outcomes


class _Jobs(Searcher):
    """Lets Tune ask a plan what to run next."""

    def __init__(self, plan: Plan, progress: Progress, trials: RayTrials) -> None:
        super().__init__()
        self.running: dict[str, Job] = {}
        self.outcomes: list[Outcome] = []
        self._plan, self._progress, self._trials = plan, progress, trials
        self._next: Job | None = None

    def has_more(self) -> bool:
        """Whether the plan has another job that can start now."""
        self._next = self._next or self._plan.next_job()
        return self._next is not None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self.has_more():
            return None if self.running else Searcher.FINISHED
        job, self._next = self._next, None
        self.running[trial_id] = job
        return {**self._trials.common, **job._asdict()}

    def hopeless(self, trial_id: str) -> bool:
        """Whether the plan gives a running trial up, after another evaluation."""
        job = self.running[trial_id]
        record = self._trials.folder.latest(job)
        return record is not None and self._plan.hopeless(job, record.evaluations)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        outcome = self._outcome(self.running.pop(trial_id), error)
        self._plan.ended(outcome)
        self._progress.add(outcome)
        self.outcomes.append(outcome)

    def _outcome(self, job: Job, error: bool) -> Outcome:
        folder = self._trials.folder
        record = folder.latest(job)
        if record is not None and record.status == "finished":
            return Outcome(job, record)
        if record is not None and record.status in ("running", "interrupted") and not error:
            return Outcome(job, record, pruned=True)  # its process may not have ended yet
        said = record.error if record is not None else None
        return Outcome(job, record, said or f"its process was lost; see {folder.path}/ray")

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a sweep is taken up from the records of its runs."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never called: see :meth:`save`."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy of what it was given


class _Stopping(FIFOScheduler):
    """Lets the plan stop runs, as on one machine."""

    def __init__(self, jobs: _Jobs) -> None:
        super().__init__()
        self._jobs = jobs

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Say whether a trial goes on, after one of its evaluations."""
        return self.STOP if self._jobs.hopeless(trial.trial_id) else self.CONTINUE


def _trial(config: dict[str, Any]) -> None:
    """Run one experiment, in a process of Ray's; go on with it where it was cut off."""
    with in_folder(config["folder"]):
        folder = SweepFolder(Path(config["sweep"]), config["name"])
        overrides = {key: config[key] for key in ("seed", "gpu")} | {"model_root": str(folder.runs)}
        settings = load_settings(config["expid"], str(folder.config), overrides, config["checkout"])
        before = folder.latest(Job(config["expid"], config["dataset_id"], config["seed"]))
        cut_off = before is not None and before.status in ("running", "interrupted")

        def report(evaluation: dict[str, Any]) -> None:
            try:
                tune.report({"step": evaluation["step"]})  # the rest is in the record
            except SystemExit:  # so Tune ends a trial that it has stopped
                raise Terminated from None

        try:
            run_experiment(settings, before.folder if cut_off else False, on_evaluation=report)
        except (Terminated, UserError):
            return  # the record says so, and another try would end the same
