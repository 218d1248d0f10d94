"""SIGTERM as an exception: at once, or put off until the state of a run is whole.

Machines that may be taken away send SIGTERM a short while before. Signals reach Python's main
thread only; in other threads these contexts do nothing.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fuxictr_tf4ctr.errors import Terminated


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated` while in context."""

    def stop(*_: Any) -> None:
        raise Terminated

    with _handled_by(stop):
        yield


@contextmanager
def sigterm_noted() -> Iterator[Callable[[], None]]:
    """Put SIGTERM off while in context.

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
def _handled_by(handler: Callable[..., None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
