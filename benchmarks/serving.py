"""Latency and throughput of an exported model beside PyTorch eager, on TF4CTR_DCNv2_demo.

The run is trained for one epoch: what is timed does not depend on the weights. Both sides get the
same encoded rows of the demo's test split and take turns; the results, with machine and versions,
go to ``benchmarks/results/serving.json``.
"""

import argparse
import csv
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from fuxictr_tf4ctr import load, load_settings, run_experiment
from fuxictr_tf4ctr.runs.records import machine, versions
from fuxictr_tf4ctr.serving.export import export_run
from fuxictr_tf4ctr.serving.graphs import ScoringGraph
from fuxictr_tf4ctr.serving.score import Scorer

RESULTS = Path(__file__).resolve().parent / "results" / "serving.json"
EXPID = "TF4CTR_DCNv2_demo"
LARGE = 1024
# Calls of one side in a row, after some that are not timed: the other's turn leaves caches cold.
TURN, WARM_UP = 200, 20

Columns = dict[str, np.ndarray]
Score = Callable[[Columns], object]


def main() -> None:
    """Train, export, time both sides and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="of either side (default: 1)")
    parser.add_argument("--calls", type=int, default=2000, help="single rows timed (default: 2000)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {"data_root": str(folder / "data"), "model_root": str(folder / "runs")}
        record = run_experiment(
            load_settings(EXPID, overrides=places | {"epochs": 1, "verbose": 0})
        )
        run = load(record.folder)
        exported = export_run(run, folder / "export")
        rows = next(iter(run.loader("test", batch_size=4 * LARGE)))
        sides = {
            "pytorch": _eager(ScoringGraph(run.model)),
            "onnxruntime": _onnx(exported.folder / "model.onnx", arguments.threads),
        }
        columns = {name: column.numpy() for name, column in rows.items() if name != "label"}
        raw = _raw_rows(Path(run.settings["test_data"]), LARGE)
        results = {
            "expid": EXPID,
            "parameters": record.parameters,
            "threads": arguments.threads,
            "max_difference": exported.difference,
            "latency_one_row": _latency(sides, columns, arguments.calls),
            f"throughput_batch_{LARGE}": _throughput(sides, columns, arguments.calls // 10),
            "script_from_raw_rows": _script(Scorer(exported.folder), raw),
            "machine": machine(),
            "versions": versions(("onnx", "onnxscript", "onnxruntime")),
        }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


def _eager(graph: ScoringGraph) -> Score:
    def score(columns: Columns) -> object:
        with torch.inference_mode():
            return graph(*(torch.from_numpy(columns[name]) for name in graph.inputs))

    return score


def _onnx(path: Path, threads: int) -> Score:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda columns: session.run(None, columns)


def _latency(sides: dict[str, Score], columns: Columns, calls: int) -> dict[str, dict[str, float]]:
    """Time single rows, a different one each call, in turns of some calls."""
    count = len(next(iter(columns.values())))
    rows = [{name: column[at : at + 1] for name, column in columns.items()} for at in range(count)]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for first in range(0, calls, TURN):
        for name, score in sides.items():
            for call in range(first - WARM_UP, first + TURN):
                start = time.perf_counter()
                score(rows[call % count])
                if call >= first:
                    seconds[name].append(time.perf_counter() - start)
    return {
        name: {f"p{q}_ms": round(float(np.percentile(found, q)) * 1e3, 4) for q in (50, 99)}
        for name, found in seconds.items()
    }


def _throughput(
    sides: dict[str, Score], columns: Columns, calls: int
) -> dict[str, dict[str, float]]:
    """Time batches; the median call says how many rows a second are scored."""
    batch = {name: column[:LARGE] for name, column in columns.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(calls):
        for name, score in sides.items():
            start = time.perf_counter()
            score(batch)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"rows_per_second": round(LARGE / float(np.median(found)))}
        for name, found in seconds.items()
    }


def _raw_rows(path: Path, count: int) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))[:count]


def _script(scorer: Scorer, rows: list[dict[str, str]]) -> dict[str, float]:
    """Time the scoring script from texts to scores, encoding included."""
    one, many = [], []
    for row in rows[:500]:
        start = time.perf_counter()
        scorer.score([row])
        one.append(time.perf_counter() - start)
    for _ in range(10):
        start = time.perf_counter()
        scorer.score(rows)
        many.append(time.perf_counter() - start)
    return {
        "p50_ms": round(float(np.median(one)) * 1e3, 4),
        "rows_per_second": round(len(rows) / float(np.median(many))),
    }


if __name__ == "__main__":
    main()
