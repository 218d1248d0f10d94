"""Memory that a step frees, kept for the next one.

glibc gives the freed end of the heap back to the system and asks for it again a moment later, and
the system clears every page of it: on a CPU, with activations of some MB, a sixth of a step.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
# The largest glibc takes, and what its own rule comes to where blocks of that size are freed.
_LARGEST_BLOCK, _ITS_OWN = 32 << 20, 64 << 20


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed blocks of at most 32 MB in the process, and give them back at the end.

    Does nothing without glibc, or where the environment tells malloc what to do.
    """
    mallopt = None if _told() else _libc("mallopt")
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        mallopt(_M_TRIM_THRESHOLD, _ITS_OWN)
        if trim := _libc("malloc_trim"):
            trim(ctypes.c_size_t(0))


def _told() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in os.environ)


def _libc(name: str) -> Callable | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
