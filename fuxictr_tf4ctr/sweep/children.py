"""Child processes of a sweep: each one ``fuxictr run``, with its own log and record."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.runs.records import RunRecord
from fuxictr_tf4ctr.stopping import as_parent
from fuxictr_tf4ctr.sweep.folder import SweepFolder

# How long a child may take to save its state and end.
_PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Job:
    """One run of a sweep: an experiment under a seed."""

    expid: str
    dataset_id: str
    seed: int


@dataclass
class Child:
    """A running job.

    Attributes:
        job: What it runs.
        device: Index of its GPU, -1 for the CPU.
        process: Its process.
        log: What it prints.
        started: When, in seconds of ``time.monotonic``.
    """

    job: Job
    device: int
    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: The job.
        record: The record it left, if any.
        failure: Why it did not finish, None where it did.
        pruned: Whether it was stopped as hopeless, which is no failure.
    """

    job: Job
    record: RunRecord | None
    failure: str | None = None
    pruned: bool = False


class Children:
    """Runs jobs side by side, each on its device.

    Args:
        folder: The sweep's folder.
        devices: GPU indices, -1 for the CPU; the workers take turns in them.
        workers: How many run at once.
        checkout: Root of a FuxiCTR checkout, handed on to the children.
    """

    def __init__(
        self,
        folder: SweepFolder,
        devices: Sequence[int],
        workers: int,
        checkout: str | os.PathLike[str] | None = None,
    ) -> None:
        self.folder = folder
        self.running: list[Child] = []
        self._free = [devices[i % len(devices)] for i in range(workers)]
        self._checkout = checkout
        # Workers that each take every core only wait for each other.
        threads = max(1, (os.cpu_count() or 1) // workers)
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **as_parent()}
        self._pruned: set[Job] = set()

    @property
    def has_room(self) -> bool:
        """Whether another job can start."""
        return bool(self._free)

    def start(self, job: Job) -> None:
        """Start a job, or go on with its run where an earlier one was cut off."""
        device = self._free.pop(0)
        command = [
            *(sys.executable, "-m", "fuxictr_tf4ctr", "run", "--expid", job.expid),
            *("--config", str(self.folder.config), "--gpu", str(device)),
            *("--output", str(self.folder.runs), "--set", f"seed={job.seed}"),
        ]
        if self._checkout is not None:
            command += ["--zoo", str(self._checkout)]
        before = self.record(job)
        if before is not None and before.status in ("running", "interrupted"):
            command += ["--resume", str(before.folder)]
        log = self.folder.path / "logs" / f"{job.expid}_seed{job.seed}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )
        self.running.append(Child(job, device, process, log))

    def ended(self) -> list[Outcome]:
        """Return the jobs that have ended since the last call and free their devices."""
        done = [child for child in self.running if child.process.poll() is not None]
        for child in done:
            self.running.remove(child)
            self._free.append(child.device)
        return [self._outcome(child) for child in done]

    def prune(self, child: Child) -> None:
        """Stop a child as hopeless."""
        if child.job not in self._pruned:
            self._pruned.add(child.job)
            child.process.terminate()

    def stop(self) -> None:
        """Ask all children to end and wait until they have; kill those that do not."""
        for child in self.running:
            child.process.terminate()
        for child in self.running:
            try:
                child.process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def record(self, job: Job) -> RunRecord | None:
        """Return what the job has reached so far."""
        return self.folder.latest(job.dataset_id, job.expid, job.seed)

    def _outcome(self, child: Child) -> Outcome:
        job, record, code = child.job, self.record(child.job), child.process.returncode
        if code == 0 and record is not None and record.status == "finished":
            return Outcome(job, record)
        if job in self._pruned:
            return Outcome(job, record, pruned=True)
        return Outcome(job, record, _reason(child, record, code))


def _reason(child: Child, record: RunRecord | None, code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; see {child.log}"
    if code > 1 and record is not None and record.status == "interrupted":
        return f"interrupted; see {child.log}"
    lines = child.log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.startswith("fuxictr: ")]
    last = said[-1].removeprefix("fuxictr: ") if said else (lines or ["it printed nothing"])[-1]
    return f"{last} (exit status {code}; see {child.log})"


def check_devices(devices: Sequence[int], workers: int) -> None:
    """Raise SettingsError unless every device is there."""
    count = torch.cuda.device_count()
    missing = [device for device in devices if not -1 <= device < count]
    if missing:
        there = f"GPUs 0 to {count - 1}" if count else "no GPU that torch can use"
        raise SettingsError(
            f"--gpu {' '.join(map(str, missing))} does not exist: this machine has {there}; "
            "--gpu -1 is the CPU"
        )
    if workers < 1:
        raise SettingsError(f"--workers {workers}: at least 1 is needed")
