"""The file layout of a data set: one HDF5 dataset per column, 1-d or 2-d, rows first.

Scalar columns are [rows], sequences [rows, max_len], embedding features [rows, pretrain_dim].
Read as well: a folder of part files, and the single matrix "data" that FuxiCTR 1.x wrote.
"""

import glob
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from fuxictr_tf4ctr.errors import DataError
from fuxictr_tf4ctr.names import nearest

COMPRESSIONS = ("gzip", "lzf")
# Rows of a scalar column that lie together in the file, and are read together.
CHUNK_ROWS = 1 << 16
_LEAST_CHUNK_ROWS = 1 << 10
_MATRIX = "data"


class H5Writer:
    """Write one h5 file chunk by chunk; it appears under its name only when complete.

    Args:
        path: The file to write. An existing file is replaced at the end.
        compression: "lzf" is quick, "gzip" is small; None is quickest.
    """

    def __init__(self, path: str | Path, compression: str | None = None) -> None:
        self.path = Path(path)
        self.rows = 0
        self._compression = compression
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> "H5Writer":
        self._file = h5py.File(self._partial, "w")
        # Held open: HDF5 swallows the errors of a column closed behind its back.
        self._columns: dict[str, h5py.Dataset] = {}
        return self

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Write the next rows of all columns.

        Args:
            columns: Column -> array [chunk, ...]. The first chunk sets the columns' types.

        Raises:
            ValueError: The arrays differ in length, or in their columns from those before.
        """
        lengths = {len(values) for values in columns.values()}
        if len(lengths) != 1:
            raise ValueError(f"the columns of a chunk differ in length: {sorted(lengths)}")
        if not self._columns:
            self._columns = {name: self._create(name, values) for name, values in columns.items()}
        if set(columns) != set(self._columns):
            raise ValueError(f"columns {sorted(columns)}, before {sorted(self._columns)}")
        start, self.rows = self.rows, self.rows + lengths.pop()
        with _write_errors():
            for name, values in columns.items():
                column = self._columns[name]
                column.resize(self.rows, axis=0)
                column[start:] = values
            self._file.flush()

    def _create(self, name: str, values: np.ndarray) -> h5py.Dataset:
        row = values.shape[1:]
        # A chunk takes its whole size in the file, however few rows there are.
        rows = min(CHUNK_ROWS, max(len(values), _LEAST_CHUNK_ROWS))
        return self._file.create_dataset(
            name,
            (0, *row),
            dtype=values.dtype,
            maxshape=(None, *row),
            chunks=(max(1, rows // max(1, math.prod(row))), *row),
            compression=self._compression,
            shuffle=self._compression is not None,
        )

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with suppress(Exception) if error_type else _write_errors():
                self._file.close()
            if error_type is None:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)


@contextmanager
def _write_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # how HDF5 reports a full disk when it flushes
        raise OSError(str(error)) from error


def part_files(path: str | Path) -> list[Path]:
    """List the h5 files that make up one split, in row order.

    Args:
        path: A file, with or without its ``.h5``; a folder of part files; or a glob pattern.

    Raises:
        DataError: There is no such file.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    found = path.glob("*.h5") if path.is_dir() else map(Path, glob.glob(str(path)))
    parts = sorted(found, key=_natural_order)
    with_suffix = Path(f"{path}.h5")
    if not parts and with_suffix.is_file():
        return [with_suffix]
    if not parts:
        raise DataError(f"{path}: no h5 file here, nor {with_suffix.name}, nor a folder of them")
    return parts


def read_columns(
    path: str | Path,
    columns: Sequence[str],
    matrix_index: Mapping[str, int | list[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Read columns of one split into memory, the parts of a folder one after the other.

    Args:
        path: As for :func:`part_files`.
        columns: The columns to read.
        matrix_index: Column -> where it lies in the matrix of a FuxiCTR 1.x file; negative
            numbers count from the end, as labels do.

    Returns:
        Column -> array [rows] or [rows, width], of the types stored in the file.

    Raises:
        DataError: A file is missing or unreadable, or lacks a column.
    """
    parts = [_read_file(part, columns, matrix_index or {}) for part in part_files(path)]
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}


def read_blocks(
    path: Path,
    columns: Sequence[str],
    matrix_index: Mapping[str, int | list[int]],
    bounds: Sequence[tuple[int, int]],
) -> Iterator[dict[str, np.ndarray]]:
    """Read blocks of rows of one file, one after the other.

    Args:
        path: The file.
        columns: The columns to read.
        matrix_index: As for :func:`read_columns`.
        bounds: First row of each block, and the one after its last.

    Yields:
        Column -> array [block rows, ...], of the types stored in the file.

    Raises:
        DataError: The file is unreadable or lacks a column.
    """
    with _open(path) as file:
        if _is_matrix(file, columns):
            for start, stop in bounds:
                rows = file[_MATRIX][start:stop]
                yield _split_matrix(path, rows, columns, matrix_index)
        else:
            found = {name: _column(path, file, name) for name in columns}
            for start, stop in bounds:
                yield {name: column[start:stop] for name, column in found.items()}


def column_lengths(path: Path, columns: Sequence[str]) -> dict[str, int]:
    """Return the rows each column of one file has, without reading them.

    Raises:
        DataError: The file is unreadable or lacks a column.
    """
    with _open(path) as file:
        if _is_matrix(file, columns):
            return dict.fromkeys(columns, len(file[_MATRIX]))
        return {name: len(_column(path, file, name)) for name in columns}


def count_rows(path: str | Path) -> int:
    """Count the rows of one split by the shapes in its files, without reading data.

    Raises:
        DataError: A file is missing, unreadable or holds no column.
    """
    return sum(_file_rows(part) for part in part_files(path))


def _file_rows(path: Path) -> int:
    with _open(path) as file:
        for column in file.values():
            if isinstance(column, h5py.Dataset) and column.ndim > 0:
                return len(column)
    raise DataError(f"{path}: holds no column; expected one HDF5 dataset per column")


def _read_file(
    path: Path, columns: Sequence[str], matrix_index: Mapping[str, int | list[int]]
) -> dict[str, np.ndarray]:
    with _open(path) as file:
        if _is_matrix(file, columns):
            return _split_matrix(path, file[_MATRIX][:], columns, matrix_index)
        return {name: _column(path, file, name)[:] for name in columns}


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path}: cannot be read as HDF5, it is truncated or of another format ({error}); "
            "write it again"
        ) from error


def _column(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    column = file.get(name)
    if isinstance(column, h5py.Dataset) and column.ndim > 0:
        return column
    there = list(file)
    close = nearest(name, there) or there
    raise DataError(f"{path}: no column {name!r}; there: {', '.join(close) or 'nothing'}")


def _is_matrix(file: h5py.File, columns: Sequence[str]) -> bool:
    return list(file) == [_MATRIX] and file[_MATRIX].ndim == 2 and list(columns) != [_MATRIX]


def _split_matrix(
    path: Path,
    matrix: np.ndarray,
    columns: Sequence[str],
    index: Mapping[str, int | list[int]],
) -> dict[str, np.ndarray]:
    unknown = [name for name in columns if name not in index]
    if unknown:
        raise DataError(
            f"{path}: holds FuxiCTR 1.x's single matrix, and nothing says which of its "
            f"{matrix.shape[1]} columns {unknown[0]!r} is; encode the data again"
        )
    try:
        return {name: matrix[:, index[name]] for name in columns}
    except IndexError as error:
        raise DataError(
            f"{path}: the matrix has {matrix.shape[1]} columns, fewer than the feature map says; "
            "feature_map.json belongs to another file"
        ) from error


def _natural_order(path: Path) -> list[str | int]:
    """Sort part_2 before part_10: digits compare as numbers."""
    return [int(text) if text.isdecimal() else text for text in re.split(r"(\d+)", path.name)]
