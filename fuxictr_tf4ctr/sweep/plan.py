"""Which runs a sweep makes, the loop that makes them, and what it shows meanwhile."""

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TextIO

from fuxictr_tf4ctr.runs.records import metrics_line
from fuxictr_tf4ctr.sweep.children import Children, Job, Outcome
from fuxictr_tf4ctr.sweep.ranking import monitor_name, monitored, more_is_better

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_DRAWINGS = 1.0


class Plan(Protocol):
    """Decides what runs next; a grid does so beforehand, a search as it goes."""

    def next_job(self) -> Job | None:
        """Return the next job, None where nothing can start before another job has ended."""

    def hopeless(self, job: Job, evaluations: list[dict[str, Any]]) -> bool:
        """Whether a running job should be stopped, judged by its evaluations so far."""

    def ended(self, outcome: Outcome) -> None:
        """Take in how a job ended."""


class FixedPlan:
    """Jobs that are known beforehand, in their order.

    Args:
        jobs: The jobs.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = iter(jobs)

    def next_job(self) -> Job | None:
        """Return the next job."""
        return next(self._jobs, None)

    def hopeless(self, job: Job, evaluations: list[dict[str, Any]]) -> bool:
        """No job of a fixed plan is stopped."""
        return False

    def ended(self, outcome: Outcome) -> None:
        """Nothing follows from it."""


class Progress:
    """Shows how far a sweep is and what is best so far.

    Args:
        total: How many runs there will be.
        stream: Where to; a terminal gets the table redrawn, all else a line per event.
    """

    def __init__(self, total: int, stream: TextIO = sys.stderr) -> None:
        self.total = total
        self.ended = self.failed = self.pruned = 0
        self._best: tuple[float, str, str] | None = None
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
            self._compare(outcome)
            event = f"valid {metrics_line(outcome.record.valid)}"
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

    def _compare(self, outcome: Outcome) -> None:
        settings = outcome.record.settings
        value = monitored(settings, outcome.record.valid)
        if value is None:
            return
        sign = 1 if more_is_better(settings) else -1
        if self._best is None or sign * value > sign * self._best[0]:
            self._best = value, monitor_name(settings), outcome.job.expid

    def _summary(self) -> str:
        parts = [f"{self.ended} of {self.total} runs done"]
        parts += [f"{self.failed} failed"] * bool(self.failed)
        parts += [f"{self.pruned} pruned"] * bool(self.pruned)
        if self._best is not None:
            value, name, expid = self._best
            parts.append(f"best {name} {value:.6f} by {expid}")
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
