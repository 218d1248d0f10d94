"""``python -m tests.fuzz``: a campaign of any length; exit status 1 where anything went wrong."""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .project import Project
    from .verdicts import Tally

_INPUTS, _FILES = "configurations and options", "files"
# Part of the generated cases -> which group of parts it belongs to, its share.
_SHARES = {
    "configurations": (_INPUTS, 0.34),
    "tuner files": (_INPUTS, 0.12),
    "options": (_INPUTS, 0.2),
    "json files": (_FILES, 0.13),
    "weights files": (_FILES, 0.03),
    "state files": (_FILES, 0.03),
    "csv files": (_FILES, 0.05),
    "parquet files": (_FILES, 0.04),
    "encoded files": (_FILES, 0.06),
}
# Cases of a kind that make a part of their own, with a seed of its own.
_PIECE = 500
# Seconds each: cut off more rarely, by this factor.
_SLOW = {"tune": 2, "export": 4, "export torch": 2}


@dataclass(frozen=True)
class Part:
    """A part of a campaign.

    Attributes:
        name: What it is called.
        group: What its cases are counted as.
        count: How many are asked for.
        run: Runs so many cases of a project at most, and counts them.
    """

    name: str
    group: str
    count: int
    run: Callable[["Project", int, "Tally"], None]


def main() -> int:
    """Run a campaign."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=300, help="generated cases (default: 300)")
    parser.add_argument("--kills", type=int, default=0, help="most kills of a command (default: 0)")
    parser.add_argument("--disks", type=int, default=0, help="most full disks of a command")
    parser.add_argument("--rounds", type=int, default=0, help="of commands at once (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the generators (default: 0)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--jobs", type=int, default=1, help="parts at a time (default: 1)")
    parser.add_argument(
        "--output", type=Path, help="JSON file of counts; a part that it has of this commit is done"
    )
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

    from .forking import warm_up

    warm_up()
    parts = {part.name: part for part in _parts(arguments)}
    if unknown := set(arguments.only or ()) - set(parts):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    wanted = [parts[name] for name in arguments.only or parts]
    queue, fill = os.pipe()  # of numbers of parts, a byte each, whoever takes them
    os.write(fill, bytes(range(len(wanted))))
    os.close(fill)
    fork = multiprocessing.get_context("fork")
    workers = [
        fork.Process(target=_work, args=(wanted, queue, arguments.output))
        for _ in range(arguments.jobs)
    ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:  # with all that was started
        for worker in workers:
            worker.terminate()
    return max(abs(worker.exitcode) for worker in workers)


def _parts(arguments: argparse.Namespace) -> Iterator[Part]:
    from . import campaigns, disks, kills, together
    from .scenarios import SCENARIOS

    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        mountable = disks.mountable(Path(folder))
    for name in together.TOGETHER:
        run = partial(together.campaign, name)
        yield Part(name, "commands at once", arguments.rounds, run)
    for name in SCENARIOS:
        rarer = _SLOW.get(name, 1)
        kill, points = -(-arguments.kills // rarer), -(-arguments.disks // rarer)
        yield Part(f"kill {name}", "kills", kill, partial(kills.campaign, name))
        if mountable:
            yield Part(f"disk {name}", "full disks", points, partial(disks.full, name))
            points = -(-points // 2)
        yield Part(f"small files {name}", "full disks", points, partial(disks.small, name))
    for name, (group, share) in _SHARES.items():
        count, piece = round(arguments.cases * share), 0
        while count > 0:
            run = partial(campaigns.generated, name, arguments.seed + piece)
            yield Part(f"{name} {piece}" if piece else name, group, min(count, _PIECE), run)
            count, piece = count - _PIECE, piece + 1


def _memory() -> str | None:
    """Return a folder in memory, if there is one: folders come and go there fast."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _work(parts: Sequence[Part], queue: int, output: Path | None) -> None:
    """Run parts until none are left; exit status 1 where anything went wrong."""
    from .project import Project
    from .verdicts import Tally

    failed = False
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        project = Project(Path(folder))
        while number := os.read(queue, 1):
            part = parts[number[0]]
            before = _read(output).get("parts", {}).get(part.name, {})
            if part.count == 0 or before.get("commit") == _commit() != "changed":
                continue
            start, tally = time.monotonic(), Tally()
            part.run(project, part.count, tally)
            seconds = round(time.monotonic() - start)
            print(f"\n--- {part.name}, {seconds} s\n{tally}", flush=True)
            failed |= bool(tally.failures)
            if output is not None:
                _count(output, part, tally, seconds)
    sys.exit(failed)


def _commit() -> str:
    """Return the commit that runs, "changed" where files differ from it or there is none."""
    command = ["git", "describe", "--always", "--dirty=changed", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    found = done.stdout.strip()
    return "changed" if done.returncode or found.endswith("changed") else found


def _read(output: Path | None) -> dict[str, Any]:
    return json.loads(output.read_text()) if output is not None and output.is_file() else {}


def _count(output: Path, part: Part, tally: "Tally", seconds: int) -> None:
    """Put the counts of a part in the place of earlier ones; other campaigns may write as well."""
    from fuxictr_tf4ctr.files import held, write_whole
    from fuxictr_tf4ctr.runs.records import machine, versions

    from .forking import CPU_SECONDS, MEMORY, SECONDS

    with held(output.with_name(f".{output.name}.lock"), lambda: None):
        parts = _read(output).get("parts", {})
        parts[part.name] = {
            "group": part.group,
            "commit": _commit(),
            "seconds": seconds,
            "cases": sum(tally.cases.values()),
            "failures": tally.causes(),
            "outcomes": tally.outcomes,
        }
        groups = dict.fromkeys((each["group"] for each in parts.values()), 0)
        for each in parts.values():
            groups[each["group"]] += each["cases"]
        content = {
            "script": "python -m tests.fuzz",
            "bounds": {"cpu_seconds": CPU_SECONDS, "seconds": SECONDS, "bytes": MEMORY},
            "machine": machine(),
            "versions": versions(("h5py", "polars", "pyarrow", "hypothesis", "onnxruntime")),
            "cases": groups,
            "failures": sum(sum(each["failures"].values()) for each in parts.values()),
            "parts": dict(sorted(parts.items())),
        }
        write_whole(output, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
