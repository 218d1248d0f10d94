"""What a run leaves: a folder of its own with log, checkpoint and run.json, and FuxiCTR's csv line.

``<model_root>/<dataset_id>/<expid>/<time>/`` holds ``<expid>.log``, ``<expid>.model``,
``run.json``, ``schema/`` and, until the run is finished, the checkpoints in ``state/``;
``<model_root>/results.csv`` gets one line per finished run. Nothing of an earlier run is ever
overwritten.
"""

import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from fuxictr_tf4ctr.errors import DataError

RECORD_FORMAT = 1
_PACKAGES = (
    *("fuxictr-tf4ctr", "fuxictr", "torch", "pandas", "numpy", "scipy", "scikit-learn", "pyyaml"),
    *("h5py", "tqdm", "polars"),
)


@dataclass
class RunRecord:
    """The content of run.json.

    Attributes:
        expid: Name of the experiment.
        folder: Folder of the run.
        status: "running", "finished", "interrupted" or "failed".
        error: Why it failed, else None.
        command: The command line.
        started: Time of the start, ISO 8601, UTC.
        resumed: Times at which the run was taken up again.
        settings: All parameters of the run.
        versions: Versions of Python and of the packages that matter.
        machine: Processor, cores, memory, GPUs, CUDA.
        data: Fingerprint, row counts and folder of the encoded data set.
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
    def state_folder(self) -> Path:
        """Checkpoints of the full state of an unfinished run."""
        return self.folder / "state"

    @property
    def schema_folder(self) -> Path:
        """Feature map, vocabularies and fitted encoder: what the model needs beside its weights."""
        return self.folder / "schema"

    @property
    def json_file(self) -> Path:
        """The record itself."""
        return self.folder / "run.json"

    def save(self) -> None:
        """Write run.json, so that a reader sees the old content or the new, never a part."""
        content = {"format": RECORD_FORMAT, **vars(self), "folder": None}
        del content["folder"]
        temporary = self.json_file.with_suffix(".tmp")
        text = json.dumps(content, indent=2, default=plain)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, self.json_file)

    def csv_line(self) -> str:
        """Return FuxiCTR's result line, which begins with the time of the run's start."""
        stamp = datetime.fromisoformat(self.started).astimezone().strftime("%Y%m%d-%H%M%S")
        return (
            f" {stamp},[command] {self.command},[exp_id] {self.expid},"
            f"[dataset_id] {self.settings['dataset_id']},[train] N.A.,"
            f"[val] {metrics_line(self.valid)},[test] {metrics_line(self.test)}\n"
        )

    def append_csv_line(self) -> Path:
        """Append FuxiCTR's result line to ``<model_root>/results.csv`` and return its path."""
        path = Path(self.settings["model_root"]) / "results.csv"
        with path.open("a", encoding="utf-8") as results:
            results.write(self.csv_line())
        return path


def new_run(expid: str, settings: Mapping[str, Any]) -> RunRecord:
    """Make the folder of a new run and its record.

    Args:
        expid: Name of the experiment.
        settings: Its parameters; ``model_root`` and ``dataset_id`` say where the folder goes.

    Raises:
        OSError: The folder cannot be written.
    """
    parent = Path(settings["model_root"]) / settings["dataset_id"] / expid
    parent.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        folder = parent / (stamp if attempt == 0 else f"{stamp}-{attempt}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        record = RunRecord(expid, folder, dict(settings))
        record.save()
        return record
    raise FileExistsError(f"{parent} holds a thousand runs of this second")


def read_run(folder: Path) -> RunRecord:
    """Read the record of an earlier run.

    Raises:
        DataError: The folder holds no run.json, or none that this version wrote.
    """
    file = folder / "run.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("format") != RECORD_FORMAT:
            raise ValueError("it is of another format")
        return RunRecord(folder=folder, **content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no record of a run: {error}") from error


@contextmanager
def logging_to(file: Path, on_stderr: bool = True) -> Iterator[None]:
    """Send log lines, in FuxiCTR's format, to a file and to standard error while in context."""
    line_format = logging.Formatter("%(asctime)s P%(process)d %(levelname)s %(message)s")
    handlers: list[logging.Handler] = [logging.FileHandler(file, encoding="utf-8")]
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
            handler.close()


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold a run's folder against other processes while in context.

    Yields:
        Whether it is ours. A process that was killed holds nothing.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


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
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
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


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, OSError, ValueError):  # no such thing outside POSIX
        return None


def plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "item"):
        return value.item()
    return str(value)
