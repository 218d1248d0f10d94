"""Encoded files as blocks of rows, all columns side by side in one matrix [rows, words] of int32.

Each kind of column is a view of the matrix as its own type. A batch of shuffled rows is then one
gather of whole rows instead of one per column, and a row takes no more bytes than its types need.
"""

import copy
import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fuxictr.features import FeatureMap
from torch import Tensor

from fuxictr_tf4ctr.datasets.feature_map import (
    LABEL_DTYPE,
    check_lengths,
    column_dtype,
    row_shape,
    typed_columns,
)
from fuxictr_tf4ctr.datasets.stored import CHUNK_ROWS, StoredFile, opened
from fuxictr_tf4ctr.errors import DataError

Filled = Callable[[tuple[int, int], torch.dtype, Callable[[Tensor], None]], Tensor]
"""Makes a tensor of a shape and type and lets a function fill it, or has another process do so."""
Block = tuple[Path, int, int]
"""A file, its first row, and the one after its last."""


class Part(NamedTuple):
    """Rows of a block: of those that are kept, the ones from ``first`` on, before ``stop``."""

    block: Block
    first: int
    stop: int

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.stop - self.first


# Into how many stripes the rows of a split are cut that are streamed in a random order.
STRIPES = 64
# Bytes of the blocks, one of each stripe, among whose rows they are shuffled.
_SHUFFLED_BYTES = 1 << 27
_LEAST_BLOCK_ROWS = 1 << 10
# Rows fused at a time: few enough that they stay in the processor's cache.
_FUSED_ROWS = 8192


@dataclass(frozen=True)
class _Kind:
    """Columns that lie together in a row, as one type, and the type batches hold them in."""

    names: tuple[str, ...]
    held: torch.dtype
    served: torch.dtype
    first: int
    stop: int

    def of(self, rows: Tensor) -> Tensor:
        """Return these columns of some rows, [rows, widths], as a view."""
        return rows.view(self.held)[:, self.first : self.stop]


def take(rows: Tensor, order: Tensor) -> Tensor:
    """Return the rows of these numbers, in their order."""
    if rows.device.type != "cpu":
        return rows.index_select(0, order)
    # Not by torch: it would take cores from training for this.
    return torch.from_numpy(rows.numpy().take(order.numpy(), axis=0))


@dataclass(frozen=True)
class NegativeSampling:
    """A share of the rows with label 0, and all others.

    Attributes:
        share: The share, above 0 and up to 1.
        seed: Which rows are drawn depends on it and on their place in the files, nothing else.
    """

    share: float
    seed: int

    def kept(self, labels: np.ndarray, file: int, start: int) -> np.ndarray:
        """Say which rows are kept, [rows], of a block: the file's number and its first row."""
        stop = start + len(labels)
        first = start - start % CHUNK_ROWS
        draws = [
            np.random.Generator(np.random.PCG64([self.seed, file, at])).random(CHUNK_ROWS)
            for at in range(first, stop, CHUNK_ROWS)
        ]
        return (labels != 0) | (np.concatenate(draws)[start - first : stop - first] < self.share)


def filled_here(
    shape: tuple[int, int], dtype: torch.dtype, fill: Callable[[Tensor], None]
) -> Tensor:
    """Make a tensor and fill it."""
    tensor = torch.empty(shape, dtype=dtype)
    fill(tensor)
    return tensor


class BlockReader:
    """Read the files of one split in blocks, checked against the feature map.

    Args:
        binary: Whether labels must be 0 or 1.
        training: Whether weights are scaled so that their mean is 1.
        sampling: Which rows to leave out. None: none.

    Raises:
        DataError: A file is unreadable or disagrees with the feature map; by any method as well
            where another took its place meanwhile.

    Attributes:
        rows: How many there are, without those left out.
        words: Words a row takes in memory, of four bytes.
        block_rows: Rows of a block that is read at a time, where the format leaves a choice.
        bytes: How much memory all rows take.
    """

    def __init__(
        self,
        files: Sequence[Path],
        feature_map: FeatureMap,
        *,
        binary: bool,
        training: bool = False,
        sampling: NegativeSampling | None = None,
    ) -> None:
        if not feature_map.labels:
            raise DataError("the feature map names no label; set label_col")
        self._feature_map, self._binary = feature_map, binary
        self._names = [*feature_map.features, *feature_map.labels]
        self._matrix_index = _matrix_index(feature_map)
        self._shapes = _shapes(feature_map)
        self._kinds, self.words = _layout(feature_map)
        self._served: dict[torch.dtype, int] = {}
        for kind in self._kinds:
            width = self._served.get(kind.served, 0) + kind.stop - kind.first
            self._served[kind.served] = width
        self._numbers = {path: number for number, path in enumerate(files)}
        self.block_rows = _block_rows(4 * self.words)
        self._files: list[tuple[Path, range]] = []
        self._versions: dict[Path, tuple[int, ...]] = {}
        for path in files:
            self._versions[path] = _version(path)
            with self._opened(path) as file:
                rows = check_lengths(path, {name: file.rows(name) for name in self._names})
                self._files.append((path, range(0, rows, file.block_rows(rows, self.block_rows))))
        self._weight_col = getattr(feature_map, "weight_col", None)
        self._sampling, self._scale = sampling, 1.0
        self.rows, self._sizes = sum(starts.stop for _, starts in self._files), {}
        if sampling is not None or self._weight_col is not None:
            mean = self._count()
            self._scale = 1 / mean if training else 1.0
        self.bytes = 4 * self.words * self.rows

    @contextmanager
    def _opened(self, path: Path) -> Iterator[StoredFile]:
        """Open a file, unless it is another by now: its ids would be of another vocabulary."""
        with opened(path, self._matrix_index) as file:
            if _version(path) != self._versions[path]:
                raise DataError(
                    f"{path}: was encoded anew while it was being read; use another dataset_id or "
                    "data_root for one of the two"
                )
            yield file

    @property
    def _blocks(self) -> Iterator[Block]:
        for path, starts in self._files:
            for start in starts:
                yield path, start, min(start + starts.step, starts.stop)

    def parts(self) -> Iterator[Part]:
        """Cut the files into blocks that are read one by one, and yield all rows of each."""
        for block in self._blocks:
            yield Part(block, 0, self._sizes.get(block, block[2] - block[1]))

    def runs(self, sizes: Sequence[int], wanted: Container[int]) -> dict[int, list[Part]]:
        """Cut the rows into runs, one after the other, and return some of them.

        Returns:
            Number -> the parts of the run.
        """
        found: dict[int, list[Part]] = {}
        parts, part = self.parts(), None
        for number, missing in enumerate(sizes):
            run = []
            while missing:
                while part is None or not part.rows:
                    part = next(parts)
                size = min(missing, part.rows)
                run.append(part._replace(stop=part.first + size))
                part = part._replace(first=part.first + size)
                missing -= size
            if number in wanted:
                found[number] = run
        return found

    def _count(self) -> float:
        """Count the rows of each block that are kept, and return the mean of their weights."""
        label, total = self._feature_map.labels[0], 0.0
        for block in self._blocks:
            columns = self._labels_of(block)
            self._sizes[block] = len(columns[label])
            weights = columns.get(self._weight_col, np.ones(len(columns[label])))
            total += float(weights.sum(dtype=np.float64))
        self.rows = sum(self._sizes.values())
        if not total:
            reason = "all weights are 0" if self.rows else "negative_sampling leaves no row"
            raise DataError(f"{self._files[0][0]}: {reason}; there is nothing to learn from")
        return total / self.rows

    def refuse_one_class(self) -> None:
        """Raise DataError where a label is the same in all rows; reads on until it is not."""
        wanted = {name: None for name in self._feature_map.labels if name != self._weight_col}
        for block in self._blocks:
            columns = self._labels_of(block)
            for name, first in list(wanted.items()):
                values = columns[name]
                if first is None and len(values):
                    first = wanted[name] = values[0]
                if (values != first).any():
                    del wanted[name]
            if not wanted:
                return
        name, value = next(iter(wanted.items()))
        raise DataError(
            f"{self._files[0][0]}: label {name!r}: all {self.rows} are {value:.0f}; both 0 and 1 "
            "are needed"
        )

    def _labels_of(self, block: Block) -> dict[str, np.ndarray]:
        path, start, stop = block
        only = copy.copy(self._feature_map)
        only.features = {}
        with self._opened(path) as file:
            stored = file.read(only.labels, start, stop)
        columns = typed_columns(path, stored, only, binary=self._binary, first_row=start)
        return self._sampled(columns, block)

    def _sampled(self, columns: dict[str, np.ndarray], block: Block) -> dict[str, np.ndarray]:
        if self._sampling is None:
            return columns
        path, start, _ = block
        labels = columns[self._feature_map.labels[0]]
        kept = self._sampling.kept(labels, self._numbers[path], start)
        return {name: column[kept] for name, column in columns.items()}

    def read(self, parts: Iterable[Part] | None = None, filled: Filled = filled_here) -> Tensor:
        """Read some parts, all rows where None, into one place, [rows, words] int32.

        Raises:
            DataError: A value disagrees with the feature map; the message names its row.
        """
        parts = list(self.parts() if parts is None else parts)
        shape = sum(part.rows for part in parts), self.words
        return filled(shape, torch.int32, lambda rows: self._fill(rows, parts))

    def _fill(self, rows: Tensor, parts: Iterable[Part]) -> None:
        at = 0
        for columns in self._columns_of(parts):
            size = len(columns[self._names[0]])
            for kind in self._kinds:
                _fuse([columns[name] for name in kind.names], kind.of(rows[at : at + size]))
            at += size

    def _columns_of(self, parts: Iterable[Part]) -> Iterator[dict[str, np.ndarray]]:
        for path, group in groupby(parts, key=lambda part: part.block[0]):
            with self._opened(path) as file:
                for block, first, stop in group:
                    _, start, end = block
                    if self._sampling is None:
                        start, end = start + first, start + stop
                    columns = typed_columns(
                        path,
                        file.read(self._names, start, end),
                        self._feature_map,
                        binary=self._binary,
                        first_row=start,
                    )
                    if self._sampling is not None:
                        kept = self._sampled(columns, block)
                        columns = {name: column[first:stop] for name, column in kept.items()}
                    if self._scale != 1:
                        scaled = columns[self._weight_col] * self._scale
                        columns[self._weight_col] = scaled.astype(LABEL_DTYPE)
                    yield columns

    def columns(self, rows: Tensor) -> dict[str, Tensor]:
        """Give the columns of a batch their names, shapes and types, each in one piece.

        Those of scalars and of one type are views of one matrix, where the rows are.
        """
        matrices = {
            served: torch.empty((width, len(rows)), dtype=served, device=rows.device)
            for served, width in self._served.items()
        }
        ends = dict.fromkeys(matrices, 0)
        found: dict[str, Tensor] = {}
        for kind in self._kinds:
            at = ends[kind.served]
            ends[kind.served] += kind.stop - kind.first
            part, matrix = kind.of(rows).T, matrices[kind.served]
            turned = matrix[at : ends[kind.served]]
            if rows.device.type != "cpu":
                turned.copy_(part)
            else:  # not by torch: it would take cores from training for this
                np.copyto(turned.numpy(), part.numpy())
            for name in kind.names:
                stop = at + math.prod(self._shapes[name])
                found[name] = matrix[at:stop].T.contiguous() if self._shapes[name] else matrix[at]
                at = stop
        return {name: found[name] for name in self._names}


def _version(path: Path) -> tuple[int, ...]:
    """Return what tells a file from one that took its place; nothing of one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _block_rows(row_bytes: int) -> int:
    """Rows to read at a time: a power of 2, for rows of so many bytes."""
    rows = max(_SHUFFLED_BYTES // (STRIPES * row_bytes), 1)
    return min(CHUNK_ROWS, max(_LEAST_BLOCK_ROWS, 1 << (rows.bit_length() - 1)))


def row_bytes(feature_map: FeatureMap) -> int:
    """Return how much memory a row takes."""
    return 4 * _layout(feature_map)[1]


def _shapes(feature_map: FeatureMap) -> dict[str, tuple[int, ...]]:
    """Return the shape of a row of each column, labels last."""
    shapes = {name: row_shape(spec) for name, spec in feature_map.features.items()}
    return shapes | dict.fromkeys(feature_map.labels, ())


def _layout(feature_map: FeatureMap) -> tuple[list[_Kind], int]:
    """Place the columns in a row, the widest types first, and return its length in words."""
    widths = {name: math.prod(shape) for name, shape in _shapes(feature_map).items()}
    held = {name: column_dtype(spec) for name, spec in feature_map.features.items()}
    held |= dict.fromkeys(feature_map.labels, LABEL_DTYPE)
    kinds, at = [], 0
    for dtype in (np.int64, np.float32, np.int32, np.int16, np.uint8):
        names = tuple(name for name in held if held[name] == dtype)
        if names:
            size = np.dtype(dtype).itemsize
            first, stop = at // size, at // size + sum(widths[name] for name in names)
            served = torch.float32 if dtype is np.float32 else torch.int64
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            kinds.append(_Kind(names, kind, served, first, stop))
            at = stop * size
    word = 8 if np.int64 in held.values() else 4
    return kinds, -(-at // word) * word // 4


def _fuse(columns: Sequence[np.ndarray], target: Tensor) -> None:
    """Put columns [rows] and [rows, width] side by side into a matrix [rows, widths]."""
    matrix = target.numpy()
    columns = [column.reshape(len(matrix), -1) for column in columns]
    for start in range(0, len(matrix), _FUSED_ROWS):
        some = slice(start, start + _FUSED_ROWS)
        # One turn of a small matrix takes half the time of writing column by column.
        matrix[some] = np.concatenate([column[some].T for column in columns]).T


def _matrix_index(feature_map: FeatureMap) -> dict[str, int | list[int]]:
    """Say where each column lies in a FuxiCTR 1.x matrix: its feature map says, labels are last."""
    index = {name: spec["index"] for name, spec in feature_map.features.items() if "index" in spec}
    labels = len(feature_map.labels)
    return index | {name: at - labels for at, name in enumerate(feature_map.labels)}
