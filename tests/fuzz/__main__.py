"""``python -m tests.fuzz``: a campaign of any length; exit status 1 where anything went wrong."""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .verdicts import Tally

# Parts of the generated cases.
SHARES = {
    "configurations": 0.25,
    "tuner files": 0.1,
    "options": 0.15,
    "json files": 0.2,
    "weights files": 0.05,
    "csv files": 0.08,
    "parquet files": 0.07,
    "encoded files": 0.1,
}


def main() -> int:
    """Run a campaign."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=300, help="generated cases (default: 300)")
    parser.add_argument("--kills", type=int, default=0, help="kills of each command (default: 0)")
    parser.add_argument("--disks", type=int, default=0, help="full disks of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the generators (default: 0)")
    parser.add_argument("--only", nargs="+", default=[], metavar="KIND", help="these kinds alone")
    parser.add_argument("--output", type=Path, help="JSON file to add the counts to")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

    from . import campaigns, disks, kills
    from .forking import warm_up
    from .project import Project
    from .verdicts import Tally

    def wanted(name: str) -> bool:
        return not arguments.only or name in arguments.only

    earlier = arguments.output is not None and arguments.output.is_file()
    before = json.loads(arguments.output.read_text()) if earlier else {}
    warm_up()
    start, tally = time.monotonic(), Tally()
    # In memory, if that is a place: folders come and go there fast.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        project = Project(Path(folder))
        parts = {}
        for name, strategy in campaigns.generators(project).items():
            count = round(arguments.cases * SHARES[name])
            parts[name] = (campaigns.generated, strategy, count, arguments.seed)
        for name in kills.SCENARIOS:
            parts[f"kill {name}"] = (kills.campaign, name, arguments.kills)
        for name in disks.COMMANDS:
            parts[f"disk {name}"] = (disks.campaign, name, arguments.disks)
        for name, (campaign, *details) in parts.items():
            if wanted(name) and details[1]:
                campaign(project, *details, tally)
                seconds = time.monotonic() - start
                print(f"{name}: {len(tally.failures)} failures, {seconds:.0f} s", file=sys.stderr)
                _report(tally, before, arguments.output)
    print(tally)
    return 1 if tally.failures else 0


def _report(tally: "Tally", before: dict[str, dict[str, object]], output: Path | None) -> None:
    """Write the counts, added to those of earlier campaigns."""
    if output is None:
        return
    wrong: dict[str, int] = {}
    for failure in tally.failures:
        wrong[failure.kind] = wrong.get(failure.kind, 0) + 1
    kinds = before.get("outcomes", {})
    content = {
        "python": platform.python_version(),
        "system": platform.system(),
        "cases": _sum(before.get("cases", {}), tally.cases),
        "outcomes": kinds
        | {kind: _sum(kinds.get(kind, {}), ends) for kind, ends in tally.outcomes.items()},
        "failures": _sum(before.get("failures", {}), wrong),
    }
    output.write_text(json.dumps(content, indent=1) + "\n")


def _sum(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return {key: first.get(key, 0) + second.get(key, 0) for key in [*first, *second]}


sys.exit(main())
