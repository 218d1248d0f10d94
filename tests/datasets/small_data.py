"""A small raw data set with every kind of column FuxiCTR encodes, and small encoded columns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl


def raw_frame(rows: int, seed: int) -> pl.DataFrame:
    """Make raw rows: repeated, rare and missing values; the same for a seed."""
    rng = np.random.default_rng(seed)

    def tokens(prefix: str, count: int, missing: float) -> list[str | None]:
        drawn = rng.zipf(1.6, rows) % count
        gone = rng.random(rows) < missing
        return [None if no else f"{prefix}{i}" for i, no in zip(drawn, gone, strict=True)]

    history = [[f"i{i}" for i in rng.integers(0, 30, rng.integers(1, 6))] for _ in range(rows)]
    return pl.DataFrame(
        {
            "user": tokens("u", 40, 0.1),
            "item": tokens("i", 25, 0.0),
            "history": ["^".join(items) for items in history],
            "tags": [f"t{a}|t{b}|t{a}" for a, b in rng.integers(0, 9, (rows, 2))],
            "hour": rng.integers(0, 24, rows),
            "price": rng.normal(3, 2, rows).round(3),
            "age": [None if x < 15 else int(x) for x in rng.integers(10, 80, rows)],
            "score": rng.random(rows).round(4),
            "unused": tokens("x", 5, 0.0),
            "session": [f"s{i}" for i in rng.integers(seed, seed + 20, rows)],
            "click": rng.integers(0, 2, rows),
        }
    )


def feature_cols(pretrained_emb: Path) -> list[dict[str, Any]]:
    """Declare the columns of :func:`raw_frame`."""
    return [
        {"name": "session", "active": True, "dtype": "str", "type": "meta"},
        {"name": "user", "active": True, "dtype": "str", "type": "categorical", "source": "user"},
        {"name": "item", "dtype": "str", "type": "categorical", "source": "item"},
        {"name": "history", "active": True, "dtype": "str", "type": "sequence", "max_len": 4}
        | {"share_embedding": "item", "feature_encoder": "layers.MaskedSumPooling()"},
        {"name": "tags", "active": True, "dtype": "str", "type": "sequence", "splitter": "|"}
        | {"padding": "pre", "min_categr_count": 1},
        {"name": ["hour"], "active": True, "dtype": "int", "type": "categorical"},
        {"name": "price", "active": True, "dtype": "float", "type": "numeric"}
        | {"normalizer": "StandardScaler"},
        {"name": "age", "active": True, "dtype": "float", "type": "numeric", "fill_na": 30.0}
        | {"normalizer": "MinMaxScaler"},
        {"name": "score", "active": True, "dtype": "float", "type": "numeric"},
        {"name": "unused", "active": False, "dtype": "str", "type": "categorical"},
        {"name": "user_again", "active": True, "dtype": "str", "type": "categorical"}
        | {"preprocess": "copy_from(user)", "pretrained_emb": str(pretrained_emb)}
        | {"pretrain_dim": 3, "freeze_emb": False, "pretrain_usage": "sum", "fill_na": "nobody"},
    ]


def small_params(folder: Path) -> dict[str, Any]:
    """Write csv files of three splits into a folder; return FuxiCTR's parameters for them."""
    raw = folder / "raw"
    raw.mkdir()
    pretrained = raw / "user_emb.h5"
    with h5py.File(pretrained, "w") as file:
        file["key"] = np.array([f"u{i}".encode() for i in range(0, 60, 3)])
        file["value"] = np.arange(60, dtype=np.float32).reshape(20, 3)
    for seed, (split, rows) in enumerate({"train": 230, "valid": 60, "test": 45}.items()):
        raw_frame(rows, seed).write_csv(raw / f"{split}.csv")
    return {
        "dataset_id": "small",
        "data_root": str(folder / "data"),
        "data_format": "csv",
        **{f"{split}_data": str(raw / f"{split}.csv") for split in ("train", "valid", "test")},
        "feature_cols": feature_cols(pretrained),
        "label_col": {"name": "click", "dtype": "float"},
        "min_categr_count": 3,
        "group_id": "session",
        "embedding_dim": 4,
    }


FEATURES = {
    "color": {"source": "", "type": "categorical", "padding_idx": 0, "vocab_size": 5},
    "words": {"source": "", "type": "sequence", "padding_idx": 0, "vocab_size": 400, "max_len": 3},
    "price": {"source": "", "type": "numeric"},
    "image": {"source": "", "type": "embedding", "pretrain_dim": 2},
    "session": {"type": "meta"},
}


def encoded_columns(rows: int) -> dict[str, np.ndarray]:
    """Make columns that agree with FEATURES, as FuxiCTR 2.0 stored them."""
    rng = np.random.default_rng(7)
    return {
        "color": rng.integers(0, 5, rows),
        "words": rng.integers(0, 400, (rows, 3)),
        "price": rng.normal(size=rows),
        "image": rng.normal(size=(rows, 2)),
        "session": rng.integers(0, 9, rows),
        "click": rng.integers(0, 2, rows).astype(np.float64),
    }


def store(path: Path, columns: Mapping[str, np.ndarray]) -> Path:
    """Write columns to an h5 file by h5py alone."""
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values
    return path
