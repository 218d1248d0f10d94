"""Kills, interrupts and pauses at every file operation of a command, and what comes after."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from . import forking, project
from .forking import run
from .project import Project
from .verdicts import Failure, Tally, judge

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
_OPERATIONS = {
    *("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"),
    *("os.chmod", "os.utime", "fcntl.flock", "shutil.rmtree"),
}
_ENCODE = ("encode", "--config", "config", "--dataset", "mine")
_TUNE = ("tune", "--config", "tuner.yaml", "--output", "sweep")
_PREDICT = ("predict", "--run", "done", "--input", "raw/test.csv", "--output", "scores.csv")


@dataclass(frozen=True)
class Scenario:
    """A command that is cut off, and how it is taken up again.

    Attributes:
        argv: The command.
        again: What finishes the work; the first that exits with 0 has.
        result: Reads what the work made, to be the same however it was cut off.
        remove: What of the project is not there yet.
    """

    argv: tuple[str, ...]
    again: tuple[tuple[str, ...], ...]
    result: Callable[[Path], object]
    remove: tuple[str, ...] = ()


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


def _finished(root: Path) -> list[object]:
    records = [json.loads(file.read_text()) for file in sorted(root.rglob("run.json"))]
    return [(r["valid"], r["test"]) for r in records if r["status"] == "finished"]


def _runs(folder: Path) -> object:
    """Metrics of the finished runs, with what must agree with them."""
    lines = (folder / "checkpoints" / "results.csv").read_text().splitlines()
    finished = _finished(folder / "checkpoints")
    assert len(lines) == len(finished) == len(set(lines)), f"{len(lines)} lines in results.csv"
    # A run that was done but for the last tidying is no run to go on with: there are two then.
    return sorted(set(map(str, finished)))


def _scores(folder: Path) -> object:
    return (folder / "scores.csv").read_bytes()


def _sweep(folder: Path) -> object:
    ranking = (folder / "sweep" / "ranking.csv").read_text().splitlines()
    return [line.split(",")[:6] for line in ranking], sorted(map(str, _finished(folder / "sweep")))


def _exported(folder: Path) -> object:
    manifest = json.loads((folder / "served" / "manifest.json").read_text())
    return sorted(path.name for path in (folder / "served").iterdir()), manifest["outputs"]


def _page(folder: Path) -> object:
    return (folder / "report.html").read_text().count("<svg")


SCENARIOS = {
    "encode": Scenario(_ENCODE, (_ENCODE,), _encoded, ("encoded",)),
    "run": Scenario(
        project.RUN, ((*project.RUN, "--resume"), project.RUN), _runs, ("checkpoints",)
    ),
    "tune": Scenario(_TUNE, ((*_TUNE, "--resume"), _TUNE), _sweep),
    "predict": Scenario(_PREDICT, (_PREDICT,), _scores),
    "report": Scenario(
        ("report", "done", "--resamples", "9"), (("report", "done", "--resamples", "9"),), _page
    ),
    "export": Scenario(
        ("export", "--run", "done", "--output", "served"),
        (("export", "--run", "done", "--output", "served"),),
        _exported,
    ),
}


def campaign(lent: Project, name: str, most: int, tally: Tally) -> None:
    """Cut a command off at its file operations, take it up again, and compare.

    Args:
        lent: The project.
        name: Of the scenario.
        most: How many kills at most, evenly over all operations, the signals in turns where this
            is less than all.
        tally: Where to count; each kill with the commands after it is one case.
    """
    scenario = SCENARIOS[name]
    folder, count = _prepared(lent, scenario), lent.place.with_name("count")
    ended = run(scenario.argv, folder, lambda: _at(folder, None, 0, count))
    assert ended.status == 0, ended.errors
    expected = scenario.result(folder)
    every = [(at + 1, sent) for at in range(int(count.read_text())) for sent in SIGNALS]
    step = max(1, len(every) // max(most, 1))
    # A step that shares a factor with the signals would leave some out.
    for operation, sent in every[:: step + (step % 2 == 0)]:
        _cut_off(lent, name, operation, sent, expected, tally)


def _cut_off(
    lent: Project, name: str, operation: int, sent: int, expected: object, tally: Tally
) -> None:
    scenario, folder = SCENARIOS[name], _prepared(lent, SCENARIOS[name])
    case = f"{name} with {signal.Signals(sent).name} at file operation {operation}"
    ended = run(scenario.argv, folder, lambda: _at(folder, operation, sent))
    failures = judge(ended, case, sent)
    # Cut off when all was done, there is nothing to take up.
    if ended.status != 0 and not failures and _compared(scenario, folder, expected, case):
        tried = []
        for argv in scenario.again:
            tried.append(run(argv, folder))
            failures += [f for f in judge(tried[-1], f"{case}, then {' '.join(argv)}")]
            if tried[-1].status == 0:
                break
        if tried[-1].status != 0:
            failures.append(Failure("state", "cannot be taken up", case, tried[-1].errors[-3000:]))
    if not failures:
        failures = _compared(scenario, folder, expected, case)
    tally.add(f"kill: {name}", ended.status, failures)


def _compared(scenario: Scenario, folder: Path, expected: object, case: str) -> list[Failure]:
    try:
        found = scenario.result(folder)
    except (AssertionError, OSError, ValueError, KeyError) as error:
        return [Failure("state", f"{scenario.argv[0]}: {error}"[:100], case)]
    if found != expected:
        return [Failure("state", f"{scenario.argv[0]}: another result", case, f"{found}"[:1000])]
    left = sorted(_left(folder))
    return (
        [Failure("state", f"{scenario.argv[0]}: left {left[0]}", case, f"{left}")] if left else []
    )


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


def _prepared(lent: Project, scenario: Scenario) -> Path:
    folder = lent.copy()
    for name in scenario.remove:
        shutil.rmtree(folder / name)
    return folder


def _at(folder: Path, operation: int | None, sent: int, count: Path | None = None) -> None:
    """Send this process a signal just before an operation on a file of a folder.

    Args:
        folder: Only what lies in it counts.
        operation: Which operation, from 1; None for none.
        sent: The signal.
        count: Where to write how many operations there were.
    """
    from fuxictr_tf4ctr import files

    inside, done, busy = f"{folder}{os.sep}", 0, False

    def step() -> None:
        nonlocal done, busy
        done += forking.watched
        if count is not None and not busy:
            busy = True
            count.write_text(str(done))
            busy = False
        if done == operation and forking.watched:
            os.kill(os.getpid(), sent)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if busy or event not in _OPERATIONS or not forking.watched:
            return
        name = arguments[0] if arguments else None
        if isinstance(name, str | os.PathLike | bytes):
            path = os.path.join(os.getcwd(), os.fsdecode(name))
            if path.startswith(inside):
                step()
        elif event == "fcntl.flock":
            step()

    write = files.Output.write

    def counted(self: files.Output, data: bytes) -> int:
        step()
        return write(self, data)

    files.Output.write = counted
    sys.addaudithook(hook)
