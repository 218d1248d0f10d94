"""A trained model as one folder to serve from, without FuxiCTR or this package."""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuxictr_tf4ctr.datasets.fitted import SPECIAL, read_encoder
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.files import whole_folder
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.runs.loading import LoadedRun
from fuxictr_tf4ctr.runs.records import plain, utc_now, versions
from fuxictr_tf4ctr.serving import score
from fuxictr_tf4ctr.serving.graphs import (
    GRAPHS,
    TABLES,
    ScoringGraph,
    weight_bytes,
    with_small_tables,
)
from fuxictr_tf4ctr.training import evaluate


def describe_features(run: LoadedRun) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """Describe the columns the model of a run reads.

    Returns:
        The content of features.json: separator and columns, in the order of the model's inputs;
        and that of vocabularies.json: column -> token -> id, numbers written as texts.

    Raises:
        DataError: The run keeps no fitted encoder, or a column has no description without code.
    """
    content = read_encoder(run.record.schema_folder)
    declared = {column["name"]: column for column in content["features"]}
    columns, vocabularies = [], {}
    for name, spec in run.feature_map.features.items():
        if spec["type"] == "meta":
            continue
        column = _shared(declared[name], content)
        if "boundaries" in spec:
            column |= {"type": "quantile_bucket", "boundaries": spec["boundaries"]}
        elif spec.get("category_processor"):
            if column["dtype"] == "float":
                raise DataError(f"column {name!r}: hash buckets of floats cannot be exported")
            column |= {"type": "hash_bucket", "buckets": spec["vocab_size"]}
        elif spec["type"] == "numeric":
            column |= {"type": "numeric"} | _normalization(declared[name], content)
        elif spec["type"] == "embedding":
            column |= {"type": "embedding", "width": spec["pretrain_dim"]}
        else:
            tokenizer = content["tokenizers"][name]
            column["tokens"] = _token_type(column, spec, tokenizer["vocab"])
            if column["tokens"] != "text" and isinstance(column["fill"], str):
                column["fill"] = None  # no such number: unknown
            vocabulary = _as_texts(tokenizer["vocab"], column["tokens"])
            owner = spec.get("share_embedding", name)
            if vocabularies.get(owner) != vocabulary:
                owner = name
                vocabularies[name] = vocabulary
            column |= {"type": spec["type"], "vocabulary": owner}
            column["oov"] = tokenizer["vocab"]["__OOV__"]
            if spec["type"] == "sequence":
                column |= {key: tokenizer[key] for key in ("splitter", "padding", "missing")}
                column["max_len"] = spec["max_len"]
        columns.append(column)
    described = {"format": score.FEATURES_FORMAT, "separator": content["reading"]["sep"]}
    return described | {"columns": columns}, vocabularies


def _shared(declared: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every kind of column has: name, dtype, what stands for missing, source."""
    name, dtype = declared["name"], declared["dtype"]
    default = {"int": 0, "float": 0.0}.get(dtype, "")
    column = {"name": name, "dtype": dtype, "fill": declared.get("fill_na", default)}
    preprocess = declared.get("preprocess")
    if preprocess and preprocess.startswith("copy_from("):
        source = preprocess.removeprefix("copy_from(").removesuffix(")")
        others = {each["name"]: each for each in content["features"]}
        if others.get(source, {}).get("preprocess"):
            raise DataError(
                f"column {name!r}: a copy of {source!r}, which {others[source]['preprocess']} "
                "makes, cannot be exported"
            )
        column["source"] = source
        # FuxiCTR works from the last column to the first: a later one is filled when it is copied.
        if source in others and list(others).index(source) > list(others).index(name):
            column["fill"] = others[source].get("fill_na", default)
    elif preprocess:
        column["preprocess"] = preprocess
    return column


def _token_type(
    column: Mapping[str, Any], spec: Mapping[str, Any], vocab: Mapping[Any, int]
) -> str:
    """Say whether a column's tokens are "text", "int" or "float".

    Its dtype does not: a function may make texts of numbers, and lists hold either.
    """
    if spec["type"] == "sequence":
        return "text"
    types = [type(token) for token in vocab if token not in SPECIAL]
    if "share_embedding" not in spec or len(set(types)) == 1:
        # Of a shared vocabulary the tokens of its owner come first.
        return {str: "text", float: "float"}.get(types[0], "int")
    if "preprocess" in column:
        raise DataError(
            f"column {column['name']!r}: its preprocess function makes texts or numbers, and "
            f"{spec['share_embedding']!r}, whose vocabulary it shares, has both: it cannot be "
            "exported"
        )
    return column["dtype"] if column["dtype"] in ("int", "float") else "text"


def _as_texts(vocab: Mapping[Any, int], tokens: str) -> dict[str, int]:
    """Write the tokens of one type as texts, without those that only sharing columns hold."""
    if tokens == "text":
        return {token: i for token, i in vocab.items() if isinstance(token, str)}
    numbers = {token: i for token, i in vocab.items() if not isinstance(token, str)}
    if tokens == "float":
        return {str(token): i for token, i in numbers.items()}
    return {str(int(token)): i for token, i in numbers.items() if float(token).is_integer()}


def _normalization(declared: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    statistics = content["normalizers"].get(declared["name"])
    if statistics is None:
        return {}
    if declared["normalizer"] == "StandardScaler":
        return {"subtract": statistics["mean"], "divide": statistics["std"] or 1.0}
    width = (statistics["max"] - statistics["min"]) or 1.0
    # As scikit-learn computes it: x times a scale plus an offset.
    return {"multiply": float(np.float64(1.0) / width), "add": -statistics["min"] / width}


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
        tables: Numbers of the embedding tables: "fp32", "fp16" or "int8".
        metrics: Of small tables: metrics with the run's own, and with them, on its last split.
        computed: Columns that raw rows must hold computed, as a function of training made them.
    """

    folder: Path
    rows: int
    difference: float
    bytes: int
    tables: str = "fp32"
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    computed: Sequence[str] = ()


def export_run(
    run: LoadedRun,
    output: str | Path,
    kind: str = "onnx",
    tolerance: float = TOLERANCE,
    tables: str = "fp32",
) -> Artefact:
    """Export the model of a run, with all it takes to score raw rows.

    The exported model scores rows of the run's own data beside the run's; where they differ by
    more than ``tolerance``, nothing is left behind.

    Args:
        run: A run loaded on the CPU.
        output: The folder to make; it must not exist, or be empty.
        kind: "onnx" or "torch" (torch.export).
        tolerance: Largest difference allowed between two probabilities.
        tables: Numbers of the embedding tables. "fp16" and "int8", with a scale for each row, take
            less memory; the model that is exported has the rounded tables, and what they change is
            measured on the run's last split.

    Raises:
        SettingsError: The folder is in use, the kind is unknown, or the extra is not installed.
        DataError: The run's encoded data are gone, its features cannot be described without code,
            or the exported model scores otherwise than the run's.
    """
    if kind not in GRAPHS:
        raise SettingsError(unknown("format", kind, GRAPHS))
    if tables not in TABLES:
        raise SettingsError(unknown("tables", tables, TABLES))
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SettingsError(f"{output}: is in use; name a new folder")
    if not output.absolute().parent.is_dir():
        raise SettingsError(f"{output.absolute().parent}: no such folder")
    with whole_folder(output, weight_bytes(run.model)) as folder:
        model = run.model if tables == "fp32" else with_small_tables(run.model, tables)
        graph = ScoringGraph(model)
        features, vocabularies = describe_features(run)
        batches = _real_rows(run, graph.inputs)
        exported = GRAPHS[kind](graph, folder)
        rows, difference = _compare(graph, exported, batches, tolerance)
        _write_json(folder / "features.json", features)
        _write_json(folder / "vocabularies.json", vocabularies)
        shutil.copyfile(score.__file__, folder / "score.py")
        manifest = _manifest(run, graph, kind)
        manifest["parity"] = {"rows": rows, "max_difference": difference, "tolerance": tolerance}
        metrics = {}  # of the run's last split with its own tables, and with rounded ones
        if model is not run.model:
            split = list(run.dataset.rows)[-1]
            for name, each in (("fp32", run.model), ("rounded", model)):
                metrics[name] = evaluate(each, run.loader(split), run.metrics, progress=False)
        manifest["tables"] = {"numbers": tables, "metrics": metrics}
        manifest["files"] = {}
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            manifest["files"][path.name] = {"sha256": digest, "bytes": len(content)}
        _write_json(folder / "manifest.json", manifest)
        size = sum(path.stat().st_size for path in folder.iterdir())
    computed = [column["name"] for column in features["columns"] if "preprocess" in column]
    return Artefact(output, rows, difference, size, tables, metrics, computed)


def _real_rows(run: LoadedRun, names: list[str]) -> list[dict[str, Tensor]]:
    """Take rows of the run's data: of the last split there is, those it trained on least."""
    split = list(run.dataset.rows)[-1]
    loader = run.loader(split, batch_size=sum(_PARITY_BATCHES))
    columns = next(iter(loader))
    batches, start = [], 0
    for size in _PARITY_BATCHES:
        batches.append({name: columns[name][start : start + size] for name in names})
        start += size
    return [batch for batch in batches if len(batch[names[0]])]


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


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, default=plain)
    path.write_text(text + "\n", encoding="utf-8")
