"""Latency of an exported model, its tables in float32, fp16 and int8, beside PyTorch eager.

All sides get the same encoded rows of the test split and take turns, on one thread. Times are those
that the process had the processor for: what a call takes on a core of its own, also on a machine
that others use. The results, with the AUC that each kind of tables gives, machine and versions, go
to ``benchmarks/results/serving.json``.
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
from fuxictr_tf4ctr.runs.loading import LoadedRun
from fuxictr_tf4ctr.runs.records import machine, versions
from fuxictr_tf4ctr.serving.export import Artefact, export_run
from fuxictr_tf4ctr.serving.graphs import TABLES, ScoringGraph
from fuxictr_tf4ctr.serving.score import Scorer

RESULTS = Path(__file__).resolve().parent / "results" / "serving.json"
LARGE = 1000
# Calls of one side in a row, after some that are not timed: the other's turn leaves caches cold.
TURN, WARM_UP = 200, 20

Columns = dict[str, np.ndarray]
Score = Callable[[Columns], object]


def main() -> None:
    """Train, export, time both sides and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=2000, help="of single rows (default: 2000)")
    parser.add_argument("--expid", default="TF4CTR_DCNv2_demo", help="what is trained and served")
    parser.add_argument("--epochs", type=int, default=10, help="at most (default: 10)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {"data_root": str(folder / "data"), "model_root": str(folder / "runs")}
        overrides = places | {"epochs": arguments.epochs, "verbose": 0}
        record = run_experiment(load_settings(arguments.expid, overrides=overrides))
        run = load(record.folder)
        exports = {each: export_run(run, folder / each, tables=each) for each in TABLES}
        rows = next(iter(run.loader("test", batch_size=4 * LARGE)))
        graph = ScoringGraph(run.model)
        sides = {"pytorch": _eager(graph)} | {
            f"onnxruntime {name}": _onnx(done.folder / "model.onnx")
            for name, done in exports.items()
        }
        columns = {name: rows[name].numpy() for name in graph.inputs}
        raw = _raw_rows(Path(run.settings["test_data"]), LARGE)
        results = {
            "expid": arguments.expid,
            "parameters": record.parameters,
            "rows": {
                "1": _latency(sides, columns, 1, arguments.calls),
                str(LARGE): _latency(sides, columns, LARGE, arguments.calls // 10),
            },
            "tables": {name: _tables(done, run) for name, done in exports.items()},
            "script_from_raw_rows": _script(Scorer(exports["fp32"].folder), raw),
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


def _onnx(path: Path) -> Score:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda columns: session.run(None, columns)


def _latency(
    sides: dict[str, Score], columns: Columns, size: int, calls: int
) -> dict[str, dict[str, float]]:
    """Time batches, a different one each call, in turns of some calls."""
    count = len(next(iter(columns.values())))
    batches = [
        {name: column[at : at + size] for name, column in columns.items()}
        for at in range(0, count - size + 1, size)
    ]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    turn = TURN if size == 1 else TURN // 10
    for first in range(0, calls, turn):
        for name, score in sides.items():
            for call in range(first - WARM_UP, first + turn):
                start = time.process_time()
                score(batches[call % len(batches)])
                if call >= first:
                    seconds[name].append(time.process_time() - start)
    return {
        name: {f"p{q}_ms": round(float(np.percentile(found, q)) * 1e3, 4) for q in (50, 95, 99)}
        for name, found in seconds.items()
    }


def _tables(done: Artefact, run: LoadedRun) -> dict[str, float]:
    """Say how large the tables of an export are, how near it is to its model, and its metrics."""
    tables = [each.weight for each in run.model.modules() if type(each) is torch.nn.Embedding]
    numbers = sum(table.numel() for table in tables)
    size = {
        "fp32": 4 * numbers,
        "fp16": 2 * numbers,
        "int8": numbers + 4 * sum(len(table) for table in tables),
    }[done.tables]
    metrics = done.metrics.get("rounded", run.record.test)
    return {"table_bytes": size, "max_difference": done.difference} | {
        name: metrics[name] for name in ("AUC", "logloss")
    }


def _raw_rows(path: Path, count: int) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))[:count]


def _script(scorer: Scorer, rows: list[dict[str, str]]) -> dict[str, float]:
    """Time the scoring script from texts to scores, encoding included."""
    one, many = [], []
    for row in rows[:500]:
        start = time.process_time()
        scorer.score([row])
        one.append(time.process_time() - start)
    for _ in range(10):
        start = time.process_time()
        scorer.score(rows)
        many.append(time.process_time() - start)
    return {
        "p50_ms": round(float(np.median(one)) * 1e3, 4),
        "rows_per_second": round(len(rows) / float(np.median(many))),
    }


if __name__ == "__main__":
    main()
