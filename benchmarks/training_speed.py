"""Training and evaluation speed beside FuxiCTR's loop and loader.

FuxiCTR, exact mode and fast mode train the same model on the same rows with the same batch size in
one process, in turn; the medians go to ``benchmarks/results/training_speed_<cores>.json``, on a GPU
to ``training_speed_<its name>.json``. Frappe_x1 is taken from ``$FUXICTR_DATA``, the Criteo-shaped
data are drawn here. ``switches`` times one switch of fast mode after the other.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import model_zoo
from fuxictr_tf4ctr.datasets import H5DataLoader, encode_dataset, load_feature_map
from fuxictr_tf4ctr.datasets.stored import H5Writer, read_columns
from fuxictr_tf4ctr.runs.records import machine, versions
from fuxictr_tf4ctr.settings.reading import load_settings
from fuxictr_tf4ctr.training import Data, FastOptions, Schedule, Watch, evaluate, fit
from fuxictr_tf4ctr.training.fast import EXACT
from fuxictr_tf4ctr.training.step import training_step

RESULTS = Path(__file__).resolve().parent / "results"
MONITOR = {"AUC": 1, "logloss": -1, "gAUC": 1}
# 39 fields whose tokens add up to those of Criteo_x4 at min_categr_count 10, about 0.9 million.
CRITEO_VOCABULARY = [int(n) for n in np.geomspace(8, 230_000, 39)]
FRAPPE_VOCABULARY = [942, 4084, 9, 9, 4, 5, 4, 11, 82, 233]

GPU = 0 if torch.cuda.is_available() else -1
TWIN = {
    "embedding_dim": 16, "simple_hidden_units": [400] * 2, "complex_hidden_units": [400] * 3,
    "embedding_regularizer": 1e-5, "learning_rate": 1e-3, "net_dropout": 0.1, "gpu": GPU,
}  # fmt: skip
FAST_MODE = FastOptions.from_params({"fast": True, "gpu": GPU, "batch_size": 4096})
MODES = {"exact": EXACT, "fast": FAST_MODE}

Timed = Callable[[], float]


def main() -> None:
    """Run the benchmarks named on the command line, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="file of the results, for another machine's")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    where = torch.cuda.get_device_name().replace(" ", "_") if GPU >= 0 else os.cpu_count()
    file = arguments.output or RESULTS / f"training_speed_{where}.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names or BENCHMARKS:
            measured = BENCHMARKS[name](Path(folder) / name, arguments.repeats)
            results[name] = measured | {"machine": machine(), "versions": versions()}
            print(name, json.dumps(measured), flush=True)
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(results, indent=2) + "\n")


def frappe(folder: Path, repeats: int) -> dict:
    """One epoch and its evaluation on Frappe_x1, TF4CTR with SER and WSF, batch 10,000."""
    settings = load_settings(
        "TF4CTR_frappe_published",
        overrides={"data_root": str(folder), "batch_size": 10_000, "gpu": GPU},
    )
    dataset = encode_dataset(settings.params)
    feature_map = load_feature_map(dataset, settings.params)
    data = {split: getattr(dataset, split) for split in ("train", "valid")}
    params = {**settings.params, "monitor": MONITOR, "model_root": str(folder), "verbose": 0}
    sides = _sides(feature_map, params, data, 10_000, MODES)
    return _compared(sides, repeats) | {"unit": "seconds an epoch with its evaluation"}


def criteo(folder: Path, repeats: int, modes: Mapping[str, FastOptions] | None = None) -> dict:
    """Training steps of TF4CTR on rows of Criteo's shape, batch 4,096."""
    rows, batch_size = 8 * 4096, 4096
    feature_map, path = _made(folder, rows, CRITEO_VOCABULARY)
    params = {**TWIN, "model_root": str(folder)}
    data = {"train": path, "valid": None}
    result = _compared(_sides(feature_map, params, data, batch_size, modes or MODES), repeats)
    for side, times in result["seconds"].items():
        result["seconds"][side] = [round(rows / seconds) for seconds in times]
    result["rows_per_second"] = result.pop("seconds")
    return result


def switches(folder: Path, repeats: int) -> dict:
    """What each switch of fast mode gains on rows of Criteo's shape."""
    single = {
        "fast_dropout": FastOptions(fast_dropout=True),
        "bf16": FastOptions(precision="bf16"),
        "sparse_embeddings": FastOptions(sparse_embeddings=True),
        "cowclip": FastOptions(cowclip=True),
        "compile": FastOptions(compile=True),
    }
    if GPU >= 0:
        single["cuda_graphs"] = FastOptions(cuda_graphs=True)
        single["tf32"] = FastOptions(precision="tf32")
        del single["fast_dropout"]
    return criteo(folder, repeats, {"exact": EXACT} | single)


def bf16(folder: Path, repeats: int) -> dict:
    """Processor time of a step of 4,096 rows in exact and fast mode, in float32 and bfloat16.

    It does not depend on what else the machine does, so that a busy one will do.
    """
    modes = {"exact": EXACT, "fast": FAST_MODE}
    modes |= {f"{name} bf16": replace(fast, precision="bf16") for name, fast in modes.items()}
    found = {}
    folder.mkdir()
    for shape, sizes in {"frappe": FRAPPE_VOCABULARY, "criteo": CRITEO_VOCABULARY}.items():
        feature_map, path = _made(folder / shape, 2 * 4096, sizes)
        params = {**TWIN, "model_root": str(folder)}
        batches = list(H5DataLoader(feature_map, path, batch_size=4096))
        with ExitStack() as stack:
            models = {name: _ready(_model(feature_map, params)) for name in ("fuxictr", *modes)}
            steps = {"fuxictr": models["fuxictr"].train_step}
            steps |= {
                name: stack.enter_context(training_step(models[name], fast))
                for name, fast in modes.items()
            }
            sides = {name: partial(_processor, step, batches) for name, step in steps.items()}
            found[shape] = _compared(sides, repeats) | {"unit": "seconds of processor time a step"}
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    known = ("avx512_bf16", "amx_bf16")
    return found | {"cpu_flags": [each for each in known if each in flags]}


def _ready(model):
    model._max_gradient_norm = 10.0
    return model.train()


def _processor(step: Callable, batches: list) -> float:
    start = time.process_time()
    for batch in batches:
        step(batch)
    return (time.process_time() - start) / len(batches)


def evaluation(folder: Path, repeats: int) -> dict:
    """AUC, logloss and gAUC of 400,000 rows in 16,000 groups, a small model's scores included."""
    feature_map, path = _made(folder, 400_000, [16_000, 50, 50], group="f0")
    params = {
        "embedding_dim": 4, "simple_hidden_units": [8], "complex_hidden_units": [8],
        "model_root": str(folder), "metrics": list(MONITOR),
    }  # fmt: skip
    model = _model(feature_map, params)
    ours = H5DataLoader(feature_map, path, split="test", batch_size=10_000)
    theirs = _their_loader(feature_map, path, 10_000, shuffle=False)
    theirs_seconds = lambda: _seconds(lambda: model.evaluate(theirs))  # noqa: E731
    ours_seconds = lambda: _seconds(lambda: evaluate(model, ours, progress=False))  # noqa: E731
    sides = {"fuxictr": theirs_seconds, "ours": ours_seconds}
    return _compared(sides, repeats) | {"unit": "seconds"}


def startup(folder: Path, repeats: int) -> dict:
    """Seconds from ``fuxictr run`` on encoded data to the end of the first step."""
    folder.mkdir()
    command = [sys.executable, "-m", "fuxictr_tf4ctr", "run", "--expid", "TF4CTR_DCNv2_demo",
               "--set", "epochs=1", "--set", "eval_steps=1"]  # fmt: skip
    subprocess.run(command[:-2], cwd=folder, check=True,
                   stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip

    def first_step() -> float:
        start = time.perf_counter()
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr:
                if "Train loss" in line:  # logged before the evaluation after the first step
                    process.kill()
                    return time.perf_counter() - start
        raise RuntimeError("the run ended before its first step")

    seconds = [first_step() for _ in range(repeats)]
    return {"ours": seconds, "median": statistics.median(seconds), "unit": "seconds"}


def memory(folder: Path, repeats: int) -> dict:
    """An epoch on Frappe_x1, freed memory given back to the system and kept, in a process each."""
    folder.mkdir()
    command = [sys.executable, "-m", "fuxictr_tf4ctr", "run", "--expid", "TF4CTR_frappe_published",
               "--set", "epochs=1", "--set", f"data_root={folder}"]  # fmt: skip

    def epoch(told: Mapping[str, str]) -> float:
        with tempfile.TemporaryDirectory() as runs:
            subprocess.run([*command, "--set", f"model_root={runs}"], check=True,
                           env=os.environ | told, stderr=subprocess.DEVNULL)  # fmt: skip
            (record,) = Path(runs).rglob("run.json")
            (evaluation,) = json.loads(record.read_text())["evaluations"]
        return evaluation["seconds"]

    # Where malloc is told anything, here glibc's own default, training leaves it alone.
    sides = {"given back": {"MALLOC_PERTURB_": "0"}, "kept": {}}
    return _compared({name: partial(epoch, told) for name, told in sides.items()}, repeats) | {
        "unit": "seconds an epoch without its evaluation"
    }


BENCHMARKS = {
    "startup": startup,
    "memory": memory,
    "evaluation": evaluation,
    "criteo": criteo,
    "switches": switches,
    "bf16": bf16,
    "frappe": frappe,
}


def _sides(
    feature_map, params, data, batch_size: int, modes: Mapping[str, FastOptions]
) -> dict[str, Timed]:
    """Return an epoch of FuxiCTR's and one of each mode, with a model of its own each time."""

    def their_loader(split: str):
        return data[split] and _their_loader(
            feature_map, data[split], batch_size, shuffle=split == "train"
        )

    def our_loader(split: str):
        return data[split] and H5DataLoader(
            feature_map, data[split], split=split, batch_size=batch_size, shuffle=True
        )

    train_theirs, valid_theirs = map(their_loader, ("train", "valid"))
    train_ours, valid_ours = map(our_loader, ("train", "valid"))

    def theirs() -> float:
        model = _model(feature_map, params)
        if valid_theirs is not None:
            return _seconds(lambda: model.fit(train_theirs, 1, valid_theirs))
        model._max_gradient_norm, model._total_steps, model._stop_training = 10.0, 0, False
        model._eval_steps = len(train_theirs) + 1
        return _seconds(lambda: model.train_epoch(train_theirs))

    def ours(fast: FastOptions) -> float:
        model = _model(feature_map, params)
        start = time.perf_counter()
        result = fit(
            model,
            Data(train_ours, valid_ours),
            Schedule(epochs=1, fast=fast),
            watch=Watch(progress=False),
        )
        return result.train_seconds if valid_ours is None else time.perf_counter() - start

    return {"fuxictr": theirs} | {name: partial(ours, fast) for name, fast in modes.items()}


def _model(feature_map, params):
    torch.manual_seed(1)
    model = model_zoo.TF4CTR(feature_map, **{"verbose": 0, **params})
    Path(model.checkpoint).parent.mkdir(parents=True, exist_ok=True)
    return model


def _made(folder: Path, rows: int, vocabulary: list[int], group: str | None = None):
    """Draw a data set of categorical fields and write it as h5."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    names = [f"f{number}" for number in range(len(vocabulary))]
    columns = {
        # Tokens as uneven as clicks are: most rows share few of them.
        name: (1 + (size - 1) * rng.random(rows) ** 3).astype(np.int32)
        for name, size in zip(names, vocabulary, strict=True)
    }
    columns["label"] = (rng.random(rows) < 0.25).astype(np.float32)
    with H5Writer(folder / "train.h5") as writer:
        writer.append(columns)
    specs = [
        {name: {"source": "", "type": "categorical", "padding_idx": 0, "vocab_size": size}}
        for name, size in zip(names, vocabulary, strict=True)
    ]
    content = {
        "dataset_id": folder.name, "num_fields": len(names), "total_features": sum(vocabulary),
        "input_length": len(names), "labels": ["label"], "features": specs,
    }  # fmt: skip
    (folder / "feature_map.json").write_text(json.dumps(content))
    params = {"dataset_id": folder.name, "embedding_dim": 16, "group_id": group}
    return load_feature_map(folder, params), str(folder / "train.h5")


def _their_loader(feature_map, path, batch_size: int, shuffle: bool):
    from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader

    names = [*feature_map.features, *feature_map.labels]
    npz = Path(path).with_suffix(".npz")
    if not npz.exists():
        np.savez(npz, **read_columns(path, names))
    return NpzDataLoader(feature_map, str(npz), batch_size, shuffle, num_workers=1)


def _compared(sides: Mapping[str, Timed], repeats: int) -> dict:
    """Time all sides in turn, a round thrown away; the first is what the others are compared to."""
    for run in sides.values():
        run()
    times = {name: [] for name in sides}
    for number in range(repeats):
        order = list(sides.items())
        for name, run in order if number % 2 else reversed(order):
            times[name].append(run())
    medians = {name: statistics.median(each) for name, each in times.items()}
    first, *others = medians
    ratios = {name: round(medians[first] / medians[name], 2) for name in others}
    return {"seconds": times, "times_as_fast": ratios, "load": os.getloadavg()[0]}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
