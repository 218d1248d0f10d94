"""Encoded rows turned back into the values they were made from, for inspection."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fuxictr_tf4ctr.datasets.encode import EncodedDataset
from fuxictr_tf4ctr.datasets.h5 import column_lengths, part_files, read_blocks
from fuxictr_tf4ctr.errors import DataError, SettingsError


def decode_rows(
    dataset: EncodedDataset, split: str = "train", first: int = 0, count: int = 10
) -> pl.DataFrame:
    """Decode some rows of a split.

    Ids become their tokens, ``__OOV__`` for all that share that id; sequences lose their padding;
    quantile buckets become intervals. Numbers are as stored, after normalization; hash buckets and
    meta columns, whose vocabulary FuxiCTR does not keep, stay ids.

    Args:
        dataset: The encoded data set.
        split: "train", "valid" or "test".
        first: The first row, counted from 0.
        count: How many rows.

    Raises:
        SettingsError: The data set lacks the split, or the row.
        DataError: A file is missing or unreadable.
    """
    path = getattr(dataset, split, None)
    if path is None:
        raise SettingsError(f"{dataset.data_dir}: has no {split} split")
    if not 0 <= first < dataset.rows[split]:
        raise SettingsError(f"{split} has rows 0 to {dataset.rows[split] - 1}, not {first}")
    specs, labels = _specs(dataset.feature_map_path)
    tokens = token_lists(dataset.data_dir)
    stored = _read(path, [*specs, *labels], first, count)
    columns = {
        name: _decoded(stored[name], spec, tokens.get(name, [])) for name, spec in specs.items()
    }
    return pl.DataFrame(columns | {name: stored[name] for name in labels})


def token_lists(data_dir: Path) -> dict[str, list[str]]:
    """Return column -> its tokens, listed by id, as FuxiCTR wrote them to feature_vocab.json.

    Raises:
        DataError: The file is missing or is no JSON.
    """
    path = data_dir / "feature_vocab.json"
    lists = {}
    for name, vocab in _json(path).items():
        tokens = ["?"] * (max(vocab.values(), default=-1) + 1)
        for token, i in vocab.items():
            tokens[i] = token
        lists[name] = tokens
    return lists


def _specs(path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    content = _json(path)
    try:
        specs = {name: spec for entry in content["features"] for name, spec in entry.items()}
        return specs, content["labels"]
    except KeyError as error:
        raise DataError(f"{path}: holds no {error}; FuxiCTR 1.x files are not decoded") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); encode the data again") from error


def _read(path: Path, names: Sequence[str], first: int, count: int) -> dict[str, np.ndarray]:
    found = []
    for file in part_files(path):
        rows = min(column_lengths(file, names).values())
        start, stop = max(first, 0), min(first + count, rows)
        if start < stop:
            found += read_blocks(file, names, {}, [(start, stop)])
        first -= rows
    return {name: np.concatenate([part[name] for part in found]) for name in names}


def _decoded(values: np.ndarray, spec: Mapping[str, Any], tokens: list[str]) -> list[Any]:
    if "boundaries" in spec:
        return [_interval(int(i), spec["boundaries"]) for i in values]
    if spec["type"] == "categorical" and tokens:
        return [tokens[i] for i in values.astype(int)]
    if spec["type"] == "sequence":
        return [[tokens[i] for i in row if i != 0] for row in values.astype(int)]
    return values.tolist()


def _interval(bucket: int, boundaries: Sequence[float]) -> str:
    edges = [-np.inf, *boundaries, np.inf]
    return f"[{edges[bucket]:g}, {edges[bucket + 1]:g})"
