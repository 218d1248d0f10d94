"""Input and metrics as ranks and data grow together, simulated: each rank's rows stay as many.

    python benchmarks/weak_scaling.py

Plays rank 0 of 1 to 64 on made-up data of Criteo's shape and writes
``benchmarks/results/weak_scaling.json``: seconds to read and serve an epoch of its rows, seconds to
compute the metrics of all ranks' rows, and the bytes it receives for that. What is constant scales;
what grows with the ranks is what an epoch of many ranks will wait for.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from fuxictr.features import FeatureMap

from fuxictr_tf4ctr.datasets import H5DataLoader
from fuxictr_tf4ctr.datasets.h5 import H5Writer
from fuxictr_tf4ctr.records import machine, versions
from fuxictr_tf4ctr.training.metrics import evaluate_metrics

RESULTS = Path(__file__).resolve().parent / "results"
FIELDS, TOKENS = 39, 10_000
RANKS = (1, 4, 16, 64)


def main() -> None:
    """Measure all numbers of ranks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000, help="of each rank")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    content = {
        "rows_per_rank": arguments.rows,
        "fields": FIELDS,
        "ranks": [simulated(ranks, arguments.rows, arguments.repeats) for ranks in RANKS],
        "load": os.getloadavg()[0],
        "machine": machine(),
        "versions": versions(),
    }
    (RESULTS / "weak_scaling.json").write_text(json.dumps(content, indent=2) + "\n")


def simulated(ranks: int, rows: int, repeats: int) -> dict:
    """Measure what rank 0 of so many does."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.h5"
        with H5Writer(file) as writer:
            for _ in range(ranks):
                columns = {f"f{i}": rng.integers(0, TOKENS, rows) for i in range(FIELDS)}
                label = rng.integers(0, 2, rows).astype(np.float32)
                writer.append(columns | {"label": label})
        result = {"ranks": ranks}
        for storage in ("memory", "stream"):
            seconds = [epoch_seconds(folder, file, ranks, storage) for _ in range(repeats)]
            result[f"input_seconds_{storage}"] = round(statistics.median(seconds), 4)
    y_true = rng.integers(0, 2, ranks * rows)
    y_pred = rng.random(ranks * rows)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        evaluate_metrics(y_true, y_pred, ["AUC", "logloss"])
        seconds.append(time.perf_counter() - start)
    result["metrics_seconds"] = round(statistics.median(seconds), 4)
    result["metrics_bytes_received"] = 8 * (ranks - 1) * rows
    print(json.dumps(result), flush=True)
    return result


def epoch_seconds(folder: str, file: Path, ranks: int, storage: str) -> float:
    """Serve rank 0's rows of one epoch; what is held in memory is read before, once for all."""
    feature_map = FeatureMap("weak_scaling", folder)
    feature_map.labels = ["label"]
    feature_map.features = {
        f"f{i}": {"type": "categorical", "source": "", "vocab_size": TOKENS} for i in range(FIELDS)
    }
    loader = H5DataLoader(
        feature_map, file, batch_size=1000, shuffle=True, storage=storage, world_size=ranks
    )
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
