"""Batches from encoded files, by the contract of FuxiCTR's ``data_loader`` hook."""

import logging
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from fuxictr.features import FeatureMap
from torch import Tensor

from fuxictr_tf4ctr.datasets.blocks import (
    BlockReader,
    Filled,
    NegativeSampling,
    Rows,
    filled_here,
)
from fuxictr_tf4ctr.datasets.stored import part_files
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.names import unknown

LOG = logging.getLogger(__name__)

STORAGES = ("auto", "memory", "stream", "gpu")
# The same on every machine, so that a seed gives the same batches on every machine.
MEMORY_BUDGET = 8 << 30
NO_GPU_STORAGE = "storage: gpu keeps rows in a GPU's memory: set gpu, or take memory or stream"
# For a model nothing is known of.
GPU_RESERVE = 4 << 30
CPU = torch.device("cpu")
# Blocks shuffled together when streaming: about half a million rows.
_BUFFER_BLOCKS = 8


class CheckedBatch(dict):
    """Columns by name whose ids have been compared with a feature map: no step needs to again.

    Args:
        columns: The columns.
        feature_map: The map.
    """

    def __init__(self, columns: Mapping[str, Tensor], feature_map: FeatureMap) -> None:
        super().__init__(columns)
        self.feature_map = feature_map


def is_binary(task: str | Sequence[str]) -> bool:
    """Whether a task, or each of several, is binary_classification."""
    return set([task] if isinstance(task, str) else task) == {"binary_classification"}


@dataclass(frozen=True)
class Selection:
    """Which rows of a split are served, and in which order.

    Attributes:
        task: FuxiCTR's task, or a list of them; labels must be 0 or 1 where all are
            "binary_classification".
        negative_sampling: Share of the training rows with label 0 that are kept, drawn by ``seed``,
            the same in each epoch. None: all.
        seed: Seed of the row order.
        rank: Which process of a distributed training this is.
        world_size: How many there are. Each serves its own rows, all in the same number of batches.

    Raises:
        SettingsError: ``rank`` is none of ``world_size``.
    """

    task: str | Sequence[str] = "binary_classification"
    negative_sampling: float | None = None
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise SettingsError(
                f"rank={self.rank!r} must be below world_size={self.world_size!r}, from 0"
            )


@dataclass(frozen=True)
class Placement:
    """Where the rows of a split are kept, and how far ahead batches are made of them.

    Attributes:
        storage: "memory", "stream", "gpu" (the whole split in the memory of ``gpu``), or "auto": of
            a split within ``memory_budget``, on the GPU where it fits, else in memory.
        memory_budget: Bytes up to which "auto" holds a split in memory.
        gpu: Index of the GPU, -1 for none.
        gpu_reserve: Bytes of the GPU's memory to leave free for the model.
        prefetch: Batches made ahead by a thread; 0 makes them when asked for. None: 2 where they
            are moved to a GPU, which trains meanwhile, else 0: the thread would slow training.
        filled: Makes the tensor of the rows held in memory and lets it be filled: with
            ``Ranks.once_a_host`` the ranks of a host hold them once.

    Raises:
        SettingsError: There is no such ``storage``.
    """

    storage: str = "auto"
    memory_budget: int = MEMORY_BUDGET
    gpu: int = -1
    gpu_reserve: int = GPU_RESERVE
    prefetch: int | None = None
    filled: Filled = filled_here

    def __post_init__(self) -> None:
        if self.storage not in STORAGES:
            raise SettingsError(unknown("storage", self.storage, STORAGES))

    def chosen(self, split: str, size: int, rows: int, device: torch.device) -> str:
        """Choose where to keep a split's rows, of ``size`` bytes in all.

        Raises:
            SettingsError: They cannot be kept where they are wanted.
        """
        if self.storage == "auto" and size > self.memory_budget:
            return "stream"  # on any device: the order of the rows follows from it
        if self.storage in ("memory", "stream"):
            return self.storage
        if device.type == "cpu":
            if self.storage == "gpu":
                raise SettingsError(NO_GPU_STORAGE)
            return "memory"
        taken, free = size + 8 * rows, free_bytes(device)
        missing = taken + self.gpu_reserve - free
        if missing > 0 and self.storage == "gpu":
            raise SettingsError(
                f"storage: gpu: the {split} split takes {taken:,} bytes with its order, the "
                f"model {self.gpu_reserve:,}, and {free:,} are free on {device}: {missing:,} are "
                "missing; set storage: auto, or use_features or n_rows to keep less"
            )
        return "memory" if missing > 0 else "gpu"


class H5DataLoader:
    """Serve one split of an encoded data set in batches.

    Training rows come in a new order each epoch, fixed by ``seed`` and ``epoch`` alone: the same
    on every platform, and after a resume. Validation and test rows keep the file's order.

    A split within ``memory_budget`` is held in memory and shuffled as a whole. A larger one is
    streamed: its blocks come in random order, and rows are shuffled among some blocks at a time.
    With a GPU batches are on it: a split in its memory is cut there; otherwise rows come through
    pinned memory, made ready ahead by a thread, while the step before is computed.

    Args:
        feature_map: FuxiCTR's feature map; its features and labels name the columns.
        data_path: An h5 file, with or without its suffix, or a folder of part files.
        split: "train", "valid" or "test".
        batch_size: Rows per batch; the last batch holds what is left.
        shuffle: Whether to shuffle; heeded for "train" only.
        **params: Settings by name, those of :class:`Selection` and :class:`Placement`; FuxiCTR
            passes all its parameters, and the others are not used.

    Attributes:
        epoch: Number of the epoch the next iteration serves, from 0; set it to resume.
        first_batch: Batch the next iteration starts at; later ones start at 0 again.
        num_samples: Rows served per epoch, by this rank.
        num_blocks: Files of the split.
        num_batches: Batches per epoch, the same for every rank.
        storage: Where the rows are: "memory", "stream" or "gpu".

    Raises:
        DataError: The file is unreadable or disagrees with the feature map. When streaming, what
            lies in the rows is found as they are read.
        SettingsError: An argument is not valid, or the GPU's memory too small for the split.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        data_path: str | Path,
        split: str = "train",
        batch_size: int = 32,
        shuffle: bool = False,
        **params: Any,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise SettingsError(f"batch_size={batch_size!r} must be an integer >= 1")
        self._selection, placement = _named(Selection, params), _named(Placement, params)
        self.feature_map = feature_map
        self.split = split
        self.batch_size = batch_size
        self.shuffle = shuffle and split == "train"
        self.epoch = 0
        self.first_batch = 0
        files = part_files(data_path)
        seed, share = self._selection.seed, self._selection.negative_sampling
        training = split == "train"
        self._reader = BlockReader(
            files,
            feature_map,
            binary=is_binary(self._selection.task),
            training=training,
            sampling=NegativeSampling(share, seed) if training and share is not None else None,
        )
        self._all_rows = self._reader.rows
        rank, world_size = self._selection.rank, self._selection.world_size
        if self._all_rows < world_size:
            raise DataError(
                f"{data_path}: {self._all_rows} rows are too few for {world_size} ranks"
            )
        self.num_samples = len(range(rank, self._all_rows, world_size))
        self.num_blocks = len(files)
        # By the largest share, rank 0's: the smaller ones are at most one row short of it.
        largest = len(range(0, self._all_rows, world_size))
        self.num_batches = len(range(0, largest, batch_size))
        if self.num_samples < self.num_batches:
            raise SettingsError(
                f"batch_size=1: {self._all_rows} rows cannot give {world_size} ranks as many "
                "batches each; set batch_size to 2"
            )
        self._device = device_of(placement.gpu)
        self.storage = placement.chosen(split, self._reader.bytes, self._all_rows, self._device)
        # Those cut on a GPU are a few kernels: a thread would only take turns with training's.
        ahead = 0 if self._device.type == "cpu" or self.storage == "gpu" else 2
        self._prefetch = ahead if placement.prefetch is None else placement.prefetch
        streams = self.storage == "stream"
        self._held = None if streams else self._reader.read(filled=placement.filled)
        if self.storage == "gpu":
            self._held = self._held.to(self._device)
        LOG.info("%s: %d rows from %s (%s)", split, self.num_samples, data_path, self.storage)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Start an epoch.

        Yields:
            Column -> tensor: ids int64, as FuxiCTR's loaders give them, numbers and labels
            float32; [B] for scalars, [B, max_len] for sequences, [B, pretrain_dim] for embedding
            features.
        """
        epoch, self.epoch = self.epoch, self.epoch + 1
        first, self.first_batch = self.first_batch, 0
        # NumPy's PCG64 gives the same stream on every platform; torch's depends on the device.
        generator = np.random.Generator(np.random.PCG64([self._selection.seed, epoch]))
        if self._held is not None:
            batches = self._chosen(generator, first)
        else:
            batches = islice(self._streamed(generator), first, None)
        if self._device.type == "cpu" or self.storage == "gpu":
            return prefetched(map(self._columns, batches), self._prefetch)
        ready = prefetched(map(Rows.pinned, batches), self._prefetch)
        return (self._columns(rows.to(self._device)) for rows in ready)

    def _columns(self, rows: Rows) -> CheckedBatch:
        return CheckedBatch(self._reader.columns(rows), self.feature_map)

    def _chosen(self, generator: np.random.Generator, first_batch: int) -> Iterator[Rows]:
        """Cut batches out of the rows held in memory."""
        rank, world_size = self._selection.rank, self._selection.world_size
        order = generator.permutation(self._all_rows) if self.shuffle else None
        if order is not None:
            order = torch.from_numpy(order[rank::world_size].copy())
            order = order.to(self._held.device)
        for start, stop in self._bounds()[first_batch:]:
            if order is not None:
                yield self._held.take(order[start:stop])
            else:
                first, last = (rank + at * world_size for at in (start, stop))
                yield self._held[first:last:world_size]

    def _bounds(self) -> list[tuple[int, int]]:
        """First row of each batch, and the one after its last, among the rows of this rank."""
        stops = [*range(self.batch_size, self.num_samples, self.batch_size), self.num_samples]
        if len(stops) < self.num_batches:  # the other ranks have one row more, in a last batch
            stops.insert(-1, self.num_samples - 1)
        return list(zip([0, *stops], stops, strict=False))

    def _streamed(self, generator: np.random.Generator) -> Iterator[Rows]:
        """Cut batches out of blocks as they are read; a batch may span two readings."""
        sizes = iter([stop - start for start, stop in self._bounds()])
        missing, parts = next(sizes), []
        for rows, order in prefetched(self._buffers(generator), ahead=1):
            while len(order):
                parts.append(rows.take(order[:missing]))
                order = order[missing:]
                missing -= len(parts[-1])
                if not missing:
                    yield Rows.joined(parts)
                    missing, parts = next(sizes, 0), []

    def _buffers(self, generator: np.random.Generator) -> Iterator[tuple[Rows, Tensor]]:
        """Read some blocks at a time, with the numbers of this rank's rows in their order."""
        rank, world_size = self._selection.rank, self._selection.world_size
        blocks = list(self._reader.blocks)
        size = 1
        if self.shuffle:
            blocks = [blocks[at] for at in generator.permutation(len(blocks))]
            size = _BUFFER_BLOCKS
        seen = 0
        for first in range(0, len(blocks), size):
            rows = self._reader.read(blocks[first : first + size])
            order = generator.permutation(len(rows)) if self.shuffle else np.arange(len(rows))
            yield rows, torch.from_numpy(order[(rank - seen) % world_size :: world_size].copy())
            seen += len(rows)


def device_of(gpu: int) -> torch.device:
    """Return the device FuxiCTR chooses for ``gpu``: the CPU where there is no GPU."""
    return torch.device("cuda", gpu) if gpu >= 0 and torch.cuda.is_available() else CPU


def free_bytes(device: torch.device) -> int:
    """Return the bytes a GPU can still give to this process."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


T = TypeVar("T")


def _named(cls: type[T], params: Mapping[str, Any]) -> T:
    """Make an options' object of the parameters that bear the names of its fields."""
    names = (each.name for each in fields(cls))
    return cls(**{name: params[name] for name in names if name in params})


_END = object()


def prefetched(items: Iterator[T], ahead: int) -> Iterator[T]:
    """Yield the items, some of them made in advance by a thread.

    An error of the iterator is raised where its item would have come. A consumer that stops early
    stops the thread.

    Args:
        items: The iterator; only the thread runs it.
        ahead: How many items to make in advance; 0 for no thread.
    """
    if ahead < 1:
        yield from items
        return
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: object, error: BaseException | None = None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:
            put(_END, error)
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
