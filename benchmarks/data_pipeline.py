"""Encoding and loading against FuxiCTR 2.3.10's, on Criteo-shaped data.

python benchmarks/data_pipeline.py [--rows 500000] [--larger 5000000 20000000] [--folder DIR]

Each case runs in a process of its own. Peak memory is the sum over that process and all it started,
shared pages counted once (PSS), sampled every 0.2 s; so it is Linux alone. ``--rows`` go through
both programs, encoded in turn three times (the median counts), ``--larger`` through ours only.
Results: benchmarks/results/data_pipeline.json, .svg.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from criteo_like import CATEGORIES, COUNTS, write_csv

RESULTS = Path(__file__).parent / "results"
BATCH_SIZE = 10_000
REPEATS = 3


def params(source: Path, data_root: Path) -> dict[str, Any]:
    """Return FuxiCTR's parameters of Criteo_x4 for a raw file."""
    entry = {"active": True, "type": "categorical"}
    count = entry | {"dtype": "float", "preprocess": "convert_to_bucket", "fill_na": 0}
    category = entry | {"dtype": "str", "fill_na": ""}
    return {
        "dataset_id": "criteo",
        "data_root": str(data_root),
        "data_format": "csv",
        "train_data": str(source),
        "feature_processor": "fuxictr.datasets.criteo",
        "min_categr_count": 10,
        "feature_cols": [count | {"name": COUNTS}, category | {"name": CATEGORIES}],
        "label_col": {"name": "Label", "dtype": "float"},
        "embedding_dim": 16,
    }


def encode_ours(source: str, folder: str) -> dict[str, float]:
    """Encode into ``folder``/criteo."""
    from fuxictr_tf4ctr.datasets import encode_dataset

    start = time.perf_counter()
    encode_dataset(params(Path(source), Path(folder)))
    return {"seconds": time.perf_counter() - start}


def encode_fuxictr(source: str, folder: str) -> dict[str, float]:
    """Encode by FuxiCTR's build_dataset, Ray's start included as in every run of it."""
    from fuxictr.datasets.criteo import CustomizedFeatureProcessor
    from fuxictr.preprocess import build_dataset

    settings = params(Path(source), Path(folder))
    start = time.perf_counter()
    build_dataset(CustomizedFeatureProcessor(**settings), **settings)
    return {"seconds": time.perf_counter() - start}


def load_ours(folder: str, storage: str) -> dict[str, float]:
    """Serve epochs from our files."""
    began = time.perf_counter()
    from fuxictr_tf4ctr.datasets import H5DataLoader, load_feature_map

    data_dir = Path(folder) / "criteo"
    feature_map = load_feature_map(data_dir, {"dataset_id": "criteo", "embedding_dim": 16})
    loader = H5DataLoader(
        feature_map, data_dir / "train.h5", batch_size=BATCH_SIZE, shuffle=True, storage=storage
    )
    return _epochs(loader, began)


def load_fuxictr(folder: str, kind: str) -> dict[str, float]:
    """Serve epochs from FuxiCTR's parquet, or from the same columns as npz."""
    began = time.perf_counter()
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.dataloaders import RankDataLoader

    data_dir = Path(folder) / "criteo"
    feature_map = FeatureMap("criteo", str(data_dir))
    feature_map.load(str(data_dir / "feature_map.json"), {"embedding_dim": 16})
    loader, _ = RankDataLoader(
        feature_map,
        stage="train",
        train_data=str(data_dir / f"train.{kind}"),
        batch_size=BATCH_SIZE,
        shuffle=True,
        data_format=kind,
        num_workers=3,
    )
    return _epochs(loader, began)


def _epochs(loader: Any, began: float) -> dict[str, float]:
    first, seconds = 0.0, []
    for _ in range(REPEATS):
        start, rows = time.perf_counter(), 0
        for batch in loader:
            rows += len(batch["Label"])
            first = first or time.perf_counter() - began
        seconds.append(time.perf_counter() - start)
        if rows != loader.num_samples:
            raise RuntimeError(f"{rows} rows served of {loader.num_samples}")
    return {"seconds": statistics.median(seconds), "first_batch_seconds": first}


CASES: dict[str, Callable[..., dict[str, float]]] = {
    case.__name__: case for case in (encode_ours, encode_fuxictr, load_ours, load_fuxictr)
}


def measured(rows: int, case: str, *arguments: str | Path) -> dict[str, Any]:
    """Run a case in its own process and add rows per second and peak memory."""
    command = [sys.executable, __file__, "--case", case, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(0.2)
        output.seek(0)
        lines = output.read().splitlines()
    name = " ".join([case, *(str(a) for a in arguments[1:] if "/" not in str(a))])
    if process.returncode:
        raise RuntimeError(f"{name} ended with status {process.returncode}")
    result = {"case": name, "rows": rows, **json.loads(lines[-1]), "peak_megabytes": peak / 1e6}
    result["rows_per_second"] = rows / result["seconds"]
    print(json.dumps(result), flush=True)
    return result


def _memory(root: int) -> int:
    """Add up the memory of a process and its descendants, in bytes."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")")[1].split()[1])
        except OSError:
            continue  # it ended meanwhile
    family, total = {root}, 0
    for _ in range(8):
        family |= {child for child, parent in parents.items() if parent in family}
    for process in family:
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total * 1024


def run(rows: int, larger: list[int], folder: Path) -> list[dict[str, Any]]:
    """Measure all cases."""
    source, ours, theirs = folder / f"{rows}.csv", folder / "ours", folder / "fuxictr"
    write_csv(source, rows)
    results = _encoded_in_turn(rows, source, {"encode_ours": ours, "encode_fuxictr": theirs})
    _write_npz(theirs / "criteo")
    results += [measured(rows, "load_ours", ours, storage) for storage in ("memory", "stream")]
    results += [measured(rows, "load_fuxictr", theirs, kind) for kind in ("npz", "parquet")]
    for count in larger:
        source = folder / f"{count}.csv"
        write_csv(source, count)
        results.append(measured(count, "encode_ours", source, folder / f"ours{count}"))
        results.append(measured(count, "load_ours", folder / f"ours{count}", "stream"))
        source.unlink()
    return results


def _encoded_in_turn(rows: int, source: Path, folders: dict[str, Path]) -> list[dict[str, Any]]:
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in folders}
    for _ in range(REPEATS):
        for case, folder in folders.items():
            shutil.rmtree(folder, ignore_errors=True)
            runs[case].append(measured(rows, case, source, folder))
    return [sorted(each, key=itemgetter("seconds"))[REPEATS // 2] for each in runs.values()]


def _write_npz(data_dir: Path) -> None:
    import numpy as np
    import polars as pl

    frame = pl.read_parquet(data_dir / "train.parquet")
    np.savez(data_dir / "train.npz", **{column.name: column.to_numpy() for column in frame})


def ratios(results: list[dict[str, Any]], rows: int) -> dict[str, float]:
    """Return how many times as fast ours is at ``rows`` rows."""
    at = {result["case"]: result for result in results if result["rows"] == rows}

    def faster(ours: str, theirs: str) -> float:
        return round(at[theirs]["seconds"] / at[ours]["seconds"], 2)

    first = at["load_ours memory"]["first_batch_seconds"]
    theirs = at["load_fuxictr parquet"]["first_batch_seconds"]
    return {
        "encoding": faster("encode_ours", "encode_fuxictr"),
        "in-memory loader against npz": faster("load_ours memory", "load_fuxictr npz"),
        "streaming loader against parquet": faster("load_ours stream", "load_fuxictr parquet"),
        "first batch against parquet": round(theirs / first, 2),
    }


def plot(results: list[dict[str, Any]]) -> str:
    """Draw rows per second and peak memory against the number of rows, as SVG."""
    panels = [
        _panel(results, "rows_per_second", "rows per second", 60),
        _panel(results, "peak_megabytes", "peak memory, MB", 440),
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="820" height="360" '
        f'font-family="sans-serif" font-size="11">{"".join(panels)}</svg>\n'
    )


def _panel(results: list[dict[str, Any]], key: str, title: str, left: int) -> str:
    import math

    def place(value: float, low: float, high: float) -> float:
        return (math.log10(value) - low) / max(high - low, 1e-9)

    def span(values: list[float]) -> tuple[float, float]:
        return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)

    across, up = span([r["rows"] for r in results]), span([r[key] for r in results])
    drawn = [f'<text x="{left}" y="20" font-weight="bold">{title} against rows, log scales</text>']
    for low, high, horizontal in ((*across, True), (*up, False)):
        for power in range(int(low), int(high) + 1):
            share = place(10**power, low, high)
            x, y = (left + 300 * share, 245) if horizontal else (left - 32, 234 - 200 * share)
            drawn.append(f'<text x="{x:.0f}" y="{y:.0f}">1e{power}</text>')
    cases = list(dict.fromkeys(result["case"] for result in results))
    for number, case in enumerate(cases):
        color = f"hsl({number * 360 // len(cases)},70%,40%)"
        points = [
            (left + 300 * place(r["rows"], *across), 230 - 200 * place(r[key], *up))
            for r in results
            if r["case"] == case
        ]
        line = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{color}"/>')
        drawn += [f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3" fill="{color}"/>' for x, y in points]
        drawn.append(f'<text x="{left}" y="{265 + 14 * number}" fill="{color}">{case}</text>')
    return "".join(drawn)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--larger", type=int, nargs="*", default=[])
    parser.add_argument("--folder", type=Path, help="for data; a temporary one by default")
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        name, *rest = arguments.case
        print(json.dumps(CASES[name](*rest)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        load_before = os.getloadavg()[0]
        results = run(arguments.rows, arguments.larger, Path(folder))
    packages = ("fuxictr", "fuxictr-tf4ctr", "polars", "h5py", "torch", "ray", "numpy")
    content = {
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "load_before": round(load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
        },
        "versions": {name: version(name) for name in packages},
        "batch_size": BATCH_SIZE,
        "times_as_fast": ratios(results, arguments.rows),
        "results": results,
    }
    print(json.dumps(content["times_as_fast"], indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "data_pipeline.json").write_text(json.dumps(content, indent=2) + "\n")
    (RESULTS / "data_pipeline.svg").write_text(plot(results))


if __name__ == "__main__":
    main()
