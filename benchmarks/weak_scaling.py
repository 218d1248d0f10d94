"""Input and metrics as ranks and data grow together, simulated: each rank's rows stay as many.

    python benchmarks/weak_scaling.py

Plays rank 0 of 1 to 64 on made-up data of Criteo's shape. ``benchmarks/results/weak_scaling.json``
gets the seconds of a core to read and serve an epoch of its rows and the bytes read, those of its
part of the metrics of all rows, the bytes it sends for that, and the seconds one process would take
for all of it. What is constant scales; what grows with the ranks is what many ranks will wait for.

Not simulated is ``host``: 1, 2 and 4 gloo ranks of this machine serve the rows, held in memory or
streamed. Of each is kept what it read of the file, and what the memory of all grew by, shared pages
counted once (PSS, so Linux alone), beside the size of the rows.
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
STORAGES = ("memory", "stream")
METRICS = ["AUC", "logloss"]


def main() -> None:
    """Measure all numbers of ranks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000, help="of each rank")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        print(json.dumps(served(*arguments.serve)))
        return
    content = {
        "rows_per_rank": arguments.rows,
        "fields": FIELDS,
        "ranks": [simulated(ranks, arguments.rows, arguments.repeats) for ranks in RANKS],
        "host": [host(ranks, storage) for storage in STORAGES for ranks in (1, 2, 4)],
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
        for storage in STORAGES:
            epochs = [epoch(folder, ranks, storage) for _ in range(repeats)]
            seconds, read = zip(*epochs, strict=True)
            result[f"input_seconds_{storage}"] = round(statistics.median(seconds), 4)
            result[f"input_bytes_{storage}"] = read[0]
    y_true = torch.from_numpy(rng.integers(0, 2, ranks * rows).astype(np.float32))
    y_pred = torch.from_numpy(rng.random(ranks * rows).astype(np.float32))
    own = y_true[:rows], y_pred[:rows]
    part, whole = [], []
    for _ in range(repeats):
        played = PlayedRank(ranks)
        start = time.process_time()
        evaluate_spread(Columns(*own), METRICS, played)
        middle = time.process_time()
        evaluate_metrics(y_true, y_pred, METRICS)
        part.append(middle - start)
        whole.append(time.process_time() - middle)
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


def epoch(folder: str, ranks: int, storage: str) -> tuple[float, int]:
    """Serve rank 0's rows of one epoch; what is held in memory is read before, once for all."""
    loader = opened(folder, shuffle=True, storage=storage, world_size=ranks)
    start, before = time.process_time(), bytes_read()
    for _ in loader:
        pass
    return time.process_time() - start, bytes_read() - before


def host(ranks: int, storage: str, rows: int = 2_000_000) -> dict:
    """Let ranks of this machine serve rows, and add up what their memory grew by."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        write_rows(folder, np.random.default_rng(0), [rows // 20] * 20)
        file_bytes = (Path(folder) / "train.h5").stat().st_size
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--serve", folder, storage],
                env=os.environ
                | address
                | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        served = [json.loads(process.communicate()[0]) for process in processes]
    grown = sum(each["grown"] for each in served)
    result = {"storage": storage, "ranks": ranks, "rows_bytes": served[0]["rows"]}
    result |= {"file_bytes": file_bytes, "grown_bytes": grown}
    result["grown_over_rows"] = round(grown / result["rows_bytes"], 3)
    result["read_by_each_over_file"] = [round(each["read"] / file_bytes, 3) for each in served]
    print(json.dumps(result), flush=True)
    return result


def served(folder: str, storage: str) -> dict:
    """Serve an epoch as one of the ranks, all at the same time."""
    with joined_ranks(on_gpu=False, seconds=300) as ranks:
        before, start = proportional_set_size(), bytes_read()
        loader = opened(
            folder, rank=ranks.rank, world_size=ranks.size, filled=ranks.once_a_host,
            storage=storage, shuffle=True,
        )  # fmt: skip
        grown = 0
        for at, _ in enumerate(loader):
            if at % 50 == 49:
                ranks.all_gather(None)
                grown = max(grown, proportional_set_size() - before)
                ranks.all_gather(None)
        return {"grown": grown, "read": bytes_read() - start, "rows": loader._reader.bytes}


def bytes_read() -> int:
    """Return the bytes this process has read from files, out of the system's memory or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


def proportional_set_size() -> int:
    """Return the bytes of memory of this process, those it shares divided by who shares them."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Pss in /proc/self/smaps_rollup")


if __name__ == "__main__":
    main()
