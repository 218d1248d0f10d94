"""What the column of each feature type holds: its type, its shape, and the values allowed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fuxictr.features import FeatureMap

from fuxictr_tf4ctr.errors import DataError

LABEL_DTYPE = np.dtype(np.float32)


def id_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest integer type for ids below ``vocab_size``.

    Only types torch computes with: of the unsigned ones that is uint8 alone.
    """
    for dtype in (np.uint8, np.int16, np.int32):
        if vocab_size - 1 <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


def column_dtype(spec: Mapping[str, Any]) -> np.dtype:
    """Return the type a feature's column is kept in, by its entry in the feature map."""
    if spec["type"] in ("categorical", "sequence"):
        return id_dtype(spec["vocab_size"])
    return np.dtype(np.int64 if spec["type"] == "meta" else np.float32)


def row_shape(spec: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of one row of a feature's column: () for a scalar."""
    if spec["type"] == "sequence":
        return (spec["max_len"],)
    if spec["type"] == "embedding":
        return (spec["pretrain_dim"],)
    return ()


def typed_columns(
    path: Path, stored: Mapping[str, np.ndarray], feature_map: FeatureMap, *, binary: bool
) -> dict[str, np.ndarray]:
    """Check the columns of one file against the feature map and give them their types.

    Args:
        path: The file they came from, for messages.
        stored: Column -> array as stored, for all features and labels.
        feature_map: FuxiCTR's feature map.
        binary: Whether labels must be 0 or 1.

    Returns:
        Column -> array [rows] or [rows, width]: ids in :func:`id_dtype`, the rest float32.

    Raises:
        DataError: There is no row, columns differ in length or shape, an id is outside its
            vocabulary, a number is not finite, or a label is not 0 or 1. Rows count from 0.
    """
    _check_lengths(path, stored)
    columns = {}
    for name, spec in feature_map.features.items():
        values = _shaped(path, name, stored[name], row_shape(spec))
        if spec["type"] in ("numeric", "embedding"):
            columns[name] = _finite(path, name, values)
        else:
            _check_ids(path, name, values, spec.get("vocab_size"))
            columns[name] = values.astype(column_dtype(spec), copy=False)
    for name in feature_map.labels:
        values = _shaped(path, name, stored[name], ())
        if binary:
            _refuse(path, name, values, ~np.isin(values, (0, 1)), "is no label, they are 0 or 1")
        columns[name] = _finite(path, name, values)
    return columns


def _check_lengths(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    (first, values), *others = columns.items()
    for name, other in others:
        if len(other) != len(values):
            raise DataError(
                f"{path}: columns differ in length: {first!r} has {len(values)} rows, "
                f"{name!r} has {len(other)}; write the file again"
            )
    if len(values) == 0:
        raise DataError(f"{path}: the split is empty, it has columns but no rows")


def _shaped(path: Path, name: str, values: np.ndarray, row: tuple[int, ...]) -> np.ndarray:
    if values.dtype.kind not in "buif":
        raise DataError(f"{path}: column {name!r} holds {values.dtype}, not numbers")
    shape = (len(values), *row)
    # [rows] and [rows, 1] are the same column: FuxiCTR 2.0 wrote scalars either way.
    if values.size != np.prod(shape):
        raise DataError(
            f"{path}: column {name!r} has shape {values.shape}, the feature map says {shape}"
        )
    return values.reshape(shape)


def _check_ids(path: Path, name: str, values: np.ndarray, vocab_size: int | None) -> None:
    if values.dtype.kind == "f":
        _refuse(path, name, values, values != np.floor(values), "is no id, ids are whole numbers")
    if vocab_size is None:  # a meta column: any number identifies a group
        return
    _refuse(path, name, values, values < 0, "is negative, ids start at 0")
    _refuse(
        path,
        name,
        values,
        values >= vocab_size,
        f"is outside the vocabulary of {vocab_size} ids; the file and feature_map.json disagree",
    )


def _finite(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    _refuse(path, name, values, ~np.isfinite(single), "is not a finite float32 number")
    return single


def _refuse(path: Path, name: str, values: np.ndarray, bad: np.ndarray, problem: str) -> None:
    if bad.any():
        at = np.unravel_index(np.argmax(bad), bad.shape)
        raise DataError(
            f"{path}: column {name!r}, row {at[0]} (counted from 0): {values[at]} {problem}"
        )
