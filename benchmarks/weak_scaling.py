"""Input and metrics as ranks and data grow together, simulated: each rank's rows stay as many.

    python benchmarks/weak_scaling.py

Plays rank 0 of 1 to 64 on made-up data of Criteo's shape. ``benchmarks/results/weak_scaling.json``
gets the seconds to read and serve an epoch of its rows, the seconds of its part of the metrics of
all rows, the bytes it sends for that, and the seconds one process would take for all of it. What is
constant scales; what grows with the ranks is what an epoch of many ranks will wait for.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap

from fuxictr_tf4ctr.datasets import H5DataLoader
from fuxictr_tf4ctr.datasets.stored import H5Writer
from fuxictr_tf4ctr.distributed import Ranks
from fuxictr_tf4ctr.metrics.definitions import Columns
from fuxictr_tf4ctr.metrics.evaluate import evaluate_metrics, evaluate_spread
from fuxictr_tf4ctr.runs.records import machine, versions

RESULTS = Path(__file__).resolve().parent / "results"
FIELDS, TOKENS = 39, 10_000
RANKS = (1, 4, 16, 64)
METRICS = ["AUC", "logloss"]


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
    y_true = torch.from_numpy(rng.integers(0, 2, ranks * rows).astype(np.float32))
    y_pred = torch.from_numpy(rng.random(ranks * rows).astype(np.float32))
    own = y_true[:rows], y_pred[:rows]
    part, whole = [], []
    for _ in range(repeats):
        played = PlayedRank(ranks)
        start = time.perf_counter()
        evaluate_spread(Columns(*own), METRICS, played)
        middle = time.perf_counter()
        evaluate_metrics(y_true, y_pred, METRICS)
        part.append(middle - start)
        whole.append(time.perf_counter() - middle)
    result["metrics_seconds"] = round(statistics.median(part), 4)
    result["metrics_bytes_sent"] = played.bytes_sent
    result["metrics_of_all_rows_seconds"] = round(statistics.median(whole), 4)
    print(json.dumps(result), flush=True)
    return result


class PlayedRank(Ranks):
    """Rank 0 of many, which are in the same state as it is.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def all_gather(self, value: Any) -> list[Any]:
        if isinstance(value, torch.Tensor):
            self.bytes_sent += (self.size - 1) * value.nbytes
        return [value] * self.size

    def all_to_all(
        self, columns: Sequence[torch.Tensor], target: torch.Tensor
    ) -> list[torch.Tensor]:
        order = target.argsort()
        columns = [column[order] for column in columns]
        here = int((target == 0).sum())
        self.bytes_sent += sum(column[here:].nbytes for column in columns)
        return [column[:here].repeat(self.size) for column in columns]


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
