"""Commands run in forks of a process that has imported everything already."""

import faulthandler
import gc
import importlib
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Whether operations on files are counted in this process, see :mod:`.kills`.
watched = True
# What one command may take: seconds of a processor, seconds of the clock, bytes beyond the imports.
CPU_SECONDS, SECONDS, MEMORY = 60, 300, 4 << 30
# Not onnxruntime, which starts a thread: a fork has none, and waits for it for ever.
_LAZY = (
    *("onnx", "onnxscript", "optuna", "pyarrow.parquet", "torch.onnx"),
    *("torch._dynamo", "torch.export", "torch.utils.tensorboard", "sqlalchemy", "ctypes.util"),
)
# Arguments of the command line, and what is called before.
Job = tuple[Sequence[str], Callable[[], object] | None]


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: Exit status; that of a signal is negative.
        output: What it wrote to standard output.
        errors: What it wrote to standard error.
        seconds: How long it took.
        hung: Whether it was ended because it took too long.
    """

    status: int
    output: str
    errors: str
    seconds: float
    hung: bool = False


def warm_up() -> None:
    """Import all that commands import and a fork may share: no library that starts threads."""
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    package = importlib.import_module("fuxictr_tf4ctr")
    for module in pkgutil.walk_packages(package.__path__, "fuxictr_tf4ctr."):
        if ".engines" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("fuxictr_tf4ctr.registry").describe_models()
    for name in _LAZY:
        importlib.import_module(name)
    graphs = importlib.import_module("fuxictr_tf4ctr.serving.graphs")
    importlib.import_module("tqdm").tqdm.monitor_interval = 0  # which would be a thread
    with graphs._export_errors("ONNX"):  # the first export takes three times as long as others
        torch.onnx.export(torch.nn.Linear(1, 1), (torch.zeros(3, 1),), dynamo=True, verbose=False)
    gc.collect()
    gc.freeze()


def run(argv: Sequence[str], folder: Path, before: Callable[[], object] | None = None) -> Ended:
    """Run a command in a folder, in a fork.

    Args:
        argv: Arguments of the command line.
        folder: Its working directory; what it prints lies beside it for the while.
        before: Called in the fork, before the command.
    """
    (ended,) = run_all([(argv, before)], folder)
    return ended


def run_all(jobs: Sequence[Job], folder: Path) -> list[Ended]:
    """Run commands one after the other in one fork; another goes on where it did not survive one.

    Args:
        jobs: Arguments of the command line, and what is called before; it may make the folder.
        folder: The working directory of all.
    """
    done: list[Ended] = []
    while len(done) < len(jobs):
        left = jobs[len(done) :]
        done += _ends(*_start(left, folder, 0), len(left))
    return done


def run_at_once(jobs: Sequence[Job], folder: Path) -> list[Ended]:
    """Run commands at once, each in a fork; arguments as for :func:`run_all`."""
    started = [_start([job], folder, place) for place, job in enumerate(jobs)]
    return [_ends(process, notes, 1)[0] for process, notes in started]


def _start(jobs: Sequence[Job], folder: Path, place: int) -> tuple[int, Path]:
    """Start a fork that runs jobs; returns it, and where it notes how they end."""
    notes = folder.with_name(f"{folder.name}.{place}.status")
    notes.write_text("")
    process = os.fork()
    if process == 0:
        try:
            _child(jobs, folder, notes)
        finally:  # never into what the parent does next, nor its libraries' last rites
            os._exit(1)
    return process, notes


def _ends(process: int, notes: Path, jobs: int) -> list[Ended]:
    """Wait for a fork; how its jobs ended, up to the one that it did not survive."""
    status, hung = _wait(process, notes)
    ends = [line.split() for line in notes.read_text().splitlines()]
    found = [(int(code), float(seconds), False) for code, seconds in ends]
    if len(found) < jobs:
        found.append((status, 0.0, hung))
    texts = [
        [path.read_text("utf-8", "replace") for path in _outputs(notes, number)]
        for number in range(len(found))
    ]
    return [
        Ended(code, *said, took, late)
        for said, (code, took, late) in zip(texts, found, strict=True)
    ]


def _outputs(notes: Path, number: int) -> list[Path]:
    return [notes.with_suffix(f".{number}.{kind}") for kind in ("out", "err")]


def _child(jobs: Sequence[Job], folder: Path, notes: Path) -> None:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for sent in (signal.SIGUSR1, signal.SIGXCPU):  # what takes too long says where it is
        faulthandler.register(sent, chain=True)
    subprocess.Popen = ForkedPopen
    status = 1
    for number, (argv, before) in enumerate(jobs):
        start = time.monotonic()
        for stream, path in enumerate(_outputs(notes, number), start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        resource.setrlimit(resource.RLIMIT_CPU, (round(time.process_time()) + CPU_SECONDS, -1))
        status = _status(argv, folder, before)
        with notes.open("a") as file:
            file.write(f"{status} {time.monotonic() - start:.3f}\n")
    os._exit(status)


def _status(argv: Sequence[str], folder: Path, before: Callable[[], object] | None = None) -> int:
    """Run a command as a process of its own would, and return its exit status."""
    status = 1
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace", closefd=False)
    try:
        sys.argv = ["fuxictr", *argv]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        from fuxictr_tf4ctr.cli import main

        if before is not None:
            before()
        os.chdir(folder)
        status = main(list(argv))
    except SystemExit as end:  # argparse
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
    return status


class ForkedPopen:
    """Takes the place of ``subprocess.Popen`` where a sweep starts ``python -m fuxictr_tf4ctr``."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.update(options["env"])
            for number in (1, 2):
                os.dup2(options["stdout"].fileno(), number)
            globals()["watched"] = False
            os._exit(_status(command[3:], Path.cwd()))

    def poll(self) -> int | None:
        """As :meth:`subprocess.Popen.poll`."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As :meth:`subprocess.Popen.wait`."""
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode

    def terminate(self) -> None:
        """As :meth:`subprocess.Popen.terminate`."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """As :meth:`subprocess.Popen.kill`."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _wait(process: int, notes: Path) -> tuple[int, bool]:
    """Wait for a process; wake it where it was stopped, end it where it makes no progress."""
    hung, pause, size, since = False, 0.002, 0, time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG | os.WUNTRACED)
        if ended and os.WIFSTOPPED(status):
            time.sleep(0.02)
            os.kill(process, signal.SIGCONT)
        elif ended:
            code = os.waitstatus_to_exitcode(status)
            return code, hung or code == -signal.SIGXCPU
        if notes.stat().st_size != size:
            size, since = notes.stat().st_size, time.monotonic()
        if time.monotonic() - since > SECONDS and not hung:
            hung = True
            os.kill(process, signal.SIGUSR1)
            time.sleep(1)
            os.killpg(process, signal.SIGKILL)
        try:
            time.sleep(pause)
        except BaseException:  # this process is to end
            os.killpg(process, signal.SIGKILL)
            raise
        pause = min(2 * pause, 0.05)
