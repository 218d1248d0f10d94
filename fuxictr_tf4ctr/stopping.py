"""How a process ends before it is done: on SIGINT or SIGTERM, or because its parent is gone.

Signals reach Python's main thread only; in other threads these contexts do nothing.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fuxictr_tf4ctr.errors import Terminated

# The environment of a child names the process it must not outlive.
_PARENT = "FUXICTR_PARENT"
_SECONDS_BETWEEN_LOOKS = 0.5

_asked: list[KeyboardInterrupt | Terminated] = []


@contextmanager
def signals_raise() -> Iterator[list[KeyboardInterrupt | Terminated]]:
    """Let SIGINT raise KeyboardInterrupt and SIGTERM :class:`Terminated` while in context.

    Yields:
        What was raised since: libraries that catch everything make errors of their own of it.
    """
    _asked.clear()
    with _handled_by(_raising(KeyboardInterrupt), signal.SIGINT), sigterm_raises():
        yield _asked


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated` while in context."""
    with _handled_by(_raising(Terminated)):
        yield


def _raising(kind: type[KeyboardInterrupt | Terminated]) -> Callable[..., None]:
    def stop(*_: Any) -> None:
        _asked.append(kind())
        raise _asked[-1]

    return stop


@contextmanager
def sigterm_noted() -> Iterator[Callable[[], None]]:
    """Put SIGTERM off while in context: until the state of a run is whole, say.

    Machines that may be taken away send SIGTERM a short while before.

    Yields:
        A function that raises :class:`Terminated` if SIGTERM has come.
    """
    noted = threading.Event()

    def check() -> None:
        if noted.is_set():
            raise Terminated

    with _handled_by(lambda *_: noted.set()):
        yield check
    check()


@contextmanager
def _handled_by(
    handler: Callable[..., None], number: signal.Signals = signal.SIGTERM
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def as_parent() -> dict[str, str]:
    """Return what the environment of children holds that must not outlive this process."""
    return {_PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Send this process SIGTERM once the parent that started it as its child is gone.

    A parent that is killed outright cannot end its children, which would go on alone. No signal of
    the kernel's is needed: whoever adopts an orphan has another process id.
    """
    parent = os.environ.pop(_PARENT, "")  # this process's own, not that of its children
    if not parent.isdecimal() or int(parent) == os.getpid():
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
