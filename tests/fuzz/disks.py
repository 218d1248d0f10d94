"""Commands on a disk that becomes full, or that nobody may write to."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import project
from .forking import run
from .kills import SCENARIOS, _left
from .project import Project
from .verdicts import Failure, Tally, judge

PAGE = 4096
COMMANDS = {
    **{name: scenario.argv for name, scenario in SCENARIOS.items()},
    "export torch": ("export", "--run", "done", "--output", "served", "--format", "torch"),
    "predict parquet": (
        *("predict", "--run", "done", "--input", "raw/test.csv", "--output", "scores.parquet"),
    ),
    "compare": ("compare", "done", "done", "--resamples", "9"),
    "resume": (*project.RUN, "--resume"),
}


def mountable(folder: Path) -> bool:
    """Whether this user may mount a small file system."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        return False
    subprocess.run(["umount", folder], check=True)
    return True


@contextmanager
def _mounted(folder: Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def campaign(lent: Project, name: str, points: int, tally: Tally) -> None:
    """Run a command on a disk with few free pages or none to write to, then with all it needs.

    Args:
        lent: The project, at a place where a file system can be mounted.
        name: Of the command.
        points: How many disks: read-only, with 0 free pages, with 1, and so on to what it needs.
        tally: Where to count; a disk with the command after it is one case.
    """
    argv, free, step = COMMANDS[name], -2, 1
    for point in range(points):
        free += step
        step += point >= points // 2  # fine where files begin, coarse where they are written
        with _mounted(lent.place):
            folder = _filled(lent, name)
            stat = os.statvfs(folder)
            used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
            _remount(folder, "ro" if free < 0 else f"size={used + free * PAGE}")
            case = f"{name} on a disk with {free} free pages"
            ended = run(argv, folder)
            failures = judge(ended, case)
            words = ("no space left", "read-only")
            if ended.status == 1 and not any(word in ended.errors for word in words):
                failures.append(Failure("message", "nothing of the disk", case, ended.errors))
            _remount(folder, "rw,size=256m")
            if ended.status != 0:
                again = _again(name, folder)
                after = run(again, folder)
                failures += judge(after, f"{case}, then with space")
                if after.status != 0:
                    failures.append(Failure("state", "cannot be done after", case, after.errors))
                failures += [
                    Failure("state", f"{name}: left {each}", case) for each in _left(folder)
                ]
            tally.add(f"disk: {name}", ended.status, failures)


def _filled(lent: Project, name: str) -> Path:
    folder = lent.copy()
    if name == "encode":
        subprocess.run(["rm", "-r", folder / "encoded"], check=True)
    if name == "resume":
        (run_folder,) = (folder / "checkpoints" / "mine" / "exp").iterdir()
        record = run_folder / "run.json"
        record.write_text(record.read_text().replace('"finished"', '"interrupted"'))
    return folder


def _again(name: str, folder: Path) -> Sequence[str]:
    argv = list(COMMANDS[name])
    if name == "run" and any(
        '"finished"' not in f.read_text() for f in folder.glob("checkpoints/*/*/*/run.json")
    ):
        argv.append("--resume")
    if name == "tune" and (folder / "sweep" / "sweep.json").is_file():
        argv.append("--resume")
    if name == "tune" and (folder / "sweep").is_dir() and "--resume" not in argv:
        subprocess.run(["rm", "-r", folder / "sweep"], check=True)
    return argv
