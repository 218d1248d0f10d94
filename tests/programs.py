"""Python programs as processes of their own, forked from one that has imported torch already.

Importing torch, FuxiCTR and scikit-learn takes 5 s, most of what a small run takes. One started
here is one all the same: it has a pid, an environment, a folder and an exit status of its own, and
is killed like any other. Only /proc shows the command and environment of the one it came of.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

FUXICTR = ("-m", "fuxictr_tf4ctr")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch._dynamo", "fuxictr_tf4ctr.runs.experiment", "model_zoo"])


class Program:
    """A running program: ``-m MODULE``, ``-c CODE`` or a script's path, then its arguments."""

    def __init__(self, *command: object, cwd: Path, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        words = [str(word) for word in command]
        self._process = _context.Process(
            target=_become, args=(words, cwd, os.environ | environment, self._folder.name)
        )
        self._process.start()
        self.pid = self._process.pid
        weakref.finalize(self, self._process.kill)  # a test that fails leaves no process behind

    @property
    def returncode(self) -> int | None:
        """Exit status; minus the signal that ended the process; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = 300) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end and return what was written to stdout and to stderr."""
        self.wait(timeout)
        stdout, stderr = (Path(self._folder.name, name) for name in ("stdout", "stderr"))
        return stdout.read_text(), stderr.read_text()


def run_program(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a program to its end."""
    program = Program(*command, cwd=cwd, **environment)
    output = program.communicate()
    return subprocess.CompletedProcess(command, program.returncode, *output)


def fresh(site: Path, *paths: Path) -> str:
    """Code that begins as a Python that has not met FuxiCTR, and has ours nowhere on its path.

    Args:
        site: Folder of packages, last on the path.
        *paths: What is first on it.
    """
    return f"""
import glob, sys
sys.path[:] = [path for path in sys.path if not glob.glob((path or ".") + "/fuxictr*/")]
sys.path[:] = [*{[*map(str, paths)]}, *sys.path, {str(site)!r}]
sys.meta_path[:] = [
    finder for finder in sys.meta_path
    if not getattr(finder, "__module__", type(finder).__module__).startswith("fuxictr")
]
for name in list(sys.modules):
    if name.startswith(("fuxictr", "model_zoo")):
        del sys.modules[name]
del glob, name
"""


def _become(command: list[str], cwd: Path, environment: dict[str, str], outputs: str) -> None:
    """Go on as the process of a program."""
    atexit._clear()  # what is to be done at the end of the process this one was forked from
    multiprocessing.set_start_method(None, force=True)  # of its own children: as Python's is
    for number, name in enumerate(("stdout", "stderr"), start=1):
        with open(Path(outputs, name), "wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, *words = command
    sys.path.insert(0, str(Path(kind).parent) if not kind.startswith("-") else "")
    try:
        if kind == "-m":
            sys.argv = words
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *words[1:]]
            exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = command
            runpy.run_path(kind, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
