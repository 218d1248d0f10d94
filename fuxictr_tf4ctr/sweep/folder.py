"""The folder of a sweep: what it holds, and what its runs have reached.

``<folder>/`` holds ``<name>.yaml``, the tuner file; ``<name>/``, the experiments in FuxiCTR's
form; ``runs/``, a folder for each run; ``logs/``, what each child printed; ``<name>.csv``,
FuxiCTR's result lines; ``sweep.json``, ``ranking.csv``, ``ranking.md``; ``study.db`` of a search.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.files import held, write_whole
from fuxictr_tf4ctr.runs.records import RunRecord, plain, read_run
from fuxictr_tf4ctr.sweep.points import Point
from fuxictr_tf4ctr.sweep.tuner_file import Tuner

SWEEP_FORMAT = 1
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
        if not resume and self.path.is_dir() and any(self.path.glob("[!.]*")):
            raise SettingsError(
                f"{self.path} is not empty: go on with its sweep by --resume, or choose another "
                "--output"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path / ".lock") as ours:
            if not ours:
                raise SettingsError(f"another process sweeps in {self.path}: wait, or stop it")
            if tuner.file != self.tuner_file.resolve():
                self.write(self.tuner_file.name, tuner.text)
            yield

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
        content = json.loads((path / "sweep.json").read_text(encoding="utf-8"))
        if content["format"] != SWEEP_FORMAT:
            raise ValueError(f"it is of format {content['format']}, not {SWEEP_FORMAT}")
        return SweepFolder(path, content["name"]), content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path / 'sweep.json'} is no record of a sweep: {error}") from error


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(content: Mapping[str, Any]) -> str:
    plain_content = json.loads(json.dumps(content, default=plain))
    return yaml.dump(plain_content, Dumper=_Dumper, default_flow_style=None, indent=4)
