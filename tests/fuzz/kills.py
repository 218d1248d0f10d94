"""Kills, interrupts and pauses at every file operation of a command, and what comes after."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

from . import forking
from .forking import run
from .project import Project
from .scenarios import SCENARIOS
from .verdicts import Tally, judge

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
_OPERATIONS = {
    *("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"),
    *("os.chmod", "os.utime", "fcntl.flock", "shutil.rmtree"),
}


def campaign(name: str, lent: Project, most: int, tally: Tally) -> None:
    """Cut a command off at its file operations, take it up again, and compare.

    Args:
        name: Of the scenario.
        lent: The project.
        most: How many kills at most, evenly over all operations, the signals in turns where this
            is less than all.
        tally: Where to count; each kill with the commands after it is one case.
    """
    scenario = SCENARIOS[name]
    folder, count = scenario.prepared(lent), lent.place.with_name("count")
    ended = run(scenario.argv, folder, partial(_at, folder, None, 0, count))
    assert ended.status == 0, ended.errors
    expected = scenario.result(folder)
    operations = int(count.read_text())
    most = min(most, operations * len(SIGNALS))
    for number in range(most):
        operation, sent = 1 + number * operations // most, SIGNALS[number % len(SIGNALS)]
        case = f"{name} with {signal.Signals(sent).name} at file operation {operation}"
        folder = scenario.prepared(lent)
        ended = run(scenario.argv, folder, partial(_at, folder, operation, sent))
        failures = judge(ended, case, sent) or scenario.settled(folder, ended, expected, case)
        tally.add(f"kill: {name}", ended.status, failures)


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
