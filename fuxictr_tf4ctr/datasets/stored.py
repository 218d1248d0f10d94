"""The columns of a data set as files hold them: h5 as we write it, parquet and npz as FuxiCTR does.

Scalar columns are [rows], sequences [rows, max_len], embedding features [rows, pretrain_dim]. A
split is one file, or a folder of part files. Read as well: the single matrix "data" of FuxiCTR 1.x.
"""

import glob
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_tf4ctr.errors import DataError
from fuxictr_tf4ctr.files import whole_file
from fuxictr_tf4ctr.names import nearest

COMPRESSIONS = ("gzip", "lzf")
# How the files of a split may end; the first that is there is taken.
SUFFIXES = (".h5", ".parquet", ".npz")
# Rows of a scalar column that lie together in an h5 file; compressed ones are read together.
CHUNK_ROWS = 1 << 16
_COMPRESSED_CHUNK_ROWS = 1 << 13
_LEAST_CHUNK_ROWS = 1 << 10
_MATRIX = "data"

MatrixIndex = Mapping[str, int | list[int]]
"""Column -> where it lies in the matrix of a FuxiCTR 1.x file; negative counts from the end."""


class H5Writer:
    """Write one h5 file chunk by chunk; it appears under its name only when complete.

    Args:
        path: The file to write. An existing file is replaced at the end.
        compression: "lzf" is quick, "gzip" is small; None is quickest.

    Raises:
        StorageError: The disk is full, or the file cannot be written.
    """

    def __init__(self, path: str | Path, compression: str | None = None) -> None:
        self.path = Path(path)
        self.rows = 0
        self._compression = compression

    def __enter__(self) -> "H5Writer":
        with ExitStack() as opened:
            # HDF5 writes through it: of a disk that fills up it would crash when it lets go.
            self._output = opened.enter_context(whole_file(self.path))
            self._file = opened.enter_context(h5py.File(self._output, "w"))
            self._opened = opened.pop_all()
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
        for name, values in columns.items():
            column = self._columns[name]
            column.resize(self.rows, axis=0)
            column[start:] = values
        self._file.flush()
        self._output.check()

    def _create(self, name: str, values: np.ndarray) -> h5py.Dataset:
        row = values.shape[1:]
        # A chunk takes its whole size in the file, however few rows there are.
        most = CHUNK_ROWS if self._compression is None else _COMPRESSED_CHUNK_ROWS
        rows = min(most, max(len(values), _LEAST_CHUNK_ROWS))
        return self._file.create_dataset(
            name,
            (0, *row),
            dtype=values.dtype,
            maxshape=(None, *row),
            chunks=(max(1, rows // max(1, math.prod(row))), *row),
            compression=self._compression,
            shuffle=self._compression is not None,
        )

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)


class StoredFile:
    """One open file with the columns of a data set."""

    errors: tuple[type[BaseException], ...]

    def columns(self) -> list[str]:
        """Return the names of its columns."""

    def rows(self, name: str) -> int:
        """Return how many rows a column has, without reading it."""

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, np.ndarray]:
        """Read some rows of columns: name -> array [rows] or [rows, width]."""

    def block_rows(self, rows: int, size: int) -> int:
        """Return how many of its rows to read at a time, ``size`` where that can be chosen."""
        return size

    def close(self) -> None:
        """Let go of the file."""


class _H5(StoredFile):
    """An HDF5 dataset per column, or FuxiCTR 1.x's matrix."""

    errors = (OSError, RuntimeError, ValueError, TypeError, KeyError)

    def __init__(self, path: Path, matrix_index: MatrixIndex) -> None:
        self._path, self._index = path, matrix_index
        # Without a cache of chunks: of those of which some rows are asked for, no others are read.
        self._file = h5py.File(path, "r", rdcc_nbytes=0)
        # To look one up takes longer than to read some rows of it.
        self._found: dict[str, h5py.Dataset] = {}
        self._one_matrix = list(self._file) == [_MATRIX] and self._column(_MATRIX).ndim == 2

    def columns(self) -> list[str]:
        return [name for name in self._file if isinstance(self._file.get(name), h5py.Dataset)]

    def rows(self, name: str) -> int:
        column = self._column(_MATRIX if self._is_matrix([name]) else name)
        if not _is_there(column):
            raise DataError(
                f"{self._path}: column {column.name[1:]!r} claims {len(column)} rows and does not "
                "hold them; write the file again"
            )
        return len(column)

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, np.ndarray]:
        if self._is_matrix(names):
            rows = self._column(_MATRIX)[start:stop]
            return _split_matrix(self._path, rows, names, self._index)
        return {name: self._column(name)[start:stop] for name in names}

    def close(self) -> None:
        self._file.close()

    def _is_matrix(self, names: Sequence[str]) -> bool:
        return self._one_matrix and list(names) != [_MATRIX]

    def _column(self, name: str) -> h5py.Dataset:
        if name not in self._found:
            column = self._file.get(name)
            if not isinstance(column, h5py.Dataset) or column.ndim == 0:
                raise _no_column(self._path, name, self._file)
            self._found[name] = column
        return self._found[name]


class _Parquet(StoredFile):
    """A parquet column each, sequences and vectors as lists of one length."""

    errors = (
        *(OSError, RuntimeError, ValueError, TypeError, pa.ArrowException),
        *(pl.exceptions.PolarsError, pl.exceptions.PanicException),
    )

    def __init__(self, path: Path, matrix_index: MatrixIndex) -> None:
        self._path = path
        self._metadata = pq.read_metadata(path)
        self._scan = pl.scan_parquet(path, glob=False)
        self._schema = self._scan.collect_schema()

    def columns(self) -> list[str]:
        return list(self._schema)

    def rows(self, name: str) -> int:
        if name not in self._schema:
            raise _no_column(self._path, name, self._schema)
        return self._metadata.num_rows

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, np.ndarray]:
        frame = self._scan.select(names).slice(start, stop - start).collect()
        return {name: self._array(frame[name]) for name in names}

    def _array(self, values: pl.Series) -> np.ndarray:
        if not isinstance(values.dtype, pl.List | pl.Array):
            return values.to_numpy()
        lists = values.cast(pl.List(values.dtype.inner))
        lengths = lists.list.len().unique()
        if len(lengths) > 1 or lengths.null_count():
            raise DataError(
                f"{self._path}: column {values.name!r} holds lists of {lengths.sort().to_list()} "
                "values; all must be padded to one length"
            )
        return lists.explode(empty_as_null=False).to_numpy().reshape(len(values), -1)


class _Npz(StoredFile):
    """A NumPy array each, in a zip file that is read as a whole."""

    errors = (
        *(OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError),
        *(zipfile.BadZipFile, zlib.error, SyntaxError),
    )

    def __init__(self, path: Path, matrix_index: MatrixIndex) -> None:
        self._path = path
        self._file = np.load(path, allow_pickle=False)
        if not isinstance(self._file, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array without a name")
        self._arrays: dict[str, np.ndarray] = {}

    def columns(self) -> list[str]:
        return list(self._file)

    def rows(self, name: str) -> int:
        return len(self._array(name))

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, np.ndarray]:
        return {name: self._array(name)[start:stop] for name in names}

    def block_rows(self, rows: int, size: int) -> int:
        return rows  # it is read as a whole, whatever is asked for

    def close(self) -> None:
        self._file.close()

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            if name not in self._file.files:
                raise _no_column(self._path, name, self._file.files)
            self._arrays[name] = np.atleast_1d(self._file[name])
        return self._arrays[name]


_FORMATS = {".parquet": _Parquet, ".npz": _Npz}


@contextmanager
def opened(path: Path, matrix_index: MatrixIndex | None = None) -> Iterator[StoredFile]:
    """Open one file with the columns of a data set.

    Args:
        path: Its name ends in .parquet or .npz, else it is HDF5.
        matrix_index: Where the columns lie if it holds FuxiCTR 1.x's matrix.

    Raises:
        DataError: It cannot be read, or lacks a column that is asked for.
    """
    kind = _FORMATS.get(path.suffix, _H5)
    try:
        file = kind(path, matrix_index or {})
        try:
            yield file
        finally:
            file.close()
    except MemoryError as error:
        raise DataError(f"{path}: holds more than memory does; write it in parts") from error
    except kind.errors as error:
        name = "HDF5" if kind is _H5 else path.suffix[1:]
        raise DataError(
            f"{path}: cannot be read as {name}, it is truncated or of another format "
            f"({_first_line(error)}); write it again"
        ) from error


def part_files(path: str | Path) -> list[Path]:
    """List the files that make up one split, in row order.

    Args:
        path: A file, with or without its suffix; a folder of part files; or a glob pattern.

    Raises:
        DataError: There is no such file.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    found = list(path.iterdir()) if path.is_dir() else list(map(Path, glob.glob(str(path))))
    for suffix in SUFFIXES:
        parts = sorted((part for part in found if part.suffix == suffix), key=_natural_order)
        if parts:
            return parts
    if not path.is_dir():
        for suffix in SUFFIXES:
            if (file := Path(f"{path}{suffix}")).is_file():
                return [file]
    raise DataError(f"{path}: no {', '.join(SUFFIXES)} file here, nor a folder of them")


def read_columns(
    path: str | Path, columns: Sequence[str], matrix_index: MatrixIndex | None = None
) -> dict[str, np.ndarray]:
    """Read columns of one split into memory, the parts of a folder one after the other.

    Args:
        path: As for :func:`part_files`.
        matrix_index: As for :func:`opened`.

    Returns:
        Column -> array [rows] or [rows, width], of the types stored in the file.

    Raises:
        DataError: A file is missing or unreadable, or lacks a column.
    """
    parts = []
    for part in part_files(path):
        with opened(part, matrix_index) as file:
            rows = max(map(file.rows, columns), default=0)
            parts.append(file.read(columns, 0, rows))
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}


def count_rows(path: str | Path) -> int:
    """Count the rows of one split by the shapes in its files.

    Raises:
        DataError: A file is missing, unreadable or holds no column.
    """
    rows = 0
    for part in part_files(path):
        with opened(part) as file:
            columns = file.columns()
            if not columns:
                raise DataError(f"{part}: holds no column; expected one data set per column")
            rows += file.rows(columns[0])
    return rows


def _is_there(column: h5py.Dataset) -> bool:
    """Say whether the file holds the rows a column claims; a claim alone takes no space."""
    if column.chunks is None:
        return column.id.get_storage_size() >= column.nbytes
    chunks = [-(-size // chunk) for size, chunk in zip(column.shape, column.chunks, strict=True)]
    return column.id.get_num_chunks() >= math.prod(chunks)


def _no_column(path: Path, name: str, there: Sequence[str] | Mapping[str, object]) -> DataError:
    close = nearest(name, there) or list(there)[:20]
    return DataError(f"{path}: no column {name!r}; there: {', '.join(close) or 'nothing'}")


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0][:300]


def _split_matrix(
    path: Path, matrix: np.ndarray, columns: Sequence[str], index: MatrixIndex
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
