"""Campaigns: so many cases of each kind, each run and judged."""

import subprocess

import hypothesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from fuxictr_tf4ctr.distributed import joining

from .data_files import csv_files, encoded_files, parquet_files
from .forking import run
from .inputs import Case, binary_files, configurations, json_files, options, tuner_files
from .project import Project
from .verdicts import Tally, judge


def generated(
    project: Project, strategy: st.SearchStrategy[Case], count: int, seed: int, tally: Tally
) -> None:
    """Run cases of a generator.

    Args:
        project: The project.
        strategy: The generator.
        count: How many.
        seed: Of the generator.
        tally: Where to count them.
    """

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(case: Case) -> None:
        folder = project.copy()
        case.write(folder)
        ended = run(case.argv, folder, _no_processes)
        tally.add(case.kind, ended.status, judge(ended, str(case)))

    one()


def generators(project: Project) -> dict[str, st.SearchStrategy[Case]]:
    """Return the generators by their names."""
    kept = project.kept
    return {
        "configurations": configurations(),
        "tuner files": tuner_files(),
        "options": options(),
        "json files": json_files(kept),
        "weights files": binary_files(kept),
        "csv files": csv_files(kept),
        "parquet files": parquet_files(kept),
        "encoded files": encoded_files(kept),
    }


def _no_processes() -> None:
    """Let no process start others: sweeps find that their runs fail, workers that they are done."""
    subprocess.Popen = _Failing
    joining.launch = lambda *_: 0


class _Failing:
    """A process that has failed already."""

    returncode = 1

    def __init__(self, command: object, **options: object) -> None:
        pass

    def poll(self) -> int:
        """As :meth:`subprocess.Popen.poll`."""
        return 1

    def wait(self, timeout: float | None = None) -> int:
        """As :meth:`subprocess.Popen.wait`."""
        return 1

    def terminate(self) -> None:
        """As :meth:`subprocess.Popen.terminate`."""
