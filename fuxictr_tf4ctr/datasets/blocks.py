"""Encoded files as blocks of rows, all columns side by side in one matrix of words.

A batch of shuffled rows is then one gather of whole rows instead of one per column, and a row takes
no more bytes than its types need.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

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
from fuxictr_tf4ctr.datasets.stored import opened
from fuxictr_tf4ctr.errors import DataError

Filled = Callable[[tuple[int, int], torch.dtype, Callable[[Tensor], None]], Tensor]
"""Makes a tensor of a shape and type and lets a function fill it, or has another process do so."""
Block = tuple[Path, int, int]
"""A file, its first row, and the one after its last."""

# Rows fused at a time: few enough that they stay in the processor's cache.
_FUSED_ROWS = 8192
_TORCH = {
    np.int64: torch.int64,
    np.float32: torch.float32,
    np.int32: torch.int32,
    np.int16: torch.int16,
    np.uint8: torch.uint8,
}


@dataclass(frozen=True)
class _Kind:
    """Columns that lie together in a row, as one type, and the type batches hold them in."""

    names: tuple[str, ...]
    held: torch.dtype
    served: torch.dtype
    first: int
    stop: int


class Rows:
    """Some rows, columns side by side.

    Args:
        words: Tensor [rows, words] int32; each kind of column is a view of it as its own type.
    """

    def __init__(self, words: Tensor) -> None:
        self.words = words

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """Put rows one after the other."""
        return parts[0] if len(parts) == 1 else cls(torch.cat([part.words for part in parts]))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, rows: slice) -> "Rows":
        return Rows(self.words[rows])

    def take(self, order: Tensor) -> "Rows":
        """Return the rows of these numbers, in their order."""
        if self.device.type != "cpu":
            return Rows(self.words.index_select(0, order))
        # Not by torch: it would take cores from training for this.
        return Rows(torch.from_numpy(self.words.numpy().take(order.numpy(), axis=0)))

    def pinned(self) -> "Rows":
        """Return the rows in memory that a device reads without this process."""
        return Rows(self.words.contiguous().pin_memory())  # those with gaps go another way

    def to(self, device: torch.device) -> "Rows":
        """Return the rows in the memory of a device, not waiting for those that are pinned."""
        return Rows(self.words.to(device, non_blocking=True))

    def of(self, kind: _Kind) -> Tensor:
        """Return the columns of a kind, [rows, widths], as a view."""
        return self.words.view(kind.held)[:, kind.first : kind.stop]

    @property
    def device(self) -> torch.device:
        """Where the rows lie."""
        return self.words.device


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
        generator = np.random.Generator(np.random.PCG64([self.seed, file, start]))
        return (labels != 0) | (generator.random(len(labels)) < self.share)


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
        files: The files, in row order.
        feature_map: FuxiCTR's feature map.
        binary: Whether labels must be 0 or 1.
        training: Whether weights are scaled so that their mean is 1.
        sampling: Which rows to leave out. None: none.

    Attributes:
        rows: How many there are, without those left out.
        bytes: How much memory they take when read at once.
        blocks: The files cut into blocks that lie together in them.
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
        self.blocks: list[Block] = []
        for path in files:
            with opened(path, self._matrix_index) as file:
                rows = check_lengths(path, {name: file.rows(name) for name in self._names})
                self.blocks += [(path, start, stop) for start, stop in file.blocks(rows)]
        shapes = {name: row_shape(spec) for name, spec in feature_map.features.items()}
        self._shapes = shapes | dict.fromkeys(feature_map.labels, ())
        self._widths = {name: int(np.prod(shape)) for name, shape in self._shapes.items()}
        self._kinds, self._words = _layout(feature_map, self._widths)
        self._served: dict[torch.dtype, int] = {}
        for kind in self._kinds:
            width = self._served.get(kind.served, 0) + kind.stop - kind.first
            self._served[kind.served] = width
        self._numbers = {path: number for number, path in enumerate(files)}
        self._weight_col = getattr(feature_map, "weight_col", None)
        self._sampling, self._scale = sampling, 1.0
        self._sizes = {block: block[2] - block[1] for block in self.blocks}
        if sampling is not None or self._weight_col is not None:
            mean = self._count()
            self._scale = 1 / mean if training else 1.0
        self.rows = sum(self._sizes.values())
        self.bytes = 4 * self._words * self.rows

    def _count(self) -> float:
        """Count the rows of each block that are kept, and return the mean of their weights."""
        label, total = self._feature_map.labels[0], 0.0
        only = copy.copy(self._feature_map)
        only.features = {}
        for block in self.blocks:
            path, start, stop = block
            with opened(path, self._matrix_index) as file:
                stored = file.read(only.labels, start, stop)
            columns = typed_columns(path, stored, only, binary=self._binary, first_row=start)
            columns = self._sampled(columns, block)
            self._sizes[block] = len(columns[label])
            weights = columns.get(self._weight_col, np.ones(len(columns[label])))
            total += float(weights.sum(dtype=np.float64))
        rows = sum(self._sizes.values())
        if not total:
            reason = "all weights are 0" if rows else "negative_sampling leaves no row"
            raise DataError(f"{self.blocks[0][0]}: {reason}; there is nothing to learn from")
        return total / rows

    def _sampled(self, columns: dict[str, np.ndarray], block: Block) -> dict[str, np.ndarray]:
        if self._sampling is None:
            return columns
        path, start, _ = block
        labels = columns[self._feature_map.labels[0]]
        kept = self._sampling.kept(labels, self._numbers[path], start)
        return {name: column[kept] for name, column in columns.items()}

    def read(self, blocks: Sequence[Block] | None = None, filled: Filled = filled_here) -> Rows:
        """Read some blocks, all where None, into one place.

        Args:
            blocks: The blocks.
            filled: Makes the place.

        Raises:
            DataError: A value disagrees with the feature map; the message names its row.
        """
        blocks = self.blocks if blocks is None else blocks
        shape = sum(map(self._sizes.__getitem__, blocks)), self._words
        return Rows(filled(shape, torch.int32, lambda words: self._fill(Rows(words), blocks)))

    def _fill(self, rows: Rows, blocks: Sequence[Block]) -> None:
        at = 0
        for columns in self._columns_of(blocks):
            size = len(columns[self._names[0]])
            for kind in self._kinds:
                _fuse([columns[name] for name in kind.names], rows[at : at + size].of(kind))
            at += size

    def _columns_of(self, blocks: Sequence[Block]) -> Iterator[dict[str, np.ndarray]]:
        for path, group in groupby(blocks, key=lambda block: block[0]):
            with opened(path, self._matrix_index) as file:
                for block in group:
                    _, start, stop = block
                    columns = typed_columns(
                        path,
                        file.read(self._names, start, stop),
                        self._feature_map,
                        binary=self._binary,
                        first_row=start,
                    )
                    columns = self._sampled(columns, block)
                    if self._scale != 1:
                        scaled = columns[self._weight_col] * self._scale
                        columns[self._weight_col] = scaled.astype(LABEL_DTYPE)
                    yield columns

    def columns(self, rows: Rows) -> dict[str, Tensor]:
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
            part, matrix = rows.of(kind).T, matrices[kind.served]
            turned = matrix[at : ends[kind.served]]
            if rows.device.type != "cpu":
                turned.copy_(part)
            else:  # not by torch: it would take cores from training for this
                np.copyto(turned.numpy(), part.numpy())
            for name in kind.names:
                stop = at + self._widths[name]
                found[name] = matrix[at:stop].T.contiguous() if self._shapes[name] else matrix[at]
                at = stop
        return {name: found[name] for name in self._names}


def _layout(feature_map: FeatureMap, widths: Mapping[str, int]) -> tuple[list[_Kind], int]:
    """Place the columns in a row, the widest types first, and return its length in words."""
    held = {name: column_dtype(spec) for name, spec in feature_map.features.items()}
    held |= dict.fromkeys(feature_map.labels, LABEL_DTYPE)
    kinds, at = [], 0
    for dtype in (np.int64, np.float32, np.int32, np.int16, np.uint8):
        names = tuple(name for name in held if held[name] == dtype)
        if names:
            size = np.dtype(dtype).itemsize
            first, stop = at // size, at // size + sum(widths[name] for name in names)
            served = torch.float32 if dtype is np.float32 else torch.int64
            kinds.append(_Kind(names, _TORCH[dtype], served, first, stop))
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
