"""Training by several processes against one, on this machine's cores.

    FUXICTR_DATA=../shared/data python benchmarks/scaling.py

Each case is a ``fuxictr run`` of TF4CTR_frappe_published; the seconds of an epoch are the median
over its epochs but the first, evaluation left out. ``benchmarks/results/scaling.json`` has them,
with the numbers that a step adds up over the ranks, and what the network carried of them: bytes
that the loopback device of a network namespace counted (needs root) beside ``cost_model.py``'s.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from fuxictr_tf4ctr.distributed.cost import FLOAT, all_reduce_bytes
from fuxictr_tf4ctr.runs.records import machine, versions

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
    parser.add_argument("--only-bytes", action="store_true", help="count bytes alone, again")
    arguments = parser.parse_args()
    file = RESULTS / "scaling.json"
    if arguments.only_bytes:
        content = json.loads(file.read_text())
        content["bytes_per_step_of_all_ranks"] = [bytes_per_step(workers) for workers in (2, 4)]
        file.write_text(json.dumps(content, indent=2) + "\n")
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (threads, options) in CASES.items():
            results[name] = measured(
                Path(folder), threads, options, arguments.epochs, arguments.batch_size
            )
            print(name, json.dumps(results[name]), flush=True)
    traffic = [bytes_per_step(workers) for workers in (2, 4)] if os.geteuid() == 0 else None
    print(json.dumps(traffic), flush=True)
    base = results["one process"]["seconds_per_epoch"]
    content = {
        "batch_size": arguments.batch_size,
        "cases": results,
        "times_as_fast_as_one_process": {
            name: round(base / result["seconds_per_epoch"], 3) for name, result in results.items()
        },
        "bytes_per_step_of_all_ranks": traffic,
        "load": os.getloadavg()[0],
        "machine": machine(),
        "versions": versions(),
    }
    file.write_text(json.dumps(content, indent=2) + "\n")


def measured(folder: Path, threads: int, options: list[str], epochs: int, batch_size: int) -> dict:
    """Run one case in a process, or several."""
    settings = (f"epochs={epochs}", f"batch_size={batch_size}", "early_stop_patience=99")
    command = [sys.executable, "-m", "fuxictr_tf4ctr", "run", "--expid", "TF4CTR_frappe_published"]
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


def bytes_per_step(workers: int) -> dict:
    """Count what a step sends, on a network of its own: the difference of a long and a short run.

    The model is a large one on the demo data, without dropout: what a step sends beside gradients
    is small next to them.
    """
    counted, records = [], []
    for epochs in (1, 4):
        settings = (f"epochs={epochs}", "batch_size=600", "complex_hidden_units=[1024, 1024]")
        settings += ("early_stop_patience=99", "checkpoint_minutes=600")
        command = [sys.executable, "-m", "fuxictr_tf4ctr", "run", "--expid", "TF4CTR_demo"]
        command += [word for setting in settings for word in ("--set", setting)]
        command += ["--workers", str(workers)]
        script = 'ip link set lo up && "$@" >/dev/null 2>&1 && cat /proc/self/net/dev'
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                ["unshare", "--net", "sh", "-c", script, "sh", *command],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            (file,) = Path(folder).glob("checkpoints/*/*/*/run.json")
            records.append(json.loads(file.read_text()))
        (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith("lo:")]
        counted.append(int(line.split()[1]))
    short, long = records
    steps = long["evaluations"][-1]["step"] - short["evaluations"][-1]["step"]
    # In each of three evaluations label and score of each row go to the rank that counts it.
    scored = 3 * long["data"]["rows"]["valid"] * 2 * FLOAT * (workers - 1) / workers
    measured_bytes = (counted[1] - counted[0] - scored) / steps
    predicted = workers * all_reduce_bytes(FLOAT * long["parameters"], workers)
    return {
        "ranks": workers,
        "parameters": long["parameters"],
        "steps": steps,
        "counted": round(measured_bytes),
        "predicted": round(predicted),
        "counted_over_predicted": round(measured_bytes / predicted, 4),
    }


if __name__ == "__main__":
    main()
