"""Commands on a disk that becomes full, that nobody may write to, or that takes no large files."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .forking import Ended, run
from .project import Project
from .scenarios import SCENARIOS
from .verdicts import Failure, Tally, judge

_PAGE = 4096
_WORDS = ("no space left", "read-only", "larger than this process may write")


def mountable(folder: Path) -> bool:
    """Whether this user may mount a small file system."""
    try:
        with _mounted(folder):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def full(name: str, lent: Project, points: int, tally: Tally) -> None:
    """Run a command on a disk with few free pages or none to write to, then with all it needs.

    Args:
        name: Of the scenario.
        lent: The project, at a place where a file system can be mounted.
        points: How many disks: read-only, full, and so on evenly to what the command needs.
        tally: Where to count; a disk with the command after it is one case.
    """
    scenario = SCENARIOS[name]
    with _mounted(lent.place):
        before = _used(scenario.prepared(lent))
        expected = scenario.expected(lent)
        needs = 2 * (_used(lent.place) - before) // _PAGE  # what is replaced stays for the while
    for free in [-1, *_spread(needs + 2, points - 1)]:
        with _mounted(lent.place):
            folder = scenario.prepared(lent)
            _mount(folder, "remount," + ("ro" if free < 0 else f"size={before + free * _PAGE}"))
            ended = run(scenario.argv, folder)
            _mount(folder, "remount,rw,size=256m")
            case = f"{name} on a disk with {free} free pages"
            failures = _said(ended, case) or scenario.settled(folder, ended, expected, case)
            tally.add(f"disk: {name}", ended.status, failures)


def small(name: str, lent: Project, points: int, tally: Tally) -> None:
    """As :func:`full` for a process that may write small files only, which any user can make."""
    scenario = SCENARIOS[name]
    expected = scenario.expected(lent)
    largest = max(path.stat().st_size for path in lent.place.rglob("*")) // _PAGE
    for pages in _spread(largest + 2, points):
        folder = scenario.prepared(lent)
        most = (1 + pages) * _PAGE  # what it says, and the notes of how it ended, are files too
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
        ended = run(scenario.argv, folder, limit)
        case = f"{name} with files of at most {most} bytes"
        failures = _said(ended, case) or scenario.settled(folder, ended, expected, case)
        tally.add(f"small files: {name}", ended.status, failures)


def _said(ended: Ended, case: str) -> list[Failure]:
    failures = judge(ended, case)
    if ended.status and not failures and not any(word in ended.errors for word in _WORDS):
        return [Failure("message", "nothing of the disk", case, ended.errors[-3000:])]
    return failures


def _spread(most: int, points: int) -> list[int]:
    """Return so many whole numbers at most, evenly from 0 to ``most``."""
    return sorted({round(most * point / max(points - 1, 1)) for point in range(points)})


@contextmanager
def _mounted(folder: Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    _mount(folder, "size=256m")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    subprocess.run(command, check=True, capture_output=True)


def _used(folder: Path) -> int:
    stat = os.statvfs(folder)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize
