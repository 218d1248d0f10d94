"""The folder of a sweep: what it holds, what its runs have reached, and which of them is best.

``<folder>/`` holds ``<name>.yaml``, the tuner file; ``<name>/``, the experiments in FuxiCTR's
form; ``runs/``, a folder for each run; ``logs/``, what each child printed; ``<name>.csv``,
FuxiCTR's result lines; ``sweep.json``, ``ranking.csv``, ``ranking.md``; ``study.db`` of a search.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.files import held, storage_errors, write_whole
from fuxictr_tf4ctr.runs.records import RunRecord, plain, read_run, sweep_up
from fuxictr_tf4ctr.schema import ANYTHING, TEXT, TEXTS, Key, Kind, ListOf, Record, read_json, whole
from fuxictr_tf4ctr.settings.keys import KEYS
from fuxictr_tf4ctr.settings.writing import as_yaml
from fuxictr_tf4ctr.sweep.points import Job, Point
from fuxictr_tf4ctr.sweep.tuner_file import Tuner

SWEEP_FORMAT = 1
_JUDGES = ("monitor", "monitor_mode")
_SCHEMA = Record(
    {
        "format": Kind(f"{SWEEP_FORMAT}, this version's", lambda value: value == SWEEP_FORMAT),
        "name": TEXT,
        "judged_by": Key(Record({key: KEYS[key].kind for key in _JUDGES}), default={}),
        "points": ListOf(
            Record({"expid": TEXT, "dataset_id": TEXT, "values": Record({}, others=ANYTHING)})
        ),
        "seeds": Key(Record({}, others=ListOf(whole(0))), default={}),
        "pruned": Key(TEXTS, default=[]),
        "failures": Key(Record({}, others=TEXT), default={}),
    },
    others=ANYTHING,
)
# What holds paths, of pretrained embeddings too: runs read them from another configuration folder.
_DATA_PATHS = ("data_root", "train_data", "valid_data", "test_data", "feature_cols")


@dataclass(frozen=True)
class SweepFolder:
    """Where the files of a sweep lie.

    Attributes:
        path: The folder.
        name: Name of the tuner file, without ``.yaml``.
    """

    path: Path
    name: str

    @property
    def tuner_file(self) -> Path:
        """The tuner file as it was."""
        return self.path / f"{self.name}.yaml"

    @property
    def config(self) -> Path:
        """The experiments, as FuxiCTR's tuner writes them."""
        return self.path / self.name

    @property
    def runs(self) -> Path:
        """The folders of the runs."""
        return self.path / "runs"

    @property
    def lines(self) -> Path:
        """FuxiCTR's result lines, one per finished point."""
        return self.path / f"{self.name}.csv"

    @property
    def json_file(self) -> Path:
        """What the sweep consists of."""
        return self.path / "sweep.json"

    @contextmanager
    def begun(self, tuner: Tuner, search: str, resume: bool) -> Iterator[None]:
        """Hold the folder for one sweep while in context.

        Raises:
            SettingsError: Another process sweeps there, the folder holds a sweep already, or there
                is none to resume, or one by another search or of another experiment.
            DataError: What the folder says of its sweep cannot be read.
        """
        if resume and not self.json_file.is_file():
            raise SettingsError(f"{self.path} holds no sweep to resume: start it without --resume")
        if resume:
            self._check_same(tuner.base_expid, search)
        if not resume and (self.json_file.exists() or self._others()):
            raise SettingsError(
                f"{self.path} is not empty: go on with its sweep by --resume, or choose another "
                "--output"
            )
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path / ".lock") as ours:
            if not ours:
                raise SettingsError(f"another process sweeps in {self.path}: wait, or stop it")
            if tuner.file != self.tuner_file.resolve():
                self.write(self.tuner_file.name, tuner.text)
            self._take_over()
            yield

    def _check_same(self, base_expid: str, search: str) -> None:
        """Refuse to go on with a sweep as another: its points would be mixed with others."""
        begun_as = Record({"search": Key(TEXT), "base_expid": Key(TEXT)}, others=ANYTHING)
        before = read_json(self.json_file, begun_as, "sweep anew, to another --output")
        given = {"search": ("--search", search), "base_expid": ("--expid", base_expid)}
        differing = [
            (f"{option} {before[key]}", f"{option} {now}")
            for key, (option, now) in given.items()
            if (before.get(key) or now) != now
        ]
        if differing:
            began, now = (" ".join(each) for each in zip(*differing, strict=True))
            raise SettingsError(
                f"{self.path} holds a sweep by {began}, which does not go on by {now}: give "
                f"{began} with --resume, or choose another --output"
            )

    def _others(self) -> set[str]:
        """Name what is there and none of what a sweep writes before it is known as one."""
        first = {self.tuner_file.name, self.config.name, "study.db", "study.db-journal"}
        return {path.name for path in self.path.glob("[!.]*")} - first

    def _take_over(self) -> None:
        """Wait for the children of a sweep that was killed, which end soon, and sweep up."""
        for lock in sorted(self.runs.glob("*/*/*/.lock")):
            said = partial(print, f"waiting for the process that works on {lock.parent}")
            with held(lock, waiting=partial(said, file=sys.stderr)):
                pass
        for parent in self.runs.glob("*/*"):
            sweep_up(parent)

    def write_config(self, points: Iterable[Point]) -> None:
        """Write the sections of all points that can run, paths of data as they were found."""
        models, datasets = {}, {}
        for point in points:
            if point.settings is not None:
                params, models[point.expid] = point.settings.params, point.model
                # FuxiCTR leaves the base's dataset_id here, which mixes data sets in one folder.
                datasets[point.dataset_id] = {
                    **point.dataset,
                    **{key: params[key] for key in _DATA_PATHS if key in params},
                    "dataset_id": point.dataset_id,
                }
        self.config.mkdir(exist_ok=True)
        for kind, sections in (("dataset", datasets), ("model", models)):
            text = as_yaml(json.loads(json.dumps(sections, default=plain)))
            write_whole(self.config / f"{kind}_config.yaml", text)

    def write_json(self, content: Mapping[str, Any]) -> None:
        """Write ``sweep.json``."""
        text = json.dumps({"format": SWEEP_FORMAT, "name": self.name, **content}, default=plain)
        self.write(self.json_file.name, text + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder whole."""
        write_whole(self.path / name, text)

    def latest(self, job: Job) -> RunRecord | None:
        """Return the record of a job's finished run, else of its latest, if any.

        Raises:
            DataError: A record is not readable, or another version's.
        """
        files = (self.runs / job.dataset_id / job.expid).glob("*/run.json")
        records = [read_run(file.parent) for file in files]
        return max(
            (record for record in records if record.settings.get("seed") == job.seed),
            key=lambda record: (record.status == "finished", record.started, record.folder.name),
            default=None,
        )


def read_sweep(path: Path) -> tuple[SweepFolder, dict[str, Any]]:
    """Read a sweep's folder and the content of its ``sweep.json``.

    Raises:
        DataError: The folder holds no sweep, or another version's.
    """
    try:
        content = read_json(path / "sweep.json", _SCHEMA, "a sweep of another version: sweep again")
    except FileNotFoundError:
        raise DataError(f"{path / 'sweep.json'}: no such file; name a sweep's folder") from None
    return SweepFolder(path, content["name"]), content


def judged_by(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all runs of a sweep are ranked by, also where their own monitor varies."""
    return {key: base.get(key, KEYS[key].default) for key in _JUDGES}


def monitored(settings: Mapping[str, Any], metrics: Mapping[str, float]) -> float | None:
    """Return the weighted sum of metrics that a run monitors, None where one is not there.

    Args:
        settings: Settings of the run; ``monitor`` is heeded.
        metrics: Its metrics on the validation data.
    """
    monitor = settings.get("monitor", KEYS["monitor"].default)
    weights = {monitor: 1} if isinstance(monitor, str) else monitor
    if any(name not in metrics for name, weight in weights.items() if weight):
        return None
    return sum(weight * metrics[name] for name, weight in weights.items() if weight)


def monitor_name(settings: Mapping[str, Any]) -> str:
    """Return the monitor as one reads it: ``AUC``, or ``AUC - 0.5 logloss``."""
    monitor = settings.get("monitor", KEYS["monitor"].default)
    if isinstance(monitor, str):
        return monitor
    terms = [
        f"{'-' if weight < 0 else '+'} {'' if abs(weight) == 1 else f'{abs(weight):g} '}{name}"
        for name, weight in monitor.items()
        if weight
    ]
    return " ".join(terms).removeprefix("+ ")


def more_is_better(settings: Mapping[str, Any]) -> bool:
    """Whether the greatest monitored value is the best."""
    return settings.get("monitor_mode", KEYS["monitor_mode"].default) == "max"


def ranking(
    runs: Iterable[tuple[Point, RunRecord]], base: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rank finished runs by their metrics on the validation data; test stands beside it.

    Args:
        runs: Each point with the record of its finished run.
        base: Settings that the runs share: all are ranked by the monitor in them, also where the
            one by which they stop varies.

    Returns:
        One row per run, best first: rank, expid, monitored value, metrics on both splits, number
        of parameters and of evaluations, seconds, and the keys in which the points differ.
    """
    runs = list(runs)
    if not runs:
        return []
    name, sign, first = monitor_name(base), -1 if more_is_better(base) else 1, runs[0][0]
    varied = [
        key for key in first.values if any(p.values[key] != first.values[key] for p, _ in runs)
    ]
    values = {p.expid: monitored(base, record.valid) for p, record in runs}
    # A run without validation data has nothing to be ranked by, and comes last.
    runs.sort(key=lambda run: (values[run[0].expid] is None, sign * (values[run[0].expid] or 0)))
    return [
        {
            "rank": rank,
            "expid": point.expid,
            f"monitor ({name})": values[point.expid],
            **{f"valid {metric}": value for metric, value in record.valid.items()},
            **{f"test {metric}": value for metric, value in record.test.items()},
            "parameters": record.parameters,
            "evaluations": len(record.evaluations),
            "seconds": round(record.seconds.get("total", 0.0)),
            **{key: point.values[key] for key in varied},
        }
        for rank, (point, record) in enumerate(runs, start=1)
    ]


def seed_table(runs: Mapping[str, Sequence[RunRecord]]) -> list[dict[str, Any]]:
    """Summarise experiments that ran under several seeds, as mean and sample deviation.

    Args:
        runs: Expid -> its finished runs, one per seed.
    """
    rows = []
    for expid, records in runs.items():
        seeds = " ".join(str(record.settings["seed"]) for record in records)
        row: dict[str, Any] = {"expid": expid, "seeds": seeds}
        for split in ("valid", "test"):
            for metric in getattr(records[0], split) if records else ():
                found = [getattr(record, split)[metric] for record in records]
                row[f"{split} {metric} mean"] = statistics.fmean(found)
                row[f"{split} {metric} std"] = statistics.stdev(found) if len(found) > 1 else None
        rows += [row] if records else []
    return rows
