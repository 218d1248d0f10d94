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
    path: Path,
    stored: Mapping[str, np.ndarray],
    feature_map: FeatureMap,
    *,
    binary: bool,
    first_row: int = 0,
) -> dict[str, np.ndarray]:
    """Check rows of one file against the feature map and give them their types.

    Args:
        path: The file they came from, for messages.
        stored: Column -> array as stored, for all features and labels.
        feature_map: FuxiCTR's feature map.
        binary: Whether labels must be 0 or 1.
        first_row: Which row of the file the first one is.

    Returns:
        Column -> array [rows] or [rows, width]: ids in :func:`id_dtype`, the rest float32.

    Raises:
        DataError: Columns differ in shape, an id is outside its
            vocabulary, a number is not finite, or a label is not 0 or 1. Rows count from 0.
    """
    columns = {}
    for name, spec in feature_map.features.items():
        values = _shaped(path, name, stored[name], row_shape(spec))
        if spec["type"] in ("numeric", "embedding"):
            columns[name] = _finite(path, name, values, first_row)
        else:
            _check_ids(path, name, values, spec.get("vocab_size"), first_row)
            columns[name] = values.astype(column_dtype(spec), copy=False)
    for name in feature_map.labels:
        values = _shaped(path, name, stored[name], ())
        if binary:
            no_label = (values != 0) & (values != 1)
            _refuse(path, name, values, no_label, "is no label, they are 0 or 1", first_row)
        columns[name] = _finite(path, name, values, first_row)
    return columns


def check_lengths(path: Path, lengths: Mapping[str, int]) -> int:
    """Return the number of rows of a file.

    Args:
        path: The file, for messages.
        lengths: Column -> its rows.

    Raises:
        DataError: There is no row, or columns differ in length.
    """
    (first, rows), *others = lengths.items()
    for name, other in others:
        if other != rows:
            raise DataError(
                f"{path}: columns differ in length: {first!r} has {rows} rows, "
                f"{name!r} has {other}; write the file again"
            )
    if rows == 0:
        raise DataError(f"{path}: the split is empty, it has columns but no rows")
    return rows


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


def _check_ids(
    path: Path, name: str, values: np.ndarray, vocab_size: int | None, first_row: int
) -> None:
    if values.dtype.kind == "f":
        fraction = values != np.floor(values)
        _refuse(path, name, values, fraction, "is no id, ids are whole numbers", first_row)
    if vocab_size is None:  # a meta column: any number identifies a group
        return
    # Two passes say that nothing is wrong; only then is it worth finding what is.
    if values.size == 0 or (values.min() >= 0 and values.max() < vocab_size):
        return
    _refuse(path, name, values, values < 0, "is negative, ids start at 0", first_row)
    _refuse(
        path,
        name,
        values,
        values >= vocab_size,
        f"is outside the vocabulary of {vocab_size} ids; the file and feature_map.json disagree",
        first_row,
    )


def _finite(path: Path, name: str, values: np.ndarray, first_row: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    _refuse(path, name, values, ~np.isfinite(single), "is not a finite float32 number", first_row)
    return single


def _refuse(
    path: Path, name: str, values: np.ndarray, bad: np.ndarray, problem: str, first_row: int
) -> None:
    if bad.any():
        at = np.unravel_index(np.argmax(bad), bad.shape)
        row = first_row + at[0]
        raise DataError(
            f"{path}: column {name!r}, row {row} (counted from 0): {values[at]} {problem}"
        )
