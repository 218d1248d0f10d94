"""Input and metrics as ranks and data grow together, simulated: each rank's rows stay as many.

    python benchmarks/weak_scaling.py

Plays rank 0 of 1 to 64 on made-up data of Criteo's shape. ``benchmarks/results/weak_scaling.json``
gets the seconds to read and serve an epoch of its rows, the seconds of its part of the metrics of
all rows, the bytes it sends for that, and the seconds one process would take for all of it. What is
constant scales; what grows with the ranks is what an epoch of many ranks will wait for.

Not simulated is ``host_memory``: 1, 2 and 4 gloo ranks of this machine hold the rows, and what
their memory grew by, shared pages counted once (PSS, so Linux alone), against the size of the rows.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
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
from fuxictr_tf4ctr.distributed import Ranks, joined_ranks
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
    parser.add_argument("--hold", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hold:
        print(memory_to_hold(arguments.hold))
        return
    content = {
        "rows_per_rank": arguments.rows,
        "fields": FIELDS,
        "ranks": [simulated(ranks, arguments.rows, arguments.repeats) for ranks in RANKS],
        "host_memory": [host_memory(ranks) for ranks in (1, 2, 4)],
        "load": os.getloadavg()[0],
        "machine": machine(),
        "versions": versions(),
    }
    (RESULTS / "weak_scaling.json").write_text(json.dumps(content, indent=2) + "\n")


def simulated(ranks: int, rows: int, repeats: int) -> dict:
    """Measure what rank 0 of so many does."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        write_rows(folder, rng, [rows] * ranks)
        result = {"ranks": ranks}
        for storage in ("memory", "stream"):
            seconds = [epoch_seconds(folder, ranks, storage) for _ in range(repeats)]
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


def write_rows(folder: str, rng: np.random.Generator, parts: Sequence[int]) -> None:
    """Write training rows, part by part."""
    with H5Writer(Path(folder) / "train.h5") as writer:
        for rows in parts:
            columns = {f"f{i}": rng.integers(0, TOKENS, rows) for i in range(FIELDS)}
            label = rng.integers(0, 2, rows).astype(np.float32)
            writer.append(columns | {"label": label})


def opened(folder: str, **options: Any) -> H5DataLoader:
    """Open the training rows."""
    feature_map = FeatureMap("weak_scaling", folder)
    feature_map.labels = ["label"]
    feature_map.features = {
        f"f{i}": {"type": "categorical", "source": "", "vocab_size": TOKENS} for i in range(FIELDS)
    }
    return H5DataLoader(feature_map, Path(folder) / "train.h5", batch_size=1000, **options)


def epoch_seconds(folder: str, ranks: int, storage: str) -> float:
    """Serve rank 0's rows of one epoch; what is held in memory is read before, once for all."""
    loader = opened(folder, shuffle=True, storage=storage, world_size=ranks)
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def host_memory(ranks: int, rows: int = 2_000_000) -> dict:
    """Let ranks of this machine hold rows, and add up what their memory grew by."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        write_rows(folder, np.random.default_rng(0), [rows // 20] * 20)
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--hold", folder],
                env=os.environ
                | address
                | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        grown, sizes = zip(
            *(map(int, process.communicate()[0].split()) for process in processes), strict=True
        )
    result = {"ranks": ranks, "rows_bytes": sizes[0], "grown_bytes": sum(grown)}
    result["grown_over_rows"] = round(sum(grown) / sizes[0], 3)
    print(json.dumps(result), flush=True)
    return result


def memory_to_hold(folder: str) -> str:
    """Hold the rows as one of the ranks; return what its memory grew by, and the rows' bytes."""
    with joined_ranks(on_gpu=False, seconds=300) as ranks:
        before = proportional_set_size()
        loader = opened(folder, rank=ranks.rank, world_size=ranks.size, filled=ranks.once_a_host)
        next(iter(loader))
        ranks.all_gather(None)
        grown = proportional_set_size() - before
        ranks.all_gather(None)
        return f"{grown} {4 * loader._held.words.numel()}"


def proportional_set_size() -> int:
    """Return the bytes of memory of this process, those it shares divided by who shares them."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Pss in /proc/self/smaps_rollup")


if __name__ == "__main__":
    main()
