"""Campaigns: so many cases of each kind, each run and judged."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from fuxictr_tf4ctr.distributed import joining

from .data_files import csv_files, encoded_files, parquet_files, state_files, weights_files
from .forking import run, run_all
from .inputs import Case, configurations, json_files, options, tuner_files
from .project import Project
from .verdicts import Tally, judge

# Cases that share a process, to which a fork and all that a command does once are common.
_BATCH = 25
# Each makes cases of the project as it was made.
GENERATORS: dict[str, Callable[[Path], st.SearchStrategy[Case]]] = {
    "configurations": lambda _: configurations(),
    "tuner files": lambda _: tuner_files(),
    "options": lambda _: options(),
    "json files": json_files,
    "weights files": weights_files,
    "state files": state_files,
    "csv files": csv_files,
    "parquet files": parquet_files,
    "encoded files": encoded_files,
}


def generated(name: str, seed: int, project: Project, count: int, tally: Tally) -> None:
    """Run cases of a generator.

    Args:
        name: Of the generator.
        seed: Of the generator.
        project: The project.
        count: How many.
        tally: Where to count them.
    """

    cases: list[Case] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(GENERATORS[name](project.kept))
    def one(case: Case) -> None:
        cases.append(case)

    one()
    for start in range(0, len(cases), _BATCH):
        batch = cases[start : start + _BATCH]
        ends = run_all([(case.argv, _prepared(project, case)) for case in batch], project.place)
        for case, ended in zip(batch, ends, strict=True):
            if judge(ended, ""):  # what earlier cases of the process have to do with it is no fault
                ended = run(case.argv, project.place, _prepared(project, case))
            tally.add(case.kind, ended.status, judge(ended, str(case)))


def _prepared(project: Project, case: Case) -> Callable[[], None]:
    def prepare() -> None:
        case.write(project.copy())
        _no_processes()

    return prepare


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
