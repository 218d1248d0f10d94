"""An iterator run ahead by a thread: no processes, so alike on every platform."""

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")
_END = object()


def prefetched(items: Iterator[T], ahead: int) -> Iterator[T]:
    """Yield the items, some of them made in advance by a thread.

    An error of the iterator is raised where its item would have come. A consumer that stops early
    stops the thread.

    Args:
        items: The iterator; only the thread runs it.
        ahead: How many items to make in advance; 0 for no thread.
    """
    if ahead < 1:
        yield from items
        return
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: object, error: BaseException | None = None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:
            put(_END, error)
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
