"""Hyper-parameter sweeps: a tuner file of FuxiCTR, runs in parallel child processes, a ranking."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.analysis.results import as_csv, as_markdown
from fuxictr_tf4ctr.datasets import encode_dataset
from fuxictr_tf4ctr.errors import SettingsError, UserError
from fuxictr_tf4ctr.runs.records import RunRecord
from fuxictr_tf4ctr.stopping import sigterm_raises
from fuxictr_tf4ctr.sweep.folder import SweepFolder, judged_by, ranking, seed_table
from fuxictr_tf4ctr.sweep.plan import (
    Children,
    Outcome,
    Plan,
    Progress,
    carry_out,
    check_devices,
)
from fuxictr_tf4ctr.sweep.points import Job, Point, grid, grid_size
from fuxictr_tf4ctr.sweep.tuner_file import Tuner, read_tuner

Carrier = Callable[[Plan, Progress], list[Outcome]]
"""Runs all jobs of a plan and shows them, stopping those that the plan calls hopeless."""


@dataclass(frozen=True)
class SweepOptions:
    """How to sweep.

    Attributes:
        file: The tuner file, or a folder of experiments.
        expid: The experiment to vary; None for the file's ``base_expid``.
        output: Folder of the sweep; None for ``sweeps/<name of the file>``, the name of an
            ``expid`` before it.
        devices: GPU indices, -1 for the CPU.
        workers: Runs at once; None for one per device.
        resume: Go on with the sweep in the folder.
        tags: Only expids with one of these parts; none for all.
        excluded: No expids with one of these parts.
        max_points: A larger grid is refused.
        search: "grid", "tpe" or "random".
        trials: Points a search tries.
        prune: Whether a search stops hopeless runs.
        seeds: Seeds under which the best settings run in the end; 1 for no repetition.
        best: How many settings that are.
        checkout: Root of a FuxiCTR checkout whose models may be named.
        carrier: Checks the devices and returns what runs the jobs, as child processes of this
            machine where None.
    """

    file: str | os.PathLike[str]
    expid: str | None = None
    output: str | os.PathLike[str] | None = None
    devices: Sequence[int] = (-1,)
    workers: int | None = None
    resume: bool = False
    tags: Sequence[str] = ()
    excluded: Sequence[str] = ()
    max_points: int = 300
    search: str = "grid"
    trials: int = 30
    prune: bool = True
    seeds: int = 1
    best: int = 1
    checkout: str | os.PathLike[str] | None = None
    carrier: "Callable[[SweepFolder, SweepOptions], Carrier] | None" = None


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        folder: Its folder.
        ranking: One row per finished run, best first.
        seeds: One row per setting that ran under several seeds.
        failures: Expid -> why it did not finish.
    """

    folder: SweepFolder
    ranking: list[dict[str, Any]]
    seeds: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def run_sweep(options: SweepOptions) -> SweepResult:
    """Run a sweep, or what is missing of one, and rank its runs.

    Args:
        options: The tuner file and how to run it.

    Raises:
        SettingsError: The tuner file or an option is not valid, the folder is in use, or no point
            can run.
        DataError: A record in the folder is another version's.
        KeyboardInterrupt, Terminated: The sweep was asked to end; ``resume`` goes on with it.
    """
    tuner = read_tuner(options.file, options.checkout, options.expid)
    if tuner.listed and (options.search != "grid" or options.expid is not None):
        raise SettingsError(f"{tuner.file} lists its experiments: neither --search nor --expid")
    if min(options.seeds, options.best, options.trials) < 1:
        raise SettingsError("--seeds, --best and --trials must be at least 1")
    points = _grid_points(tuner, options) if options.search == "grid" else []
    name = "_".join(filter(None, (options.expid, tuner.name)))
    folder = SweepFolder(Path(options.output or Path("sweeps", name)), name)
    carrier = (options.carrier or _children)(folder, options)
    with sigterm_raises(), folder.begun(tuner, options.search, options.resume):
        sweep = _Sweep(tuner, folder, options, carrier)
        if options.search == "grid":
            sweep.run_grid(points)
        else:
            sweep.run_search()
        sweep.run_seeds()
        return sweep.result()


def _grid_points(tuner: Tuner, options: SweepOptions) -> list[Point]:
    size = grid_size(tuner)
    if size > options.max_points:
        raise SettingsError(
            f"{tuner.file}: the grid has {size:,} points, more than {options.max_points:,}; if all "
            f"are meant, say so by --max-points {size}"
        )
    points = [
        point
        for point in grid(tuner)
        if (not options.tags or _matches(point.expid, options.tags))
        and not _matches(point.expid, options.excluded)
    ]
    if not points:
        raise SettingsError("--tag and --exclude leave no point of the grid")
    if all(point.problem for point in points):
        raise SettingsError(f"no point of the grid can run, the first because {points[0].problem}")
    return points


def _matches(expid: str, parts: Iterable[str]) -> bool:
    """Whether one of the texts is a whole part of the expid: 019 is not found in a hash."""
    return any(f"_{part.strip('_')}_" in f"_{expid}_" for part in parts)


def _children(folder: SweepFolder, options: SweepOptions) -> Carrier:
    """Check the devices, and return what runs jobs as child processes there."""
    workers = len(options.devices) if options.workers is None else options.workers
    check_devices(options.devices, workers)
    children = Children(folder, options.devices, workers, options.checkout)
    return lambda plan, progress: carry_out(plan, children, progress)


class _Sweep:
    """One sweep in its folder."""

    def __init__(
        self, tuner: Tuner, folder: SweepFolder, options: SweepOptions, carrier: Carrier
    ) -> None:
        self.folder = folder
        self.options = options
        self.tuner = tuner
        self.points: dict[str, Point] = {}
        self.pruned: list[str] = []
        self.failures: dict[str, str] = {}
        self.seed_runs: dict[str, list[RunRecord]] = {}
        self._encoded: dict[str, str | None] = {}  # data set id -> why it cannot be encoded
        self._carrier = carrier

    def run_grid(self, points: Iterable[Point]) -> None:
        """Run all points of a grid that are not finished."""
        self.points = {point.expid: point for point in points}
        self._write_points()
        self._run([point.job for point in self.points.values() if self._ready(point)])

    def run_search(self) -> None:
        """Run what Optuna asks for."""
        from fuxictr_tf4ctr.sweep.search import Search

        def on_point(point: Point) -> bool:
            self.points[point.expid] = point
            self._write_points()
            return self._ready(point)

        search = Search(self.tuner, self.folder, self.options, on_point)
        self.points = dict(search.points)
        self._carry_out(search, self.options.trials)
        self.pruned = search.pruned()
        for expid in self.pruned:  # whose checkpoints no run goes on from
            record = self.folder.latest(self.points[expid].job)
            if record is not None:
                for state in record.state_folder.glob("step-*.state"):
                    state.unlink()

    def run_seeds(self) -> None:
        """Repeat the best settings under further seeds."""
        if self.options.seeds == 1:
            return
        best = [self.points[row["expid"]].job for row in self._ranking()[: self.options.best]]
        jobs = [
            first._replace(seed=first.seed + more)
            for first in best
            for more in range(self.options.seeds)
        ]
        self._run(jobs)
        self.seed_runs = {first.expid: [] for first in best}
        for job in jobs:
            if record := self._finished(job):
                self.seed_runs[job.expid].append(record)

    def result(self) -> SweepResult:
        """Write and return what was found."""
        rows, seeds = self._ranking(), seed_table(self.seed_runs)
        for name, found in (("ranking", rows), ("seeds", seeds)):
            if found:
                self.folder.write(f"{name}.csv", as_csv(found))
                self.folder.write(f"{name}.md", as_markdown(found))
        lines = [record.csv_line() for _, record in self._finished_runs()]
        self.folder.write(self.folder.lines.name, "".join(lines))
        self._write_json()
        return SweepResult(self.folder, rows, seeds, self.failures)

    def _ready(self, point: Point) -> bool:
        """Encode the point's data set before its children would, all at once."""
        problem = point.problem
        if problem is None:
            if point.dataset_id not in self._encoded:
                try:
                    encode_dataset(point.settings.params)
                    self._encoded[point.dataset_id] = None
                except UserError as error:
                    self._encoded[point.dataset_id] = str(error)
            problem = self._encoded[point.dataset_id]
        if problem is not None:
            self.failures[point.expid] = problem
            print(f"{point.expid} cannot run: {problem}", file=sys.stderr)
        return problem is None

    def _run(self, jobs: Iterable[Job]) -> None:
        """Run the jobs that are not finished."""
        missing = [job for job in jobs if not self._finished(job)]
        self._carry_out(Plan(missing), len(missing))

    def _carry_out(self, plan: Plan, runs: int) -> None:
        progress = Progress(runs, self.tuner.shared)
        for outcome in self._carrier(plan, progress):
            if outcome.failure is not None:
                name = outcome.job.expid
                if outcome.job.seed != self.points[name].settings["seed"]:
                    name += f" seed {outcome.job.seed}"
                self.failures[name] = outcome.failure
        if runs:
            progress.close()

    def _finished(self, job: Job) -> RunRecord | None:
        record = self.folder.latest(job)
        return record if record is not None and record.status == "finished" else None

    def _finished_runs(self) -> list[tuple[Point, RunRecord]]:
        ready = [point for point in self.points.values() if point.settings is not None]
        found = [(point, self._finished(point.job)) for point in ready]
        return [(point, record) for point, record in found if record is not None]

    def _ranking(self) -> list[dict[str, Any]]:
        return ranking(self._finished_runs(), self.tuner.shared)

    def _write_points(self) -> None:
        self.folder.write_config(self.points.values())
        self._write_json()

    def _write_json(self) -> None:
        self.folder.write_json(
            {
                "base_expid": self.tuner.base_expid,
                "dataset_id": self.tuner.dataset_id,
                "search": self.options.search,
                "judged_by": judged_by(self.tuner.shared),
                "points": [
                    {"expid": p.expid, "dataset_id": p.dataset_id, "values": p.values}
                    for p in self.points.values()
                ],
                "seeds": {
                    expid: [record.settings["seed"] for record in records]
                    for expid, records in self.seed_runs.items()
                },
                "pruned": self.pruned,
                "failures": self.failures,
            }
        )
