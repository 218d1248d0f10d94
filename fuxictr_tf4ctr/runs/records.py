"""What a run leaves: a folder of its own with log, checkpoint and run.json, and FuxiCTR's csv line.

``<model_root>/<dataset_id>/<expid>/<time>/`` holds ``<expid>.log``, ``<expid>.model``,
``<expid>.shards/`` where tables were divided, ``run.json``, ``schema/``, ``calibration.json`` if
asked for and, until the run is finished, the checkpoints in ``state/``;
``<model_root>/results.csv`` gets one line per finished run. Nothing of an earlier run is ever
overwritten.
"""

import errno
import json
import logging
import math
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fuxictr_tf4ctr import files
from fuxictr_tf4ctr.distributed.cost import machine_memory
from fuxictr_tf4ctr.errors import DataError, StorageError
from fuxictr_tf4ctr.schema import (
    ANYTHING,
    FLAG,
    TEXT,
    Key,
    Kind,
    ListOf,
    Record,
    one_of,
    read_json,
    whole,
)
from fuxictr_tf4ctr.settings.keys import DEFAULTS, KEYS
from fuxictr_tf4ctr.training.checkpoints import optimizer_file

RECORD_FORMAT = 1
STATUSES = ("running", "finished", "interrupted", "failed")
_MEASURED = Kind("a number", lambda value: isinstance(value, int | float) and value == value)
_METRICS = Record({}, others=_MEASURED)
_NAMED = Record({}, others=ANYTHING)
_EVALUATION = Record(
    {
        "epoch": whole(0),
        "step": whole(0),
        "train_loss": _MEASURED,
        "metrics": _METRICS,
        "learning_rate": Key(_MEASURED),
        "seconds": _MEASURED,
        "best": FLAG,
        "losses": Key(_METRICS, default={}),
        "twin": Key(_METRICS, default={}),
    },
    others=ANYTHING,
)
_DATA = Record(
    {
        "fingerprint": Key(TEXT, default=""),
        "rows": Key(Record({}, others=whole(0)), default={}),
        "folder": Key(TEXT, default=""),
    }
)
# Records of other programs, and of tests, may name no files.
_SETTINGS = KEYS | {key: Key(KEYS[key].kind) for key in ("data_format", "train_data")}
_SCHEMA = Record(
    {
        "format": Kind(f"{RECORD_FORMAT}, this version's", lambda value: value == RECORD_FORMAT),
        "expid": Kind(
            "the name of an experiment",
            lambda value: isinstance(value, str) and value == Path(value).name != "",
        ),
        "status": one_of(*STATUSES),
        "error": Key(TEXT),
        "command": TEXT,
        "started": Kind("an ISO time", lambda value: bool(datetime.fromisoformat(value).tzinfo)),
        "resumed": ListOf(TEXT),
        "settings": Record(_SETTINGS, others=ANYTHING),
        "versions": Record({}, others=TEXT),
        "machine": _NAMED,
        "data": _DATA,
        "ancestor": Key(_NAMED, default={}),
        "parameters": Key(whole(0)),
        "evaluations": ListOf(_EVALUATION),
        "valid": _METRICS,
        "test": _METRICS,
        "seconds": _METRICS,
    }
)
_PACKAGES = (
    "fuxictr-tf4ctr", "fuxictr", "torch", "pandas", "numpy", "scipy", "scikit-learn", "pyyaml",
    "h5py", "tqdm", "polars",
)  # fmt: skip


@dataclass
class RunRecord:
    """The content of run.json.

    Attributes:
        expid: Name of the experiment.
        folder: Folder of the run.
        status: One of ``STATUSES``.
        error: Why it failed, else None.
        command: The command line.
        started: Time of the start, ISO 8601, UTC.
        resumed: Times at which the run was taken up again.
        settings: All parameters of the run.
        versions: Versions of Python and of the packages that matter.
        machine: Processor, cores, memory, GPUs, CUDA.
        data: Fingerprint, row counts and folder of the encoded data set.
        ancestor: The run it went on from, if any: folder, expid, started, new_values by column.
        parameters: Number of trainable parameters.
        evaluations: One entry per validation during training: epoch, step, train_loss, metrics, …
        valid: Final metrics of the best checkpoint on the validation data.
        test: The same on the test data.
        seconds: Duration of each part of the run.
    """

    expid: str
    folder: Path
    settings: Mapping[str, Any]
    status: str = "running"
    error: str | None = None
    command: str = field(default_factory=lambda: command_line())
    started: str = field(default_factory=lambda: utc_now())
    resumed: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    data: dict[str, Any] = field(default_factory=dict)
    ancestor: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    valid: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def log_file(self) -> Path:
        """The run's log."""
        return self.folder / f"{self.expid}.log"

    @property
    def checkpoint(self) -> Path:
        """The best weights."""
        return self.folder / f"{self.expid}.model"

    @property
    def optimizer_file(self) -> Path:
        """State of the optimizers at the best weights, if the settings keep it."""
        return optimizer_file(self.checkpoint)

    @property
    def state_folder(self) -> Path:
        """Checkpoints of the full state of an unfinished run."""
        return self.folder / "state"

    @property
    def schema_folder(self) -> Path:
        """Feature map, vocabularies and fitted encoder: what the model needs beside its weights."""
        return self.folder / "schema"

    @property
    def calibration_file(self) -> Path:
        """The correction of probabilities, if the run has one."""
        return self.folder / "calibration.json"

    @property
    def json_file(self) -> Path:
        """The record itself."""
        return self.folder / "run.json"

    def save(self) -> None:
        """Write run.json, so that a reader sees the old content or the new, never a part."""
        content = {"format": RECORD_FORMAT, **vars(self), "folder": None}
        del content["folder"]
        files.write_whole(self.json_file, json.dumps(content, indent=2, default=plain) + "\n")

    def csv_line(self) -> str:
        """Return FuxiCTR's result line, which begins with the time of the run's start."""
        stamp = datetime.fromisoformat(self.started).astimezone().strftime("%Y%m%d-%H%M%S")
        return (
            f" {stamp},[command] {self.command},[exp_id] {self.expid},"
            f"[dataset_id] {self.settings['dataset_id']},[train] N.A.,"
            f"[val] {metrics_line(self.valid)},[test] {metrics_line(self.test)}\n"
        )

    def append_csv_line(self) -> Path:
        """Append FuxiCTR's result line to ``<model_root>/results.csv`` and return its path.

        A run that was taken up may have left its line before it was killed.
        """
        path = Path(self.settings["model_root"]) / "results.csv"
        line = self.csv_line().encode()
        with files.storage_errors(path), path.open("a+b", buffering=0) as results:
            size = results.seek(0, os.SEEK_END)
            results.seek(0)
            if self.resumed and line in results.read():
                return path
            if results.write(line) < len(line):
                results.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return path


@contextmanager
def new_run(expid: str, settings: Mapping[str, Any]) -> Iterator[RunRecord]:
    """Make the folder of a new run and its record, and hold the folder while in context.

    Args:
        expid: Name of the experiment.
        settings: Its parameters; ``model_root`` and ``dataset_id`` say where the folder goes.

    Raises:
        StorageError: The folder cannot be written.
    """
    parent = Path(settings["model_root"]) / settings["dataset_id"] / expid
    with files.storage_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        sweep_up(parent)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        with _made(parent / (stamp if attempt == 0 else f"{stamp}-{attempt}")) as folder:
            if folder is None:
                continue
            record = RunRecord(expid, folder, dict(settings))
            try:
                record.save()
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            yield record
            return
    raise StorageError(f"{parent} holds a thousand runs of this second")


@contextmanager
def _made(folder: Path) -> Iterator[Path | None]:
    """Make and hold a folder; None where another process has it, or swept it up as left over."""
    try:
        with files.storage_errors(folder):
            folder.mkdir()
    except StorageError:
        if not folder.exists():
            raise
        yield None
        return
    with files.held(folder / ".lock") as ours:
        yield folder if ours else None


def sweep_up(parent: Path) -> None:
    """Remove what killed runs of an experiment left and no run needs.

    Args:
        parent: The folder of the experiment's runs.
    """
    for folder in [path for path in parent.iterdir() if path.is_dir()]:
        files.sweep_up(folder)
        if _left_over(folder):
            with files.held(folder / ".lock") as ours:  # nobody is about to write into it
                for left in _left_over(folder) if ours else ():
                    shutil.rmtree(left, ignore_errors=True)


def _left_over(folder: Path) -> list[Path]:
    """Return the folder of a run that never began, or the states of one that is finished."""
    if not {path.name for path in folder.iterdir()} - {".lock"}:
        return [folder]
    state = folder / "state"
    if not state.is_dir():
        return []
    with suppress(DataError):
        return [state] if read_run(folder).status == "finished" else []
    return []


def read_run(folder: Path) -> RunRecord:
    """Read the record of an earlier run.

    Raises:
        DataError: The folder is not there, holds no run.json, or none that this version wrote.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the folder of a run")
    file = folder / "run.json"
    try:
        content = read_json(file, _SCHEMA, "another version's, or damaged: train again")
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; name the folder of a run") from None
    del content["format"]
    content["settings"] = DEFAULTS | content["settings"]  # of keys younger than the run
    return RunRecord(folder=folder, **content)


@contextmanager
def logging_to(file: Path, on_stderr: bool = True) -> Iterator[None]:
    """Send log lines, in FuxiCTR's format, to a file and to standard error while in context."""
    line_format = logging.Formatter("%(asctime)s P%(process)d %(levelname)s %(message)s")
    handlers: list[logging.Handler] = [_LogFile(file, encoding="utf-8")]
    handlers += [logging.StreamHandler()] if on_stderr else []
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(line_format)
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            with suppress(OSError):  # of a line that could not be written, and was raised for then
                handler.close()


class _LogFile(logging.FileHandler):
    """A log that ends the run where it cannot be written, in place of a traceback per line."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


def utc_now() -> str:
    """Return the time, ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat("T", "seconds")


def metrics_line(metrics: Mapping[str, float]) -> str:
    """Format metrics as FuxiCTR does: ``AUC: 0.8 - logloss: 0.4``, six decimals."""
    return " - ".join(f"{name}: {value:.6f}" for name, value in metrics.items())


def command_line() -> str:
    """Return the command line as one would type it."""
    return shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])


def versions(others: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of Python, of the packages that matter for a result, and of others."""
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *others):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Describe the hardware a run has."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = machine_memory()
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30) if math.isfinite(memory) else None,
        "cuda": torch.version.cuda,
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "item"):
        return value.item()
    return str(value)
