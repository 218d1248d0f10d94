"""The folder an export leaves: model, features, vocabularies, manifest and a scoring script."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.files import whole_folder
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.runs.loading import LoadedRun
from fuxictr_tf4ctr.runs.records import plain, utc_now, versions
from fuxictr_tf4ctr.serving.export import score
from fuxictr_tf4ctr.serving.export.features import describe_features
from fuxictr_tf4ctr.serving.export.graphs import GRAPHS, ScoringGraph

TOLERANCE = 1e-5
# What differs by more is wrong, not rounded otherwise.
_LARGEST_TOLERANCE = 1e-3
# Batches of these sizes are compared: one row, a few, and whatever is left.
_PARITY_BATCHES = (1, 7, 1024)
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Artefact:
    """What was exported.

    Attributes:
        folder: Where it lies.
        rows: How many rows both models scored.
        difference: The largest difference between their probabilities.
        bytes: Size of all files.
    """

    folder: Path
    rows: int
    difference: float
    bytes: int


def export_run(
    run: LoadedRun,
    output: str | Path,
    kind: str = "onnx",
    tolerance: float = TOLERANCE,
) -> Artefact:
    """Export the model of a run, with all it takes to score raw rows.

    The exported model scores rows of the run's own data beside the run's; where they differ by
    more than ``tolerance``, nothing is left behind.

    Args:
        run: A run loaded on the CPU.
        output: The folder to make; it must not exist, or be empty.
        kind: "onnx" or "torch" (torch.export).
        tolerance: Largest difference allowed between two probabilities.

    Raises:
        SettingsError: The folder is in use, the kind is unknown, or the extra is not installed.
        DataError: The run's encoded data are gone, its features cannot be described without code,
            or the exported model scores otherwise than the run's.
    """
    if kind not in GRAPHS:
        raise SettingsError(unknown("format", kind, GRAPHS))
    with _new_folder(Path(output)) as folder:
        graph = ScoringGraph(run.model)
        features, vocabularies = describe_features(run)
        batches = _real_rows(run, graph.inputs)
        exported = GRAPHS[kind](graph, folder)
        rows, difference = _compare(graph, exported, batches, tolerance)
        _write_json(folder / "features.json", features)
        _write_json(folder / "vocabularies.json", vocabularies)
        shutil.copyfile(score.__file__, folder / "score.py")
        manifest = _manifest(run, graph, kind)
        manifest["parity"] = {"rows": rows, "max_difference": difference, "tolerance": tolerance}
        manifest["files"] = {path.name: _describe(path) for path in sorted(folder.iterdir())}
        _write_json(folder / "manifest.json", manifest)
        size = sum(path.stat().st_size for path in folder.iterdir())
    return Artefact(Path(output), rows, difference, size)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Lend a temporary folder that takes its place when all went well."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder}: is in use; name a new folder")
    if not folder.absolute().parent.is_dir():
        raise SettingsError(f"{folder.absolute().parent}: no such folder")
    with whole_folder(folder) as temporary:
        yield temporary


def _real_rows(run: LoadedRun, names: list[str]) -> list[dict[str, Tensor]]:
    """Take rows of the run's data: of the last split there is, those it trained on least."""
    split = list(run.dataset.rows)[-1]
    loader = run.loader(split, batch_size=sum(_PARITY_BATCHES))
    rows = next(iter(loader))
    batches, start = [], 0
    for size in _PARITY_BATCHES:
        batch = {name: rows[name][start : start + size] for name in names}
        if len(batch[names[0]]):
            batches.append(batch)
        start += size
    return batches


def _compare(
    graph: ScoringGraph, exported: Any, batches: list[dict[str, Tensor]], tolerance: float
) -> tuple[int, float]:
    rows, worst = 0, 0.0
    for batch in batches:
        with torch.no_grad():
            expected = graph(*batch.values())
        found = exported({name: column.numpy() for name, column in batch.items()})
        rows += len(expected[0])
        for name, ours, theirs in zip(graph.outputs, expected, found, strict=True):
            difference = float(np.abs(ours.numpy() - theirs).max())
            # Written so that a difference that is no number is too large as well.
            if not difference <= tolerance:
                raise DataError(
                    f"the exported model is not the run's: {name} differs by {difference:.3g}, "
                    f"more than the tolerance {tolerance:g}; nothing was exported"
                    f"{_enough(difference)}"
                )
            worst = max(worst, difference)
    return rows, worst


def _enough(difference: float) -> str:
    """Say which tolerance would do, where one that is still small would."""
    if not difference < _LARGEST_TOLERANCE:
        return ""
    digit = 10 ** math.floor(math.log10(difference))
    return f". If that is near enough: --tolerance {math.ceil(difference / digit) * digit:.0e}"


def _manifest(run: LoadedRun, graph: ScoringGraph, kind: str) -> dict[str, Any]:
    record = run.record
    return {
        "format": score.MANIFEST_FORMAT,
        "kind": kind,
        "created": utc_now(),
        "expid": record.expid,
        "model": run.settings["model"],
        "dataset_id": run.settings["dataset_id"],
        "data_fingerprint": record.data["fingerprint"],
        "parameters": record.parameters,
        "metrics": {"valid": record.valid, "test": record.test},
        "versions": {"trained_with": record.versions, "exported_with": versions(_PACKAGES)},
        "inputs": [
            {"name": name, "dtype": str(column.dtype).split(".")[1], "shape": ["batch", *shape]}
            for name, column in graph.example.items()
            for shape in [list(column.shape[1:])]
        ],
        "outputs": [
            {"name": name, "dtype": "float32", "shape": ["batch"]} for name in graph.outputs
        ],
    }


def _describe(path: Path) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, default=plain)
    path.write_text(text + "\n", encoding="utf-8")
