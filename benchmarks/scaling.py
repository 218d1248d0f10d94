"""Training by several processes against one, on this machine's cores.

    FUXICTR_DATA=../shared/data python benchmarks/scaling.py

Each case is a ``fuxictr run`` of TF4CTR_frappe; the seconds of an epoch are the median over its
epochs but the first, evaluation left out. ``benchmarks/results/scaling.json`` has them, with the
numbers that a step adds up over the ranks.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from fuxictr_tf4ctr.records import machine, versions

RESULTS = Path(__file__).resolve().parent / "results"
CORES = os.cpu_count() or 1
# Name -> threads of a process, options.
CASES = {
    "one process": (CORES, []),
    "--workers 1": (CORES, ["--workers", "1"]),
    f"--workers {CORES}": (1, ["--workers", str(CORES)]),
    "one process, one thread": (1, []),
}


def main() -> None:
    """Measure all cases, in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=10_000)
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (threads, options) in CASES.items():
            results[name] = measured(
                Path(folder), threads, options, arguments.epochs, arguments.batch_size
            )
            print(name, json.dumps(results[name]), flush=True)
    base = results["one process"]["seconds_per_epoch"]
    content = {
        "batch_size": arguments.batch_size,
        "cases": results,
        "times_as_fast_as_one_process": {
            name: round(base / result["seconds_per_epoch"], 3) for name, result in results.items()
        },
        "load": os.getloadavg()[0],
        "machine": machine(),
        "versions": versions(),
    }
    (RESULTS / "scaling.json").write_text(json.dumps(content, indent=2) + "\n")


def measured(folder: Path, threads: int, options: list[str], epochs: int, batch_size: int) -> dict:
    """Run one case in a process, or several."""
    settings = (f"epochs={epochs}", f"batch_size={batch_size}", "early_stop_patience=99")
    command = [sys.executable, "-m", "fuxictr_tf4ctr", "run", "--expid", "TF4CTR_frappe"]
    command += [word for setting in settings for word in ("--set", setting)]
    subprocess.run(
        command + options,
        cwd=folder,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    newest = max(folder.glob("checkpoints/*/*/*/run.json"), key=lambda file: file.stat().st_mtime)
    record = json.loads(newest.read_text())
    seconds = [evaluation["seconds"] for evaluation in record["evaluations"]][1:]
    return {
        "seconds_per_epoch": round(statistics.median(seconds), 3),
        "epochs": [round(each, 3) for each in seconds],
        "parameters": record["parameters"],
        "train_loss": record["evaluations"][-1]["train_loss"],
    }


if __name__ == "__main__":
    main()
