"""Commands that make something, how they are taken up where they were cut off, and what they made.

Cut off by a signal (:mod:`.kills`), by a full disk (:mod:`.disks`), or at work beside others of
their kind (:mod:`.together`), all must end with the same.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from . import project
from .forking import Ended, run
from .project import RUN, Project
from .verdicts import Failure, judge

_ENCODE = ("encode", "--config", "config", "--dataset", "mine")
_TUNE = ("tune", "--config", "tuner.yaml", "--output", "sweep")
_GO_ON = (*project.CONTINUE, "--set", "calibration=isotonic")
_REPORT = ("report", "done", "--resamples", "9")
_PREDICT = ("predict", "--run", "done", "--input", "raw/many.csv", "--output")
_EXPORT = ("export", "--run", "done", "--output", "served", "--format")


@dataclass(frozen=True)
class Scenario:
    """A command that is cut off, and how it is taken up again.

    Attributes:
        argv: The command.
        result: Reads what the work made, to be the same however it was cut off.
        again: What finishes the work; the first that exits with 0 has. None for the command itself.
        remove: What of the project is not there yet.
    """

    argv: tuple[str, ...]
    result: Callable[[Path], object] = lambda folder: None
    again: tuple[tuple[str, ...], ...] | None = None
    remove: tuple[str, ...] = ()

    def prepared(self, lent: Project) -> Path:
        """Return a copy of the project as the command finds it."""
        folder = lent.copy()
        for name in self.remove:
            shutil.rmtree(folder / name)
        return folder

    def expected(self, lent: Project) -> object:
        """Return what the command makes where nothing comes between."""
        folder = self.prepared(lent)
        ended = run(self.argv, folder)
        assert ended.status == 0, ended.errors
        return self.result(folder)

    def settled(self, folder: Path, ended: Ended, expected: object, case: str) -> list[Failure]:
        """Take a command that was cut off up again; list what is wrong with that, or was made.

        Args:
            folder: Where it ran.
            ended: How it ended.
            expected: What it must make.
            case: What to repeat to see it.
        """
        failures = self._compared(folder, expected, case)
        # Cut off when all was done, there is nothing to take up.
        if ended.status == 0 or not failures:
            return failures
        failures = []
        for argv in self.again or (self.argv,):
            again = run(argv, folder)
            failures += judge(again, f"{case}, then {' '.join(argv)}")
            if again.status == 0:
                return failures or self._compared(folder, expected, case)
        return [*failures, Failure("state", "cannot be taken up", case, again.errors[-3000:])]

    def _compared(self, folder: Path, expected: object, case: str) -> list[Failure]:
        try:
            found = self.result(folder)
        except (AssertionError, OSError, ValueError, KeyError) as error:
            return [Failure("state", f"{self.argv[0]}: {error}"[:100], case)]
        if found != expected:
            return [Failure("state", f"{self.argv[0]}: another result", case, f"{found}"[:1000])]
        left = sorted(_left(folder))[:1]
        return [Failure("state", f"{self.argv[0]}: left {name}", case) for name in left]


def _left(folder: Path) -> Iterator[str]:
    """Name what should be gone when all is done."""
    for path in folder.rglob("*"):
        if path.name.endswith(".tmp") or path.name.startswith((".encoding", ".served")):
            yield path.name.split("-")[0]
    for run_folder in (*folder.glob("checkpoints/*/*/*"), *folder.glob("sweep/runs/*/*/*")):
        if run_folder.is_dir() and not (run_folder / "run.json").is_file():
            yield "a folder without run.json"
        elif run_folder.is_dir() and (run_folder / "state").exists():
            yield "state"


def _encoded(folder: Path) -> object:
    found = {}
    for file in sorted((folder / "encoded" / "mine").glob("*.h5")):
        with h5py.File(file) as content:
            found[file.name] = {
                name: np.asarray(each).tobytes()
                for name, each in content.items()
                if isinstance(each, h5py.Dataset)
            }
    return found


def _finished(files: Sequence[Path]) -> list[object]:
    records = [json.loads(file.read_text()) for file in sorted(files)]
    return [(r["valid"], r["test"]) for r in records if r["status"] == "finished"]


def _runs(folder: Path) -> object:
    """Metrics of the finished runs, with what must agree with them."""
    lines = (folder / "checkpoints" / "results.csv").read_text().splitlines()
    finished = _finished([*(folder / "checkpoints").rglob("run.json")])
    assert len(lines) == len(finished), f"{len(lines)} lines in results.csv"
    # A run that was done but for the last tidying is no run to go on with: there are two then.
    return sorted(set(map(str, finished)))


def _sweep(folder: Path) -> object:
    ranking = (folder / "sweep" / "ranking.csv").read_text().splitlines()
    runs = _finished([*(folder / "sweep").rglob("run.json")])
    return [line.split(",")[:6] for line in ranking], sorted(map(str, runs))


def _exported(folder: Path) -> object:
    manifest = json.loads((folder / "served" / "manifest.json").read_text())
    return sorted(path.name for path in (folder / "served").iterdir()), manifest["outputs"]


def _begun(folder: Path) -> object:
    return {path.name: path.read_text() for path in (folder / "begun").glob("*.yaml")}


SCENARIOS = {
    "init": Scenario(("init", "raw/many.csv", "--label", "label", "--output", "begun"), _begun),
    "encode": Scenario(_ENCODE, _encoded, remove=("encoded",)),
    "run": Scenario(RUN, _runs, ((*RUN, "--resume"), RUN), ("checkpoints",)),
    "resume": Scenario(
        (*RUN, "--resume", project.STOPPED),
        lambda folder: _finished([folder / project.STOPPED / "run.json"]),
    ),
    "continue": Scenario(_GO_ON, _runs, ((*_GO_ON, "--resume"), _GO_ON), ("checkpoints",)),
    "tune": Scenario(_TUNE, _sweep, ((*_TUNE, "--resume"), _TUNE)),
    "predict": Scenario(
        (*_PREDICT, "s.csv", "--streams"), lambda folder: (folder / "s.csv").read_bytes()
    ),
    "predict parquet": Scenario(
        (*_PREDICT, "s.parquet"), lambda folder: (folder / "s.parquet").read_bytes()
    ),
    "report": Scenario(_REPORT, lambda folder: (folder / "report.html").read_text().count("<svg")),
    "export": Scenario((*_EXPORT, "onnx"), _exported),
    "export torch": Scenario((*_EXPORT, "torch"), _exported),
    "compare": Scenario(("compare", "done", "done", "--resamples", "9")),
    "evaluate": Scenario(("evaluate", "--run", "done")),
    "explain": Scenario(
        ("explain", "done", "--seed", "1"),
        lambda folder: json.loads((folder / "done" / "explanation.json").read_text()),
    ),
}
