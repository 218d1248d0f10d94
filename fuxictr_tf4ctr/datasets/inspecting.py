"""What an encoded data set holds: rows, labels, vocabularies, shared rows; rows as raw values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from fuxictr.features import FeatureMap

from fuxictr_tf4ctr.datasets.blocks import BlockReader
from fuxictr_tf4ctr.datasets.encode import EncodedDataset
from fuxictr_tf4ctr.datasets.feature_map import (
    VOCABULARIES,
    load_feature_map,
    read_feature_map,
)
from fuxictr_tf4ctr.datasets.job import SPLITS
from fuxictr_tf4ctr.datasets.stored import part_files
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.schema import read_json


@dataclass
class SplitSummary:
    """Counts over the rows of one split.

    Attributes:
        rows: Their number.
        label_sums: Label -> sum of its values.
        id_counts: Column of ids -> how often each id occurs, padding of sequences left out.
        row_hashes: One number per row, the same for the same features [rows].
    """

    rows: int = 0
    label_sums: dict[str, float] = field(default_factory=dict)
    id_counts: dict[str, np.ndarray] = field(default_factory=dict)
    row_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))


def describe_dataset(dataset: EncodedDataset, params: Mapping[str, Any], top: int = 3) -> str:
    """Describe an encoded data set as text, a block of rows at a time.

    Args:
        dataset: The encoded data set.
        params: FuxiCTR's parameters of the data set.
        top: How many of the most frequent values to show for each column.

    Raises:
        DataError: A file is missing, unreadable or disagrees with the feature map.
    """
    feature_map = load_feature_map(dataset, params)
    splits = {
        split: summarize(part_files(path), feature_map)
        for split in SPLITS
        if (path := getattr(dataset, split)) is not None
    }
    tokens = tokens_by_id(dataset.data_dir)
    lines = [f"{dataset.data_dir}", "", *_split_lines(splits), ""]
    lines += _column_lines(splits, feature_map, tokens, top)
    lines += ["", "Rows of one split whose encoded features occur in another:"]
    lines += _shared_rows(splits) or ["  there is one split"]
    return "\n".join(lines)


def summarize(files: list, feature_map: FeatureMap) -> SplitSummary:
    """Count over the files of one split."""
    reader = BlockReader(files, feature_map, binary=False)
    hashed = [name for name, spec in feature_map.features.items() if spec["type"] != "meta"]
    summary, hashes = SplitSummary(), []
    for part in reader.parts():
        rows = reader.read([part])
        columns = {name: c.numpy() for name, c in reader.columns(rows).items()}
        summary.rows += len(rows)
        for label in feature_map.labels:
            total = summary.label_sums.get(label, 0.0)
            summary.label_sums[label] = total + float(columns[label].sum(dtype=np.float64))
        for name, spec in feature_map.features.items():
            if "vocab_size" in spec:
                found = np.bincount(columns[name].ravel(), minlength=spec["vocab_size"])
                if spec["type"] == "sequence":
                    found[0] = 0
                summary.id_counts[name] = summary.id_counts.get(name, 0) + found
        hashes.append(_row_hashes([columns[name] for name in hashed]))
    summary.row_hashes = np.concatenate(hashes)
    return summary


def _row_hashes(columns: list[np.ndarray]) -> np.ndarray:
    """Hash rows by SplitMix64 over their values; two in 2^64 different rows collide."""
    state = np.zeros(len(columns[0]), np.uint64)
    for values in columns:
        for column in values.reshape(len(values), -1).T:
            # Numbers by their bits, zero of either sign alike.
            bits = (column + 0).view(np.uint32) if column.dtype == np.float32 else column
            state = (state ^ bits.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return state


def _split_lines(splits: Mapping[str, SplitSummary]) -> list[str]:
    lines = []
    for split, summary in splits.items():
        rates = [
            f"{label} {total / summary.rows:.4f}" for label, total in summary.label_sums.items()
        ]
        lines.append(f"{split:<6}{summary.rows:>12,} rows   mean of {', '.join(rates)}")
    return lines


def _column_lines(
    splits: Mapping[str, SplitSummary],
    feature_map: FeatureMap,
    tokens: Mapping[str, Mapping[int, str]],
    top: int,
) -> list[str]:
    width = max(map(len, feature_map.features))
    header = f"{'column':<{width}}  {'type':<11}{'ids':>9}"
    header += "".join(f"{'OOV ' + split:>11}" for split in splits)
    lines = [f"{header}  most frequent in train"]
    for name, spec in feature_map.features.items():
        line = f"{name:<{width}}  {spec['type']:<11}"
        if "vocab_size" in spec:
            names = tokens.get(name, {})
            counts = {split: summary.id_counts[name] for split, summary in splits.items()}
            line += f"{spec['vocab_size']:>9,}"
            line += "".join(f"{_oov_rate(names, found):>11}" for found in counts.values())
            other = "bucket" if "category_processor" in spec else "id"
            line += f"  {_top(names, counts['train'], top, other)}"
        lines.append(line.rstrip())
    return lines


def _oov_rate(tokens: Mapping[int, str], counts: np.ndarray) -> str:
    oov = next((i for i, token in tokens.items() if token == "__OOV__"), None)
    if oov is None:
        return "-"
    return f"{counts[oov] / max(counts.sum(), 1):.2%}"


def _top(tokens: Mapping[int, str], counts: np.ndarray, top: int, other: str) -> str:
    best = [int(i) for i in np.argsort(-counts, kind="stable")[:top] if counts[i]]
    total = counts.sum()
    return ", ".join(f"{tokens.get(i, f'{other} {i}')!r} {counts[i] / total:.1%}" for i in best)


def _shared_rows(splits: Mapping[str, SplitSummary]) -> list[str]:
    lines = []
    names = list(splits)
    for at, other in enumerate(names):
        for split in names[at + 1 :]:
            found = np.isin(splits[split].row_hashes, splits[other].row_hashes).sum()
            share = found / splits[split].rows
            lines.append(f"  {split} in {other}: {found:,} ({share:.2%})")
    return lines


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
    feature_map = load_feature_map(dataset, {"dataset_id": _dataset_id(dataset)})
    tokens = tokens_by_id(dataset.data_dir)
    reader = BlockReader(part_files(path), feature_map, binary=False)
    (parts,) = reader.runs([first, min(count, reader.rows - first)], {1}).values()
    stored = {name: c.numpy() for name, c in reader.columns(reader.read(parts)).items()}
    columns = {
        name: _decoded(stored[name], spec, tokens.get(name, {}))
        for name, spec in feature_map.features.items()
    }
    return pl.DataFrame(columns | {name: stored[name] for name in feature_map.labels})


def _dataset_id(dataset: EncodedDataset) -> str:
    content = read_feature_map(dataset.feature_map_path)
    if "feature_specs" in content:
        raise DataError(f"{dataset.feature_map_path}: FuxiCTR 1.x files are not decoded")
    return content["dataset_id"]


def tokens_by_id(data_dir: Path) -> dict[str, dict[int, str]]:
    """Return column -> id -> token, as FuxiCTR wrote them to feature_vocab.json.

    Returns:
        Empty where there is no such file: FuxiCTR's npz and parquet data sets may lack it.

    Raises:
        DataError: It is no JSON, or holds something else.
    """
    try:
        vocabularies = read_json(data_dir / "feature_vocab.json", VOCABULARIES, "encode again")
    except FileNotFoundError:
        return {}
    return {name: {i: token for token, i in vocab.items()} for name, vocab in vocabularies.items()}


def _decoded(values: np.ndarray, spec: Mapping[str, Any], tokens: Mapping[int, str]) -> list[Any]:
    if "boundaries" in spec:
        return [_interval(int(i), spec["boundaries"]) for i in values]
    if spec["type"] == "categorical" and tokens:
        return [tokens.get(i, "?") for i in values.tolist()]
    if spec["type"] == "sequence" and tokens:
        return [[tokens.get(i, "?") for i in row if i != 0] for row in values.tolist()]
    return values.tolist()


def _interval(bucket: int, boundaries: Sequence[float]) -> str:
    edges = [-np.inf, *boundaries, np.inf]
    lower, upper = edges[bucket : bucket + 2] if bucket + 1 < len(edges) else (np.nan, np.nan)
    return f"[{lower:g}, {upper:g})"
