"""What a GPU makes of training: ``python benchmarks/gpu.py``, at most 8 minutes on one CUDA GPU.

Four parts: that results are those of the CPU; rows a second on rows of Criteo's shape, FuxiCTR's
own loop and loader beside ours; Frappe's epochs; memory, and where a step's time goes. What this
machine lacks is named under "skipped". Results go to ``benchmarks/results/gpu_<name>.json``, and as
a table into docs/performance.md. ``--device cpu --toy`` runs all at toy size and writes neither.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from training_speed import _made, _their_loader

import model_zoo
from fuxictr_tf4ctr.datasets import H5DataLoader
from fuxictr_tf4ctr.runs.experiment import run_experiment
from fuxictr_tf4ctr.runs.records import machine, versions
from fuxictr_tf4ctr.settings.reading import load_settings
from fuxictr_tf4ctr.training import Data, FastOptions, Schedule, Watch, evaluate, fit
from fuxictr_tf4ctr.training.step import training_step

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 460
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
# Largest difference of a step's loss from the CPU's in float64, over the loss.
TOLERANCE = {"exact": 1e-4, "graph": 1e-4, "fast": 3e-2}


@dataclass
class Bench:
    """One run of the script.

    Attributes:
        gpu: Index of the GPU, -1 for the CPU.
        toy: Whether sizes are those of a test.
        folder: For files.
        skipped: What was left out, and why.
    """

    gpu: int
    toy: bool
    folder: Path
    started: float = field(default_factory=time.perf_counter)
    skipped: dict[str, str] = field(default_factory=dict)

    def attempt(self, name: str, part: Callable[[], Any]) -> Any:
        """Run a part; what it lacks or runs out of is noted, and the others go on."""
        if time.perf_counter() - self.started > SECONDS:
            self.skipped[name] = "no time was left"
            return None
        try:
            return part()
        except Exception as error:
            if self.toy:
                raise
            self.skipped[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            return None

    def wait(self) -> None:
        """Wait for the device."""
        if self.gpu >= 0:
            torch.cuda.synchronize()

    @property
    def modes(self) -> dict[str, FastOptions]:
        """Switches to measure; those that a CPU has no use for are left out there."""
        if self.gpu < 0:
            return {"exact": FastOptions(), "bf16": FastOptions("bf16")}
        return {
            "exact": FastOptions(),
            "graph": FastOptions(cuda_graphs=True),
            "graph tf32": FastOptions("tf32", cuda_graphs=True),
            "graph bf16": FastOptions("bf16", cuda_graphs=True),
            "graph bf16 compile": FastOptions("bf16", compile=True, cuda_graphs=True),
        }


def main() -> None:
    """Run all parts, write the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="toy sizes; nothing is kept")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("this PyTorch sees no CUDA GPU: run it where there is one, or --device cpu --toy")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(0 if arguments.device == "cuda" else -1, arguments.toy, Path(folder))
        results = measured(bench)
    print(json.dumps(results, indent=2))
    if not arguments.toy:
        file = ROOT / "benchmarks" / "results" / f"gpu_{results['name'].replace(' ', '_')}.json"
        file.write_text(json.dumps(results, indent=2) + "\n")
        if results["speed"]:
            write_table(results)


def measured(bench: Bench) -> dict[str, Any]:
    """Run the four parts."""
    parts = {"agreement": agreement, "speed": speed, "frappe": frappe, "profile": profile}
    results: dict[str, Any] = {"name": "cpu", "toy": bench.toy}
    if bench.gpu >= 0:
        results["name"] = torch.cuda.get_device_name()
        results["driver"] = bench.attempt("driver", _driver)
    for name, part in parts.items():
        results[name] = bench.attempt(name, lambda part=part: part(bench))
    seconds = round(time.perf_counter() - bench.started, 1)
    details = {"machine": machine(), "versions": versions(), "seconds": seconds}
    return results | details | {"skipped": bench.skipped}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


def agreement(bench: Bench) -> dict[str, Any]:
    """Losses of steps beside those of the CPU in float64, and the tests marked gpu."""
    feature_map, path = _made(bench.folder / "agreement", 20 * 64, [50, 20, 9])
    expected = _losses(bench, feature_map, path, FastOptions(), exactly=True)
    last = "graph bf16" if bench.gpu >= 0 else "bf16"
    kinds = {"exact": "exact", "graph": "graph", "fast": last}
    found = {}
    for kind, mode in kinds.items():
        if mode in bench.modes:
            losses = _losses(bench, feature_map, path, bench.modes[mode])
            off = [abs(a - b) / b for a, b in zip(losses, expected, strict=True)]
            found[kind] = {"off": max(off), "agrees": max(off) <= TOLERANCE[kind]}
    if bench.gpu >= 0:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "0",
            "-m",
            "gpu",
            str(ROOT / "tests"),
        ]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
        found["tests"] = run.stdout.strip().splitlines()[-1]
    return found


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
    found: dict[str, Any] = {}
    for size in (64, 128) if bench.toy else (4096, 10_000):
        rates = found[f"batch {size}"] = {}
        rates["fuxictr"] = bench.attempt(
            f"fuxictr {size}", lambda size=size: _fuxictr_rate(bench, feature_map, path, size)
        )
        for name, fast in bench.modes.items():
            rates[name] = bench.attempt(
                f"{name} {size}",
                lambda fast=fast, size=size: _rate(bench, feature_map, path, size, fast),
            )
        for storage in ("memory", "stream"):
            rates[f"exact {storage}"] = bench.attempt(
                f"{storage} {size}",
                lambda size=size, storage=storage: _rate(
                    bench, feature_map, path, size, FastOptions(), storage
                ),
            )
        rates["evaluation"] = bench.attempt(
            f"evaluation {size}", lambda size=size: _evaluation_rate(bench, feature_map, path, size)
        )
    return found


def _timed_rate(bench: Bench, batches: Iterator, step: Callable[[Any], Any]) -> int:
    """Rows a second of steps, those in which everything settles left out."""
    warm_up, seconds = (4, 0.2) if bench.toy else (20, 5.0)
    for _ in range(warm_up):
        step(next(batches))
    bench.wait()
    rows, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            batch = next(batches)
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


def _rate(bench: Bench, feature_map, path: str, size: int, fast, storage: str = "auto") -> int:
    model = _model(bench, feature_map, bench.gpu)
    batches = H5DataLoader(
        feature_map, path, batch_size=size, shuffle=True, storage=storage, gpu=bench.gpu
    )
    with training_step(model, fast) as step:
        return _timed_rate(bench, chain.from_iterable(repeat(batches)), step)


def _evaluation_rate(bench: Bench, feature_map, path: str, size: int) -> int:
    model = _model(bench, feature_map, bench.gpu)
    batches = H5DataLoader(feature_map, path, split="valid", batch_size=size, gpu=bench.gpu)
    for _ in range(2):  # the first time all is allocated
        bench.wait()
        start = time.perf_counter()
        evaluate(model, batches, ["AUC", "logloss"], progress=False)
        bench.wait()
    return round(batches.num_samples / (time.perf_counter() - start))


def frappe(bench: Bench) -> dict[str, Any]:
    """Seconds of an epoch and test metrics of TF4CTR_frappe; of drawn rows at toy size."""
    if bench.toy:
        feature_map, path = _made(bench.folder / "frappe", 512, [20, 30, 9, 4])
        loader = H5DataLoader(feature_map, path, batch_size=64)
        model = _model(bench, feature_map, bench.gpu)
        Path(model.checkpoint).parent.mkdir(parents=True, exist_ok=True)
        result = fit(model, Data(loader, loader), Schedule(2), watch=Watch(progress=False))
        return {"exact": [each["metrics"] for each in result.epochs]}
    found = {}
    for name, switches in {"exact": {}, "fast": {"fast": True}}.items():
        places = {"data_root": str(bench.folder), "model_root": str(bench.folder)}
        overrides = {**places, "gpu": bench.gpu, "epochs": 25, "verbose": 0, **switches}
        record = run_experiment(load_settings("TF4CTR_frappe", overrides=overrides))
        found[name] = {
            "epoch_seconds": [each["seconds"] for each in record.evaluations],
            "train_loss": [each["train_loss"] for each in record.evaluations],
            "test": record.test,
        }
    return found


def profile(bench: Bench) -> dict[str, Any]:
    """Peak memory of an exact step, and the operations that take most of its time."""
    feature_map, path = _criteo(bench)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.gpu >= 0:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.reset_peak_memory_stats()
    model = _model(bench, feature_map, bench.gpu)
    size = 64 if bench.toy else 4096
    batches = list(H5DataLoader(feature_map, path, batch_size=size, gpu=bench.gpu))[:8]
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
    """Format the speeds as a table."""
    names = list(dict.fromkeys(name for rates in results["speed"].values() for name in rates))
    lines = [
        f"Rows a second on one {results['name']}, rows of Criteo_x4's shape, TF4CTR (SER, WSF):",
        "",
        "| | " + " | ".join(results["speed"]) + " |",
        "|---|" + "---|" * len(results["speed"]),
    ]
    for name in names:
        rates = (each.get(name) for each in results["speed"].values())
        cells = ("" if rate is None else f"{rate:,}" for rate in rates)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table(results: dict[str, Any]) -> None:
    """Put the table into docs/performance.md, in place of the one before."""
    page = ROOT / "docs" / "performance.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
