"""Freed memory stays while a model trains, and goes back to the system afterwards."""

import platform
import subprocess
import sys

import pytest

from fuxictr_tf4ctr.training import allocation

# Page faults of blocks taken and freed again and again, and MB of the process, as four lines.
SCRIPT = """
import resource
from fuxictr_tf4ctr.training.allocation import freed_memory_kept

def look():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [bytearray(20 << 20) for _ in range(4)]
        del blocks
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    pages = int(open("/proc/self/statm").read().split()[1])
    print(faults, pages * resource.getpagesize() >> 20)

look()
with freed_memory_kept():
    look()
    look()
look()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told to")
def test_freed_blocks_are_taken_again_without_the_system_and_given_back_at_the_end():
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    )
    (faults, size), _, (kept_faults, kept_size), (after, size_after) = (
        map(int, line.split()) for line in said.stdout.splitlines()
    )
    assert kept_faults < faults / 100
    assert kept_size - size > 70
    assert size_after - size < 10
    assert after > faults / 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "1000000"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")],
)
def test_what_the_environment_says_of_malloc_stays(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(allocation, "_libc", lambda name: pytest.fail("malloc was told"))
    with allocation.freed_memory_kept():
        pass
