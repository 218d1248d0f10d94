"""Batches from encoded files, by the contract of FuxiCTR's ``data_loader`` hook."""

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from fuxictr.features import FeatureMap
from torch import Tensor

from fuxictr_tf4ctr.datasets.blocks import (
    STRIPES,
    BlockReader,
    Filled,
    NegativeSampling,
    Part,
    filled_here,
    take,
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
# Blocks read at a time, at least, when streaming; and in how many parts their rows are put in
# order, of which a thread makes some ahead.
_BLOCKS_AT_ONCE = 8
_COPIES_OF_A_BLOCK = 8
_AHEAD = 4


class CheckedBatch(dict):
    """Columns by name whose ids have been compared with a feature map: no step needs to again.

    Args:
        portion: Which portion of the batch's rows these are, where several ranks share it.
    """

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        feature_map: FeatureMap,
        portion: float | None = None,
    ) -> None:
        super().__init__(columns)
        self.feature_map = feature_map
        self.portion = portion


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
        world_size: How many there are. Each serves its own rows, all in the same number of batches:
            of each batch of training rows every ``world_size``-th, of others a part in one piece.

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
    streamed. Its rows are cut into ``STRIPES`` stripes, of which each batch has as many rows each,
    give or take one; of a stripe, blocks come in random order and so do the rows of a block. Ranks
    whose number divides that of the stripes read those of their own alone, and together the batches
    that one process would read.
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
        # Rank 0 has the most; the others have as many, or one row less.
        self._shares = [len(range(at, self._all_rows, world_size)) for at in range(world_size)]
        self.num_samples = self._shares[rank]
        self.num_blocks = len(files)
        self.num_batches = len(range(0, self._shares[0], batch_size))
        if self._shares[-1] < self.num_batches:
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
        self._own_runs = self._runs() if streams else {}
        if self.storage == "gpu":
            self._held = self._held.to(self._device)
        LOG.info("%s: %d rows from %s (%s)", split, self.num_samples, data_path, self.storage)

    @property
    def fewest_rows(self) -> int:
        """Rows of the smallest batch, of any rank."""
        bounds = (bound for share in set(self._shares) for bound in self._bounds(share))
        return min(stop - start for start, stop in bounds)

    def refuse_one_class(self) -> None:
        """Raise DataError where a label is the same in all rows of the split, of any rank."""
        self._reader.refuse_one_class()

    def __len__(self) -> int:
        return self.num_batches

    def _runs(self) -> dict[int, list[Part]]:
        """Cut the split's rows, and return the runs that this rank reads."""
        rank, ranks = self._selection.rank, self._selection.world_size
        if self.split != "train":
            return self._reader.runs(self._shares, {rank})
        if not self.shuffle:
            return {}
        apart = math.gcd(ranks, STRIPES)
        if apart < ranks:
            LOG.warning(
                "%d ranks do not divide the %d stripes of streamed rows: each reads 1/%d of all "
                "rows and serves 1/%d; take a power of 2 up to %d",
                *(ranks, STRIPES, apart, ranks, STRIPES),
            )
        sizes = [len(range(_place(at), self._all_rows, STRIPES)) for at in range(STRIPES)]
        return self._reader.runs(sizes, {_place(at) for at in range(rank % apart, STRIPES, apart)})

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Start an epoch.

        Yields:
            Column -> tensor: ids int64, as FuxiCTR's loaders give them, numbers and labels
            float32; [B] for scalars, [B, max_len] for sequences, [B, pretrain_dim] for embedding
            features.
        """
        epoch, self.epoch = self.epoch, self.epoch + 1
        first, self.first_batch = self.first_batch, 0
        chosen = self._chosen if self._held is not None else self._streamed
        batches = zip(chosen(epoch, first), self._portions()[first:], strict=True)
        if self._device.type == "cpu" or self.storage == "gpu":
            return prefetched((self._columns(*batch) for batch in batches), self._prefetch)
        # Rows with gaps go another way into memory that a device reads without this process.
        pinned = ((rows.contiguous().pin_memory(), share) for rows, share in batches)
        ready = prefetched(pinned, self._prefetch)
        return (
            self._columns(rows.to(self._device, non_blocking=True), share) for rows, share in ready
        )

    def _columns(self, rows: Tensor, portion: float | None) -> CheckedBatch:
        return CheckedBatch(self._reader.columns(rows), self.feature_map, portion)

    def _chosen(self, epoch: int, first_batch: int) -> Iterator[Tensor]:
        """Cut batches out of the rows held in memory."""
        rank, step = self._selection.rank, self._selection.world_size
        order, begin = None, rank
        if self.shuffle:
            order = _generator(self._selection.seed, epoch).permutation(self._all_rows)
            order = torch.from_numpy(order[rank::step].copy()).to(self._held.device)
        elif self.split != "train":
            begin, step = sum(self._shares[:rank]), 1
        for start, stop in self._bounds(self.num_samples)[first_batch:]:
            if order is not None:
                yield take(self._held, order[start:stop])
            else:
                first, last = (begin + at * step for at in (start, stop))
                yield self._held[first:last:step]

    def _bounds(self, share: int) -> list[tuple[int, int]]:
        """First row of each batch, and the one after its last, among so many of one rank."""
        stops = [*range(self.batch_size, share, self.batch_size), share]
        if len(stops) < self.num_batches:  # other ranks have one row more, in a last batch
            stops.insert(-1, share - 1)
        return list(zip([0, *stops], stops, strict=False))

    def _portions(self) -> list[float | None]:
        """Which portion of each batch this rank has; None for a process that is alone."""
        if len(self._shares) == 1:
            return [None] * self.num_batches
        ranks = {share: self._shares.count(share) for share in set(self._shares)}
        bounds = {share: self._bounds(share) for share in ranks}
        sizes = {share: [stop - start for start, stop in own] for share, own in bounds.items()}
        return [
            sizes[self.num_samples][at] / sum(ranks[share] * sizes[share][at] for share in ranks)
            for at in range(self.num_batches)
        ]

    def _streamed(self, epoch: int, first_batch: int) -> Iterator[Tensor]:
        """Cut batches out of rows as they are read; a batch may span two readings."""
        bounds = self._bounds(self.num_samples)[first_batch:]
        sizes = iter([stop - start for start, stop in bounds])
        missing, parts = next(sizes, 0), []
        with closing(prefetched(self._in_order(epoch, bounds[:1]), _AHEAD)) as readings:
            for rows in readings:
                while len(rows):
                    parts.append(rows[:missing])
                    rows = rows[missing:]
                    missing -= len(parts[-1])
                    if not missing:
                        yield parts[0] if len(parts) == 1 else torch.cat(parts)
                        missing, parts = next(sizes, 0), []

    def _in_order(self, epoch: int, first: list[tuple[int, int]]) -> Iterator[Tensor]:
        """Read this rank's rows from those of a batch on, and yield them in their order."""
        lanes, served = self._lanes(epoch), first[0][0] if first else self.num_samples
        # By turns the lanes give a row each: that of the next row comes first.
        turn = served % len(lanes)
        skipped = [len(range(at, served, len(lanes))) for at in range(len(lanes))]
        lanes = [_skipped(*each) for each in zip(lanes, skipped, strict=True)]
        lanes = lanes[turn:] + lanes[:turn]
        at_once = max(_BLOCKS_AT_ONCE // len(lanes), 1)
        most = max(at_once * self._reader.block_rows // _COPIES_OF_A_BLOCK, 1) * len(lanes)
        waiting: list[deque[tuple[Tensor, np.ndarray]]] = [deque() for _ in lanes]
        while True:
            read = [list(islice(lane, at_once)) for lane in lanes]
            rows = self._reader.read(part for lane in read for part, _ in lane)
            for queue_, lane in zip(waiting, read, strict=True):
                for part, order in lane:
                    queue_.append((rows[: part.rows], order))
                    rows = rows[part.rows :]
            del rows  # what is served goes before the next are read
            there = [sum(len(order) for _, order in queue_) for queue_ in waiting]
            ended = not any(read)
            left = sum(there) if ended else min(there) * len(lanes)
            while left:  # of all rows read at once, a copy would take as much memory again
                size = min(left, most)
                words = torch.empty(size, self._reader.words, dtype=torch.int32)
                for at, queue_ in enumerate(waiting):
                    _fill(words[at :: len(lanes)].numpy(), queue_)
                yield words
                left -= size
            if ended:
                return

    def _lanes(self, epoch: int) -> list[Iterator[tuple[Part, np.ndarray]]]:
        """Return the runs of rows that give this rank a row each by turns, in their order."""
        rank, ranks = self._selection.rank, self._selection.world_size
        if self.split != "train":
            return [_ordered(self._own_runs[rank])]
        if not self.shuffle:
            return [_ordered(self._reader.parts(), rank, ranks)]
        # Row k of an epoch is of stripe k mod STRIPES, and rank k mod ranks serves it.
        turns = range(rank, ranks * STRIPES // math.gcd(ranks, STRIPES), ranks)
        step = ranks // math.gcd(ranks, STRIPES)
        return [
            _ordered(
                self._own_runs[_place(turn % STRIPES)],
                *(turn // STRIPES, step),
                _generator(self._selection.seed, epoch, turn % STRIPES),
            )
            for turn in turns
        ]


def _generator(*seeds: int) -> np.random.Generator:
    # NumPy's PCG64 gives the same stream on every platform; torch's depends on the device.
    return np.random.Generator(np.random.PCG64(list(seeds)))


def _place(stripe: int) -> int:
    """Return where among all stripes, in the order of the rows, one lies: its bits reversed.

    So the stripes that a small batch has rows of lie apart, and those of a rank side by side.
    """
    bits = STRIPES.bit_length() - 1
    return int(f"{stripe:0{bits}b}"[::-1], 2)


def _ordered(
    parts: Iterable[Part],
    first: int = 0,
    step: int = 1,
    generator: np.random.Generator | None = None,
) -> Iterator[tuple[Part, np.ndarray]]:
    """Yield parts with the order of their rows, random where there is a generator.

    Args:
        first: The first of their rows to serve.
        step: The others are so many apart.
        generator: Draws the order of the parts and of the rows of each.
    """
    if generator is not None:
        parts = list(parts)
        parts = [parts[at] for at in generator.permutation(len(parts))]
    for part in parts:
        rows = part.rows
        order = np.arange(rows) if generator is None else generator.permutation(rows)
        yield part, order[first::step]
        first = (first - rows) % step


def _skipped(
    parts: Iterator[tuple[Part, np.ndarray]], rows: int
) -> Iterator[tuple[Part, np.ndarray]]:
    """Leave out the first rows, and the parts that have none left."""
    for part, order in parts:
        left = order[rows:]
        rows -= len(order) - len(left)
        if len(left):
            yield part, left


def _fill(words: np.ndarray, waiting: deque[tuple[Tensor, np.ndarray]]) -> None:
    """Fill a matrix by the next rows that wait."""
    at = 0
    while at < len(words):
        rows, order = waiting.popleft()
        some = order[: len(words) - at]
        words[at : at + len(some)] = rows.numpy().take(some, axis=0)
        at += len(some)
        if len(some) < len(order):
            waiting.appendleft((rows, order[len(some) :]))


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
    pool = ThreadPoolExecutor(1)
    ready = deque(pool.submit(next, items, _END) for _ in range(ahead))
    try:
        while (item := ready.popleft().result()) is not _END:
            ready.append(pool.submit(next, items, _END))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
        if hasattr(items, "close"):
            items.close()
