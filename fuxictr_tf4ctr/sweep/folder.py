"""The folder of a sweep: what it holds, and what its runs have reached.

``<folder>/`` holds ``<name>.yaml``, the tuner file; ``<name>/``, the experiments in FuxiCTR's
form; ``runs/``, a folder for each run; ``logs/``, what each child printed; ``<name>.csv``,
FuxiCTR's result lines; ``sweep.json``, ``ranking.csv``, ``ranking.md``; ``study.db`` of a search.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.files import held, storage_errors, write_whole
from fuxictr_tf4ctr.runs.records import RunRecord, plain, read_run, sweep_up
from fuxictr_tf4ctr.schema import ANYTHING, TEXT, TEXTS, Key, Kind, ListOf, Record, read_json, whole
from fuxictr_tf4ctr.sweep.points import Point
from fuxictr_tf4ctr.sweep.tuner_file import Tuner

SWEEP_FORMAT = 1
_SCHEMA = Record(
    {
        "format": Kind(f"{SWEEP_FORMAT}, this version's", lambda value: value == SWEEP_FORMAT),
        "name": TEXT,
        "points": ListOf(
            Record({"expid": TEXT, "dataset_id": TEXT, "values": Record({}, others=ANYTHING)})
        ),
        "seeds": Key(Record({}, others=ListOf(whole(0))), default={}),
        "pruned": Key(TEXTS, default=[]),
        "failures": Key(Record({}, others=TEXT), default={}),
    },
    others=ANYTHING,
)
_DATA_PATHS = ("train_data", "valid_data", "test_data")


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
    def begun(self, tuner: Tuner, resume: bool) -> Iterator[None]:
        """Hold the folder for one sweep while in context.

        Raises:
            SettingsError: Another process sweeps there, the folder holds a sweep already, or there
                is none to resume.
        """
        if resume and not self.json_file.is_file():
            raise SettingsError(f"{self.path} holds no sweep to resume: start it without --resume")
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
        """Write the sections of all points that can run, data paths absolute."""
        models, datasets = {}, {}
        for point in points:
            if point.settings is not None:
                models[point.expid] = point.model
                # FuxiCTR leaves the base's dataset_id here, which mixes data sets in one folder.
                datasets[point.dataset_id] = {
                    **point.dataset,
                    **{key: point.settings[key] for key in _DATA_PATHS},
                    "dataset_id": point.dataset_id,
                }
        self.config.mkdir(exist_ok=True)
        write_whole(self.config / "dataset_config.yaml", _yaml(datasets))
        write_whole(self.config / "model_config.yaml", _yaml(models))

    def write_json(self, content: Mapping[str, Any]) -> None:
        """Write ``sweep.json``."""
        text = json.dumps({"format": SWEEP_FORMAT, "name": self.name, **content}, default=plain)
        write_whole(self.json_file, text + "\n")

    def write(self, name: str, text: str) -> Path:
        """Write a file of the folder whole, and return its path."""
        write_whole(self.path / name, text)
        return self.path / name

    def latest(self, dataset_id: str, expid: str, seed: int) -> RunRecord | None:
        """Return the record of an experiment's finished run, else of its latest, if any.

        Raises:
            DataError: A record is not readable, or another version's.
        """
        files = (self.runs / dataset_id / expid).glob("*/run.json")
        records = [record for file in files if (record := read_run(file.parent))]
        records = [record for record in records if record.settings.get("seed") == seed]
        return max(
            records,
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


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(content: Mapping[str, Any]) -> str:
    plain_content = json.loads(json.dumps(content, default=plain))
    return yaml.dump(plain_content, Dumper=_Dumper, default_flow_style=None, indent=4)
