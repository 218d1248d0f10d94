"""Which runs a sweep makes, and the loop that makes them."""

import time
from collections.abc import Iterable
from typing import Any, Protocol

from fuxictr_tf4ctr.sweep.children import Children, Job, Outcome
from fuxictr_tf4ctr.sweep.progress import Progress

_SECONDS_BETWEEN_LOOKS = 0.2


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
