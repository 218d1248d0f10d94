"""Rows of tables that no process holds whole: made when asked for, gathered and scattered.

A model draws its first weights from PyTorch's generator, one after another. A table that is not
made takes just as many numbers from it, so the other weights become what they would be, and
remembers where its own begin: each rank draws them again and keeps the rows it has. Nobody ever has
a whole table, and every weight is what one process would have drawn.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fuxictr_tf4ctr.distributed.ranks import JoinedRanks
from fuxictr_tf4ctr.errors import SettingsError

# Numbers drawn at a time. PyTorch draws normal numbers in groups of 16 and the last 16 of a tensor
# once more, so that parts of a multiple of 16 are the whole, if the last part has 16 or more.
_PART = 1 << 20
_FILLS = {"zero_": 0.0, "zeros_": 0.0, "fill_": None, "constant_": None}
_SAME = ("to", "cpu", "cuda", "float")


@dataclass(frozen=True)
class _Write:
    """Numbers ``start`` to ``stop`` of a table, drawn from a generator's ``state``."""

    start: int
    stop: int
    draw: Callable[[Tensor], Any]
    state: Tensor | None

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        """Write again: yield positions and the numbers from there on, some at a time."""
        count = self.stop - self.start
        bounds = [*range(0, max(count - 16, 1), _PART), count]
        part = torch.empty(min(count, _PART + 16))
        for first, last in pairwise(bounds):
            numbers = part[: last - first]
            self.draw(numbers)
            yield self.start + first, numbers


class UnmadeTable(Tensor):
    """A weight [rows, width] without memory, which knows what was written to it.

    Attributes:
        writes: What was written, in order; views of the table share it.
    """

    writes: list[_Write]

    @staticmethod
    def __new__(cls, shape: Tensor, writes: list[_Write]) -> "UnmadeTable":
        table = Tensor._make_subclass(cls, shape)
        table.writes = writes
        return table

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.__name__
        table = args[0] if args else kwargs.get("tensor")
        if name in _SAME:
            return table
        if func == Tensor.is_meta.__get__:  # such weights PyTorch leaves alone
            return False
        if func is nn.functional.embedding:  # a layer being built asks for the shape
            return torch.zeros(*args[0].shape, args[1].shape[1])
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            kwargs.pop("tensor", None)
            table._write(name, args[1:], kwargs)
            return table
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
            of_its_own = name.endswith("_like")  # an optimizer's state
            if found is table or of_its_own or not isinstance(found, Tensor) or not found.is_meta:
                return found
            if found.untyped_storage()._cdata != table.untyped_storage()._cdata:
                raise _not_in_parts(name)
            return UnmadeTable(found, table.writes)

    def _write(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with torch._C.DisableTorchFunctionSubclass():
            start, count = self.storage_offset(), self.numel()
            apart = not self.is_contiguous()
        if name in _FILLS:
            value = _FILLS[name]
            value = value if value is not None else (*args, *kwargs.values())[0]
            self.writes.append(_Write(start, start + count, lambda part: part.fill_(value), None))
            return
        if name not in ("normal_", "uniform_") or kwargs.get("generator") is not None or apart:
            raise _not_in_parts(name)
        kwargs.pop("generator", None)
        names = {"a": "from", "b": "to"}
        options = {names.get(key, key): value for key, value in kwargs.items()}

        def draw(part: Tensor) -> None:
            getattr(part, name)(*args, **options)

        write = _Write(start, start + count, draw, torch.get_rng_state())
        self.writes.append(write)
        for _ in write.parts():  # as many numbers as the table would have taken
            pass

    @torch.no_grad()
    def make_rows(self, first: int, rows: Tensor) -> None:
        """Draw rows of the table.

        Args:
            first: Which row of the table comes first.
            rows: [n, width] where they are written, on any device.
        """
        width = self.shape[1]
        begin, end = first * width, (first + len(rows)) * width
        flat = rows.view(-1) if rows.is_contiguous() else rows.new_empty(rows.numel())
        with torch.random.fork_rng(devices=[]):
            for write in _needed(self.writes, begin, end):
                if write.state is not None:
                    torch.set_rng_state(write.state)
                for at, numbers in write.parts():
                    low, high = max(at, begin), min(at + len(numbers), end)
                    if low < high:
                        flat[low - begin : high - begin] = numbers[low - at : high - at]
                    if at + len(numbers) >= end:
                        break
        if not rows.is_contiguous():
            rows.copy_(flat.view(len(rows), width))


def _not_in_parts(name: str) -> SettingsError:
    return SettingsError(
        f"table_sharding: the model initialises a table by {name.strip('_')}, which cannot be "
        "drawn in parts: leave table_sharding out"
    )


def _needed(writes: list[_Write], begin: int, end: int) -> list[_Write]:
    """Leave out what other ranks have, and what was written over later."""
    needed: list[_Write] = []
    missing = [(begin, end)]
    for write in reversed(writes):
        left = []
        for low, high in missing:
            left += [(low, min(high, write.start)), (max(low, write.stop), high)]
        left = [(low, high) for low, high in left if low < high]
        if left != missing:
            needed.insert(0, write)
        missing = left
    return needed


class _Unmade(TorchFunctionMode):
    """Lets the tables of FuxiCTR's embedding layers be made without memory, in this thread."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and _makes_a_table():
            return UnmadeTable(func(*args, **{**kwargs, "device": "meta"}), [])
        return func(*args, **kwargs)


def _makes_a_table() -> bool:
    """Whether nn.Embedding, made by FuxiCTR's embedding layer, asks for memory."""
    maker = sys._getframe(2)
    return (
        maker.f_code is nn.Embedding.__init__.__code__
        and maker.f_back is not None
        and maker.f_back.f_code is FeatureEmbeddingDict.__init__.__code__
    )


@contextmanager
def tables_unmade() -> Iterator[None]:
    """While in context, tables of FuxiCTR's embedding layers are :class:`UnmadeTable`."""
    with _Unmade():
        yield


class Piece(NamedTuple):
    """Rows of the tensor ``name``, from its row ``start`` on."""

    name: str
    start: int
    rows: Tensor


class _Description(NamedTuple):
    name: str
    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def stop(self) -> int:
        return self.start + self.shape[0]


@torch.no_grad()
def gather(pieces: Sequence[Piece], ranks: JoinedRanks) -> dict[str, Tensor]:
    """Put the pieces of all ranks together, in the memory of rank 0's host.

    Args:
        pieces: Those of this rank.
        ranks: All ranks; each calls this.

    Returns:
        Name -> whole tensor on rank 0, nothing on the others.
    """
    pieces = [piece for piece in pieces if len(piece.rows)]
    described = _described(pieces, ranks)
    if not ranks.leads:
        for piece in pieces:
            dist.send(piece.rows.cpu().contiguous(), 0, group=ranks.control)
        return {}
    whole = _empty(each for own in described for each in own)
    for rank, own in enumerate(described):
        for at, each in enumerate(own):
            target = whole[each.name][each.start : each.stop]
            if rank == 0:
                target.copy_(pieces[at].rows)
            else:
                dist.recv(target, rank, group=ranks.control)
    return whole


@torch.no_grad()
def scatter(whole: Mapping[str, Tensor], pieces: Sequence[Piece], ranks: JoinedRanks) -> None:
    """Fill the pieces of all ranks from whole tensors.

    Args:
        whole: Name -> tensor; that of rank 0 counts.
        pieces: Those of this rank; their ``rows`` are overwritten.
        ranks: All ranks; each calls this.
    """
    pieces = [piece for piece in pieces if len(piece.rows)]
    described = _described(pieces, ranks)
    if not ranks.leads:
        for piece in pieces:
            rows = torch.empty(piece.rows.shape, dtype=piece.rows.dtype)
            dist.recv(rows, 0, group=ranks.control)
            piece.rows.copy_(rows)
        return
    for rank, own in enumerate(described):
        for at, each in enumerate(own):
            rows = whole[each.name][each.start : each.stop]
            if rank == 0:
                pieces[at].rows.copy_(rows)
            else:
                dist.send(rows.to("cpu", each.dtype).contiguous(), rank, group=ranks.control)


def _described(pieces: Sequence[Piece], ranks: JoinedRanks) -> list[list[_Description]]:
    own = [_Description(name, start, rows.shape, rows.dtype) for name, start, rows in pieces]
    return ranks.all_gather(own)


def _empty(described: Sequence[_Description]) -> dict[str, Tensor]:
    largest: dict[str, _Description] = {}
    for each in described:
        if each.name not in largest or each.stop > largest[each.name].stop:
            largest[each.name] = each
    return {
        name: torch.empty(last.stop, *last.shape[1:], dtype=last.dtype)
        for name, last in largest.items()
    }
