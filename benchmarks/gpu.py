"""What a GPU makes of training: ``python benchmarks/gpu.py``, at most 8 minutes on one CUDA GPU.

Four parts: that results are those of the CPU; rows a second on rows of Criteo's shape, FuxiCTR's
own loop and loader beside ours; Frappe's epochs, and its losses beside those of a CPU, where the
folder ``$FUXICTR_DATA`` has frappe_x1; memory, and where a step's time goes. What this machine
lacks, or had no time for, is named under "skipped". A GPU's results go to
``benchmarks/results/gpu_<name>.json``, and as a table into docs/performance.md.
``--device cpu --toy`` runs all at toy size; no run on a CPU writes anything.
"""

import argparse
import json
import logging
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, product, repeat
from pathlib import Path
from typing import Any

import torch
from training_speed import _made, _their_loader

import model_zoo
from fuxictr_tf4ctr.datasets import H5DataLoader
from fuxictr_tf4ctr.runs.experiment import run_experiment
from fuxictr_tf4ctr.runs.records import machine, versions
from fuxictr_tf4ctr.settings.reading import load_settings
from fuxictr_tf4ctr.training import FastOptions, evaluate
from fuxictr_tf4ctr.training.fast import EXACT
from fuxictr_tf4ctr.training.step import training_step

ROOT = Path(__file__).resolve().parents[1]
# What each part may take; with starting and moving data 8 minutes.
SECONDS = {"agreement": 120, "speed": 220, "frappe": 90, "profile": 30}
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
# Largest difference of a step's loss from the CPU's in float64, over the loss.
TOLERANCE = {"exact": 1e-4, "graph": 1e-4, "fast": 3e-2, "curve": 1e-2}


@dataclass
class Bench:
    """One run of the script.

    Attributes:
        gpu: Index of the GPU, -1 for the CPU.
        toy: Whether sizes are those of a test.
        folder: For files.
        skipped: What was left out, and why.
        ends: When the part that runs must be done, by ``time.perf_counter``.
    """

    gpu: int
    toy: bool
    folder: Path
    skipped: dict[str, str] = field(default_factory=dict)
    ends: float = math.inf

    def part(self, name: str, run: Callable[["Bench"], Any]) -> Any:
        """Run a part; what it does when its time is up is broken off."""
        seconds = 600 if self.toy else SECONDS[name]
        self.ends = time.perf_counter() + seconds
        before = signal.signal(signal.SIGALRM, _out_of_time)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return self.attempt(name, lambda: run(self))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def attempt(self, name: str, run: Callable[[], Any]) -> Any:
        """Run a piece; what it lacks or runs out of is noted, and the others go on."""
        if time.perf_counter() > self.ends:
            self.skipped[name] = "no time was left"
            return None
        try:
            return run()
        except Exception as error:
            if self.toy:
                raise
            words = " ".join(str(error).split())
            self.skipped[name] = f"{type(error).__name__}: {words[:300]}"
            return None

    def wait(self) -> None:
        """Wait for the device."""
        if self.gpu >= 0:
            torch.cuda.synchronize()

    def loader(self, feature_map, path: str, size: int, **options: Any) -> H5DataLoader:
        """Batches of a file, on the device."""
        return H5DataLoader(feature_map, path, batch_size=size, gpu=self.gpu, **options)

    @property
    def modes(self) -> dict[str, FastOptions]:
        """Switches to measure; those that a CPU has no use for are left out there."""
        if self.gpu < 0:
            return {"exact": EXACT, "bf16": FastOptions("bf16")}
        return {
            "exact": EXACT,
            "graph": FastOptions(cuda_graphs=True),
            "graph tf32": FastOptions("tf32", cuda_graphs=True),
            "graph bf16": FastOptions("bf16", cuda_graphs=True),
            "graph bf16 compile": FastOptions("bf16", compile=True, cuda_graphs=True),
        }


def _out_of_time(*_: Any) -> None:
    raise TimeoutError("its time was up")


def main() -> None:
    """Run all parts, write the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="toy sizes; nothing is kept")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("this PyTorch sees no CUDA GPU: run it where there is one, or --device cpu --toy")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(0 if arguments.device == "cuda" else -1, arguments.toy, Path(folder))
        results = measured(bench)
    print(json.dumps(results, indent=2))
    if bench.gpu >= 0 and not bench.toy:
        file = ROOT / "benchmarks" / "results" / f"gpu_{results['name'].replace(' ', '_')}.json"
        file.write_text(json.dumps(results, indent=2) + "\n")
        if results["speed"]:
            write_table(results)


def measured(bench: Bench) -> dict[str, Any]:
    """Run the four parts."""
    parts = {"agreement": agreement, "speed": speed, "frappe": frappe, "profile": profile}
    started = time.perf_counter()
    results: dict[str, Any] = {"name": "cpu", "toy": bench.toy}
    if bench.gpu >= 0:
        results["name"] = torch.cuda.get_device_name()
        results["driver"] = bench.attempt("driver", _driver)
    for name, part in parts.items():
        results[name] = bench.part(name, part)
    seconds = round(time.perf_counter() - started, 1)
    details = {"machine": machine(), "versions": versions(), "seconds": seconds}
    return results | details | {"skipped": bench.skipped}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


def agreement(bench: Bench) -> dict[str, Any]:
    """Losses of steps beside those of the CPU in float64, and the tests marked gpu."""
    feature_map, path = _made(bench.folder / "agreement", 20 * 64, [50, 20, 9])
    expected = _losses(bench, feature_map, path, EXACT, exactly=True)
    last = "graph bf16" if bench.gpu >= 0 else "bf16"
    kinds = {"exact": "exact", "graph": "graph", "fast": last}
    found = {}
    for kind, mode in kinds.items():
        if mode in bench.modes:
            losses = _losses(bench, feature_map, path, bench.modes[mode])
            off = [abs(a - b) / b for a, b in zip(losses, expected, strict=True)]
            found[kind] = {"off": max(off), "agrees": max(off) <= TOLERANCE[kind]}
    if bench.gpu >= 0:
        found["tests"] = bench.attempt("tests", _tests)
    return found


def _tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "gpu", "tests"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = run.stdout.strip().splitlines()
    return {"passed": run.returncode == 0, "failed": lines[-20:-1], "in": lines[-1]}


def _losses(bench, feature_map, path, fast: FastOptions, exactly: bool = False) -> list[float]:
    gpu = -1 if exactly else bench.gpu
    model = _model(bench, feature_map, gpu, small=True)
    if exactly:
        model.double()
        get_labels = model.get_labels
        model.get_labels = lambda batch: get_labels(batch).double()
    with training_step(model, fast) as step:
        batches = H5DataLoader(feature_map, path, batch_size=64, gpu=gpu)
        return [step(batch).item() for batch in batches]


def _model(bench: Bench, feature_map, gpu: int, small: bool = False) -> model_zoo.TF4CTR:
    torch.manual_seed(1)
    units = {"simple_hidden_units": [400] * 2, "complex_hidden_units": [400] * 3}
    if small or bench.toy:
        units = {"simple_hidden_units": [8], "complex_hidden_units": [8, 8]}
    model = model_zoo.TF4CTR(
        feature_map, embedding_dim=4 if small else 16, embedding_regularizer=1e-5, gpu=gpu,
        net_dropout=0.0 if small else 0.1, model_root=str(bench.folder), verbose=0, **units,
    )  # fmt: skip
    model._max_gradient_norm = 10.0
    return model.train()


def _criteo(bench: Bench) -> tuple[Any, str]:
    """Rows of Criteo_x4's shape: 39 fields, 1.09 million tokens."""
    scale, rows = (2000, 512) if bench.toy else (1, 1 << 20)
    sizes = [max(4, int(8 * (282_000 / 8) ** (at / 38)) // scale) for at in range(39)]
    return _made(Path(tempfile.mkdtemp(dir=bench.folder)) / "criteo", rows, sizes)


def speed(bench: Bench) -> dict[str, Any]:
    """Rows a second: FuxiCTR's loop and loader, each mode, each storage, and evaluation."""
    feature_map, path = _criteo(bench)

    def rate(size: int, fast: FastOptions = EXACT, storage: str = "auto") -> int:
        model = _model(bench, feature_map, bench.gpu)
        batches = bench.loader(feature_map, path, size, shuffle=True, storage=storage)
        with training_step(model, fast) as step:
            return _timed_rate(bench, chain.from_iterable(repeat(batches)), step)

    kinds: dict[str, Callable[[int], int]] = {
        "fuxictr": lambda size: _fuxictr_rate(bench, feature_map, path, size),
        "exact": rate,
        "exact memory": partial(rate, storage="memory"),
        "exact stream": partial(rate, storage="stream"),
        "evaluation": lambda size: _evaluation_rate(bench, feature_map, path, size),
    }
    # In this order: what may fail, or takes long to compile, takes nothing from the others.
    kinds |= {name: partial(rate, fast=fast) for name, fast in bench.modes.items() if fast != EXACT}
    sizes = (64, 128) if bench.toy else (4096, 10_000)
    found: dict[str, Any] = {f"batch {size}": {} for size in sizes}
    for (name, run), size in product(kinds.items(), sizes):
        rates = found[f"batch {size}"]
        rates[name] = bench.attempt(f"{name} {size}", partial(run, size))
    return found


def _timed_rate(bench: Bench, batches: Iterator, step: Callable[[Any], Any]) -> int:
    """Rows a second of steps, those in which everything settles left out."""
    warm_up, seconds = (2, 0.02) if bench.toy else (20, 4.0)
    for _ in range(warm_up):
        step(next(batches))
    bench.wait()
    rows, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for batch in islice(batches, 1 if bench.toy else 50):
            step(batch)
            rows += len(batch["label"])
        bench.wait()
    return round(rows / (time.perf_counter() - start))


def _fuxictr_rate(bench: Bench, feature_map, path: str, size: int) -> int:
    model = _model(bench, feature_map, bench.gpu)
    batches = _their_loader(feature_map, path, size, shuffle=True)
    return _timed_rate(
        bench,
        chain.from_iterable(repeat(batches)),
        lambda batch: model.train_step(batch).item(),  # as its loop reads every loss
    )


def _evaluation_rate(bench: Bench, feature_map, path: str, size: int) -> int:
    model = _model(bench, feature_map, bench.gpu)
    batches = bench.loader(feature_map, path, size, split="valid")
    with training_step(model):  # as evaluations of a run are, its tables side by side
        for _ in range(2):  # the first time all is allocated
            bench.wait()
            start = time.perf_counter()
            evaluate(model, batches, ["AUC", "logloss"], progress=False)
            bench.wait()
    return round(batches.num_samples / (time.perf_counter() - start))


def frappe(bench: Bench) -> dict[str, Any]:
    """Epochs and test metrics on Frappe, and losses without dropout beside a CPU's."""
    found = {}
    for name, switches in {"exact": {}, "fast": {"fast": True}}.items():
        found[name] = bench.attempt(
            f"frappe {name}",
            lambda switches=switches: _trained(bench, gpu=bench.gpu, epochs=25, **switches),
        )
    same = {"net_dropout": 0.0, "epochs": 2}
    curves = [_trained(bench, gpu=gpu, **same)["train_loss"] for gpu in (bench.gpu, -1)]
    off = max(abs(a - b) / b for a, b in zip(*curves, strict=True))
    curve = {"losses": curves[0], "off": off, "agrees": off <= TOLERANCE["curve"]}
    return found | {"curve": curve}


def _trained(bench: Bench, **settings: Any) -> dict[str, Any]:
    """Train on Frappe; at toy size on some rows of the demo data."""
    settings |= {"data_root": str(bench.folder), "model_root": str(bench.folder), "verbose": 0}
    if bench.toy:
        settings |= {"n_rows": 512, "batch_size": 64, "epochs": 2}
    expid = "TF4CTR_DCNv2_demo" if bench.toy else "TF4CTR_frappe_published"
    record = run_experiment(load_settings(expid, overrides=settings))
    return {
        "epoch_seconds": [each["seconds"] for each in record.evaluations],
        "train_loss": [each["train_loss"] for each in record.evaluations],
        "test": record.test,
    }


def profile(bench: Bench) -> dict[str, Any]:
    """Peak memory of an exact step, and the operations that take most of its time."""
    feature_map, path = _criteo(bench)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.gpu >= 0:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.reset_peak_memory_stats()
    model = _model(bench, feature_map, bench.gpu)
    size = 64 if bench.toy else 4096
    batches = list(islice(bench.loader(feature_map, path, size), 8))
    with training_step(model) as step:
        for batch in batches[:4]:
            step(batch)
        with torch.profiler.profile(activities=activities) as found:
            for batch in batches[4:]:
                step(batch)
            bench.wait()
    by = "self_device_time_total" if bench.gpu >= 0 else "self_cpu_time_total"
    ranked = sorted(found.key_averages(), key=lambda each: -getattr(each, by))[:15]
    return {
        "peak_bytes": torch.cuda.max_memory_allocated() if bench.gpu >= 0 else None,
        "microseconds_of_4_steps": {each.key: round(getattr(each, by)) for each in ranked},
    }


def table(results: dict[str, Any]) -> str:
    """Format the speeds as a table, with a line on Frappe and one on memory."""
    names = list(dict.fromkeys(name for rates in results["speed"].values() for name in rates))
    lines = [
        f"Rows a second on one {results['name']}, rows of Criteo_x4's shape, TF4CTR (SER, WSF); "
        "they lie on the device, but those of `memory`, pinned, and `stream`, and FuxiCTR's:",
        "",
        "| | " + " | ".join(results["speed"]) + " |",
        "|---|" + "---|" * len(results["speed"]),
    ]
    for name in names:
        rates = (each.get(name) for each in results["speed"].values())
        cells = ("" if rate is None else f"{rate:,}" for rate in rates)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("")
    for name in ("exact", "fast"):
        run = (results["frappe"] or {}).get(name)
        if run:
            seconds, auc = statistics.median(run["epoch_seconds"]), run["test"]["AUC"]
            lines.append(
                f"TF4CTR_frappe_published, {name}: {seconds:.2f} s an epoch, test AUC {auc:.5f}."
            )
    if results["profile"] and results["profile"]["peak_bytes"]:
        peak = results["profile"]["peak_bytes"] / 2**30
        lines.append(f"Peak memory of exact steps of 4,096 rows: {peak:.2f} GiB.")
    return "\n".join(lines)


def write_table(results: dict[str, Any]) -> None:
    """Put the table into docs/performance.md, in place of the one before."""
    page = ROOT / "docs" / "performance.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
