"""Which runs a sweep makes, the child processes that make them, and what it shows meanwhile."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from fuxictr_tf4ctr.distributed.cost import check_processes
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.runs.records import RunRecord, metrics_line
from fuxictr_tf4ctr.stopping import as_parent
from fuxictr_tf4ctr.sweep.folder import SweepFolder, monitor_name, monitored, more_is_better
from fuxictr_tf4ctr.sweep.points import Job

# How long a child may take to save its state and end.
_PATIENCE_SECONDS = 60


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
        return self.folder.latest(job)

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
    """Raise SettingsError unless every device is there, and memory for the processes."""
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
    check_processes(workers)


_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_DRAWINGS = 1.0


class Plan:
    """Decides what runs next: here jobs that are known beforehand, of a search as it goes."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = iter(jobs)

    def next_job(self) -> Job | None:
        """Return the next job, None where nothing can start before another job has ended."""
        return next(self._jobs, None)

    def hopeless(self, job: Job, evaluations: list[dict[str, Any]]) -> bool:
        """Whether a running job should be stopped, judged by its evaluations so far."""
        return False

    def ended(self, outcome: Outcome) -> None:
        """Take in how a job ended."""


class Progress:
    """Shows how far a sweep is and what is best so far.

    Args:
        total: How many runs there will be.
        base: Settings by whose monitor all runs are judged.
        stream: Where to; a terminal gets the table redrawn, all else a line per event.
    """

    def __init__(self, total: int, base: Mapping[str, Any], stream: TextIO = sys.stderr) -> None:
        self.total = total
        self._base = base
        self.ended = self.failed = self.pruned = 0
        self._best: tuple[float, str] | None = None
        self._stream = stream
        self._live = stream.isatty()
        self._drawn = 0
        self._last = 0.0

    def add(self, outcome: Outcome) -> None:
        """Take in a run that has ended."""
        self.ended += 1
        expid = outcome.job.expid
        if outcome.pruned:
            self.pruned += 1
            event = "pruned"
        elif outcome.failure:
            self.failed += 1
            event = f"failed: {outcome.failure}"
        else:
            valid = outcome.record.valid
            value, sign = monitored(self._base, valid), 1 if more_is_better(self._base) else -1
            if value is not None and (self._best is None or sign * value > sign * self._best[0]):
                self._best = value, expid
            event = f"valid {metrics_line(valid)}"
        self._say(f"[{self.ended}/{self.total}] {expid} seed {outcome.job.seed}: {event}")

    def draw(self, children: Children) -> None:
        """Draw the table anew on a terminal, at most once a second."""
        if not self._live or time.monotonic() - self._last < _SECONDS_BETWEEN_DRAWINGS:
            return
        self._last = time.monotonic()
        self._erase()
        lines = [self._summary(), *self._running(children)]
        self._stream.write("".join(f"{line[:160]}\n" for line in lines))
        self._stream.flush()
        self._drawn = len(lines)

    def close(self) -> None:
        """End with the summary."""
        self._say(self._summary())

    def _summary(self) -> str:
        parts = [f"{self.ended} of {self.total} runs done"]
        parts += [f"{self.failed} failed"] * bool(self.failed)
        parts += [f"{self.pruned} pruned"] * bool(self.pruned)
        if self._best is not None:
            value, expid = self._best
            parts.append(f"best {monitor_name(self._base)} {value:.6f} by {expid}")
        return ", ".join(parts)

    def _running(self, children: Children) -> Sequence[str]:
        lines = []
        for child in children.running:
            record = children.record(child.job)
            last = record.evaluations[-1] if record is not None and record.evaluations else None
            reached = (
                f"epoch {last['epoch']}, {metrics_line(last['metrics'])}" if last else "starts"
            )
            device = "cpu" if child.device < 0 else f"gpu {child.device}"
            minutes = (time.monotonic() - child.started) / 60
            lines.append(f"  {device}  {minutes:6.1f} min  {child.job.expid}: {reached}")
        return lines

    def _say(self, line: str) -> None:
        self._erase()
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0


def carry_out(plan: Plan, children: Children, progress: Progress) -> list[Outcome]:
    """Run all jobs of a plan; a failing or killed one keeps no other from running.

    Args:
        plan: What to run.
        children: Where to run it.
        progress: Where to show it.

    Returns:
        How each job ended.

    Raises:
        KeyboardInterrupt, Terminated: The sweep was asked to end; all children have.
    """
    outcomes: list[Outcome] = []
    try:
        while True:
            while children.has_room and (job := plan.next_job()) is not None:
                children.start(job)
            if not children.running:
                return outcomes
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for child in children.running:
                record = children.record(child.job)
                if record is not None and plan.hopeless(child.job, record.evaluations):
                    children.prune(child)
            for outcome in children.ended():
                plan.ended(outcome)
                progress.add(outcome)
                outcomes.append(outcome)
            progress.draw(children)
    finally:
        children.stop()
