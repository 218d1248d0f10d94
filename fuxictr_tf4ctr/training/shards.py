"""Rows of tables that no process holds whole: drawn, kept in files and put together in parts.

A model draws its first weights from PyTorch's generator, one after another. A table that is not
made moves the generator on past its numbers, so the other weights become what they would be, and
remembers where its own begin: each rank draws those of the rows it has. Nobody ever has or draws a
whole table, and every weight is what one process would have drawn.

Beside a file X.model or X.state with all other weights, X.shards/STEP-NUMBER/ holds a file of each
rank in the safetensors format: JSON that says which rows of which tables, then their numbers. No
pickle is read, any number of ranks can take its rows from any number of files, a block at a time,
and X, written last, names the folder: what a killed rank began is never looked at.
"""

import json
import math
import os
import re
import shutil
import struct
import sys
import uuid
import warnings
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from fuxictr_tf4ctr import files
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.schema import TEXT, Kind, Record, whole

# Numbers drawn at a time. PyTorch draws normal numbers in groups of 16 and the last 16 of a tensor
# once more, so that parts of a multiple of 16 are the whole, if the last part has 16 or more.
_PART = 1 << 20
_FILLS = {"zero_": 0.0, "zeros_": 0.0, "fill_": None, "constant_": None}
_SAME = ("to", "cpu", "cuda", "float")


# PyTorch's generator on the CPU is the Mersenne twister MT19937: of its last 624 words it makes the
# next, word i + 624 of words i, i + 1 and i + 397, by a matrix whose last row is the third number.
_WORDS, _MIDDLE, _LAST_ROW = 624, 397, 0x9908B0DF
_DEGREE = 19937


@cache
def _exponents() -> list[int]:
    """Exponents of the characteristic polynomial of MT19937, modulo 2, but for the highest."""
    found = 1
    for bit in range(31):
        found = found << _WORDS - 1 ^ found << _MIDDLE - 1 ^ _LAST_ROW >> bit & 1
    found = found << _WORDS ^ found << _MIDDLE ^ _LAST_ROW >> 31
    return [exponent for exponent in range(_DEGREE) if found >> exponent & 1]


def _words_needed(ahead: int) -> np.ndarray:
    """Tell which words i add up, bit by bit modulo 2, to word ``ahead``: x^ahead as such a sum."""
    power = 1
    for bit in f"{ahead:b}":
        power = int(f"{power:b}", 4) << int(bit)  # the square: a zero between all digits
        while high := power >> _DEGREE:
            power ^= high << _DEGREE
            for exponent in _exponents():
                power ^= high << exponent
    return np.frombuffer(f"{power:b}"[::-1].encode(), np.uint8) == ord("1")


def _later(state: Tensor, count: int) -> Tensor:
    """Return the generator's state after ``count`` numbers more, 624 at the least; in 0.1 s.

    Source: Haramoto et al., "Efficient Jump Ahead for F2-Linear Random Number Generators", 2008.
    """
    state = state.clone()
    header, words = state.numpy()[:24].view(np.int32), state.numpy()[24:].view(np.uint64)[:_WORDS]
    needed = _words_needed(count + 1 - int(header[2]))  # that many of the 624 are not used yet
    twister, block = np.random.MT19937(), words.astype(np.uint32)
    words[:] = 0
    for first in range(0, len(needed), _WORDS):
        twister.state = {"bit_generator": "MT19937", "state": {"key": block, "pos": _WORDS}}
        twister.random_raw(output=False)
        next_block = twister.state["state"]["key"].copy()
        runs = np.lib.stride_tricks.sliding_window_view(np.append(block, next_block), _WORDS)
        (chosen,) = needed[first : first + _WORDS].nonzero()
        words ^= np.bitwise_xor.reduce(runs[chosen])
        block = next_block
    header[2], header[4:] = 1, 0  # all of the 624 are used
    return state


@dataclass(frozen=True)
class _Write:
    """Numbers ``start`` to ``stop`` of a table, drawn from a generator's ``state``."""

    start: int
    stop: int
    draw: Callable[[Tensor], Any]
    state: Tensor | None

    def parts(self, position: int) -> Iterator[tuple[int, Tensor]]:
        """Write again from about a position: yield positions and the numbers from there on."""
        count = self.stop - self.start
        bounds = [*range(0, max(count - 16, 1), _PART), count]
        first = max(0, bisect_right(bounds, position - self.start, hi=len(bounds) - 1) - 1)
        if self.state is not None:
            torch.set_rng_state(_later(self.state, bounds[first]) if first else self.state)
        part = torch.empty(min(count, _PART + 16))
        for low, high in pairwise(bounds[first:]):
            numbers = part[: high - low]
            self.draw(numbers)
            yield self.start + low, numbers


class UnmadeTable(Tensor):
    """A weight [rows, width] without memory, which knows what was written to it.

    Attributes:
        writes: What was written, in order; views of the table share it. None: that is not noted, as
            other weights come in its place.
    """

    writes: list[_Write] | None

    @staticmethod
    def __new__(cls, shape: Tensor, writes: list[_Write] | None) -> "UnmadeTable":
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
        if self.writes is None:
            return
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
        for _ in write.parts(write.stop):  # as many numbers as the table would have taken
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
                for at, numbers in write.parts(begin):
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

    def __init__(self, noted: bool) -> None:
        super().__init__()
        self._noted = noted

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and _makes_a_table():
            writes = [] if self._noted else None
            return UnmadeTable(func(*args, **{**kwargs, "device": "meta"}), writes)
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
def tables_unmade(noted: bool = True) -> Iterator[None]:
    """While in context, tables of FuxiCTR's embedding layers are :class:`UnmadeTable`.

    Args:
        noted: Whether rows are to be drawn from them.
    """
    with _Unmade(noted):
        yield


class Piece(NamedTuple):
    """Rows of the tensor ``name``, from its row ``start`` on."""

    name: str
    start: int
    rows: Tensor


# Bytes read and written at a time, each with a checksum.
_BLOCK = 4 << 20
_DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
    "I64": torch.int64, "I32": torch.int32,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ROWS_KEY = "rows"  # of the metadata: of each tensor its first row, rows of a block, checksums
_SAVE = Kind("STEP-NUMBER", lambda value: bool(re.fullmatch(r"\d+-[0-9a-f]{8}", value)))
# What the file of the other weights says of shards.
KEPT = Record({"save": _SAVE, "ranks": whole(1, 1 << 20), "tables": Record({}, others=TEXT)})


def shards_folder(path: Path) -> Path:
    """Return where the shards of a file of weights, or of a state, lie."""
    return path.with_suffix(".shards")


def step_of(kept: Mapping[str, Any]) -> int:
    """Return after which training step shards were saved."""
    return int(kept["save"].partition("-")[0])


def begin_save(path: Path, step: int) -> Path:
    """Make the folder for the shards of training step ``step`` that go with a file."""
    folder = shards_folder(path) / f"{step}-{uuid.uuid4().hex[:8]}"
    with files.storage_errors(folder):
        folder.mkdir(parents=True)
    return folder


def end_save(path: Path, kept: Mapping[str, Any]) -> None:
    """Remove the shards of a file that are not those it names; all ranks have written theirs."""
    folder = shards_folder(path)
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.name != kept.get("save"):
            shutil.rmtree(other, ignore_errors=True)
    if not kept and folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)


def _shard(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.safetensors"


@torch.no_grad()
def write_shard(folder: Path, rank: int, pieces: Iterable[Piece]) -> None:
    """Write the rows that a rank has, a block at a time.

    Args:
        folder: As :func:`begin_save` made it, seen by all ranks.
        rank: The rank's number.
        pieces: Its rows, no name twice.

    Raises:
        StorageError: The disk is too full, or the folder cannot be written from this host.
    """
    pieces = [piece for piece in pieces if len(piece.rows)]
    sizes = [piece.rows.numel() * piece.rows.element_size() for piece in pieces]
    header: dict[str, Any] = {"__metadata__": {"save": folder.name}}
    rows: dict[str, list] = {}
    end = 0
    for piece, size in zip(pieces, sizes, strict=True):
        block = max(1, _BLOCK * len(piece.rows) // size)
        rows[piece.name] = [piece.start, block, "0" * 8 * math.ceil(len(piece.rows) / block)]
        header[piece.name] = {
            "dtype": _NAMES[piece.rows.dtype],
            "shape": list(piece.rows.shape),
            "data_offsets": [end, end + size],
        }
        end += size

    def write_header() -> None:
        header["__metadata__"][_ROWS_KEY] = json.dumps(rows)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        output.write(len(text).to_bytes(8, "little") + text)

    with files.whole_file(_shard(folder, rank), needs=end) as output:
        write_header()
        for piece in pieces:
            checksums = []
            for part in piece.rows.split(rows[piece.name][1]):
                data = _bytes(part.cpu().contiguous())
                checksums.append(f"{zlib.crc32(data):08x}")
                output.write(data)
            rows[piece.name][2] = "".join(checksums)
        output.seek(0)
        write_header()  # as long as before


def _bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU."""
    # One number alone counts as contiguous whatever its stride.
    flat = tensor.as_strided((tensor.numel(),), (1,))
    return memoryview(flat.view(torch.uint8).numpy())


class _Stored(NamedTuple):
    """Rows of a tensor in a shard.

    Attributes:
        file: The shard.
        start: The first of the rows.
        shape: Shape of the rows.
        dtype: Type of their numbers.
        offset: Where in the file they begin.
        block: Rows of a block.
        checksums: Of the blocks, 8 digits each.
    """

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    block: int
    checksums: str

    @property
    def stop(self) -> int:
        return self.start + self.shape[0]

    def blocks(self, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
        """Read the blocks that hold rows ``first`` to ``last``: yield their first row, and rows."""
        size = self.dtype.itemsize * math.prod(self.shape[1:])
        with self.file.open("rb", buffering=0) as source:
            for number in range((first - self.start) // self.block, len(self.checksums) // 8):
                begin = number * self.block
                if self.start + begin >= last:
                    break
                count = min(self.block, self.shape[0] - begin)
                data = bytearray(count * size)
                source.seek(self.offset + begin * size)
                complete = source.readinto(data) == len(data)
                checksum = self.checksums[8 * number : 8 * number + 8]
                if not complete or f"{zlib.crc32(data):08x}" != checksum:
                    raise ValueError(f"wrong checksum of rows {self.start + begin} and on")
                rows = torch.frombuffer(data, dtype=self.dtype).view(count, *self.shape[1:])
                yield self.start + begin, rows


class Shards:
    """The divided tables that go with a file, in the files of the ranks that wrote them.

    Args:
        path: The file.
        kept: What it says of them, of :data:`KEPT`.

    Attributes:
        tables: Name of each table -> [rows, width] and type of its numbers.
        names: Names that weights have in a whole model's ``state_dict`` -> table.

    Raises:
        DataError: A shard is missing, damaged or of another save.
    """

    def __init__(self, path: Path, kept: Mapping[str, Any]) -> None:
        self._path = path
        self._stored: dict[str, list[_Stored]] = {}
        self.names: dict[str, str] = kept["tables"]
        folder = shards_folder(path) / kept["save"]
        for rank in range(kept["ranks"]):
            file = _shard(folder, rank)
            with self._readable(file):
                for name, stored in _read_header(file, kept["save"]):
                    self._stored.setdefault(name, []).append(stored)
        for name, parts in self._stored.items():
            parts.sort(key=lambda each: each.start)
            ends = [0, *(each.stop for each in parts)]
            alike = {(each.shape[1:], each.dtype) for each in parts}
            if len(alike) > 1 or [each.start for each in parts] != ends[:-1]:
                raise DataError(f"{folder}: the rows of {name} are not all there; {self._way_out}")
        if missing := set(self.names.values()) - self._stored.keys():
            raise DataError(f"{folder}: holds no rows of {min(missing)}; {self._way_out}")
        self.tables = {
            name: (torch.Size((parts[-1].stop, *parts[0].shape[1:])), parts[0].dtype)
            for name, parts in self._stored.items()
            if name in self.names
        }

    @property
    def _way_out(self) -> str:
        if self._path.suffix != ".state":
            return "bring it back, or train again"
        return f"bring it back, or remove {self._path} to go on from the state before it, if any"

    @contextmanager
    def _readable(self, file: Path) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise DataError(
                f"{file}: is missing, with rows of tables that go with {self._path.name}; "
                f"{self._way_out}"
            ) from None
        except OSError as error:
            raise files.storage_error(error, file) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{file}: {error or 'damaged'}; {self._way_out}") from error

    @torch.no_grad()
    def read(self, name: str, first: int, rows: Tensor) -> None:
        """Read rows of a tensor, and no more than a block beside.

        Args:
            name: The tensor's.
            first: Which of its rows comes first.
            rows: [n, ...] where they are written, on any device.

        Raises:
            DataError: There are no such rows, or they are damaged.
        """
        last = first + len(rows)
        stored = self._stored.get(name, [])
        if not stored or stored[-1].stop < last or stored[0].shape[1:] != rows.shape[1:]:
            raise DataError(
                f"{self._path}: its shards hold no rows {first} to {last} of {name}, "
                f"{tuple(rows.shape[1:])} each: they are another model's"
            )
        for part in stored:
            low, high = max(first, part.start), min(last, part.stop)
            with self._readable(part.file):
                for at, block in part.blocks(low, high) if low < high else ():
                    begin, end = max(at, low), min(at + len(block), high)
                    rows[begin - first : end - first] = block[begin - at : end - at]

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Read a whole tensor, a block at a time."""
        for part in self._stored[name]:
            with self._readable(part.file):
                yield from (rows for _, rows in part.blocks(part.start, part.stop))


def _read_header(file: Path, save: str) -> Iterator[tuple[str, _Stored]]:
    size = file.stat().st_size
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError("is no shard")
        header = json.loads(source.read(length))
    metadata = header.pop("__metadata__")
    if metadata["save"] != save:
        raise ValueError(f"holds rows of save {metadata['save']}, not of {save}")
    places = json.loads(metadata[_ROWS_KEY])
    for name, tensor in header.items():
        (start, block, checksums), (begin, end) = places[name], tensor["data_offsets"]
        dtype, shape = _DTYPES[tensor["dtype"]], tuple(tensor["shape"])
        if min(start, begin, *shape) < 0 or shape[0] < 1 or block < 1 or 8 + length + end > size:
            raise ValueError("is damaged or cut off")
        if end - begin != dtype.itemsize * math.prod(shape):
            raise ValueError("is damaged")
        if len(checksums) != 8 * math.ceil(shape[0] / block):
            raise ValueError("is damaged")
        yield name, _Stored(file, start, shape, dtype, 8 + length + begin, block, checksums)


def write_merged(path: Path, weights: Mapping[str, Tensor], shards: Shards) -> None:
    """Write weights and whole tables as ``torch.save`` would, a block of a table at a time.

    Args:
        path: The file; it is replaced when all is written.
        weights: Name -> weights that are in no shard, on the CPU.
        shards: The tables.

    Raises:
        StorageError: The disk is too full for it, or it cannot be written there.
        DataError: Shards are damaged.
        SettingsError: PyTorch is too old.
    """
    if _too_old():
        raise SettingsError(
            f"divided tables are merged by PyTorch 2.7 or later, this is {torch.__version__}"
        )
    with FakeTensorMode():
        empty = {name: torch.empty(*of[0], dtype=of[1]) for name, of in shards.tables.items()}
    storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in weights.values()}
    numbers = [[_bytes(torch.empty(0, dtype=torch.uint8).set_(each))] for each in storages.values()]
    numbers += [map(_bytes, shards.blocks(name)) for name in empty]
    content = {**weights, **{name: empty[table] for name, table in shards.names.items()}}
    with files.whole_file(path, sum(each.nbytes for each in empty.values())) as output:
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(content, output)
        output.check()
        _fill(output, numbers)


def read_mapped(path: Path) -> Any:
    """Read what ``torch.save`` wrote: its tensors are pages of the file, read when they are needed.

    ``torch.load`` can map a file too, but as pages that may be written to, of which Linux allows
    no more than there is memory. These cannot be written to: a process that tries ends. PyTorch
    before 2.7 does not tell where in a file tensors are, and maps it its own way.

    Raises:
        Exception: What a damaged file raises depends on where it is damaged.
    """
    if _too_old():
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with FakeTensorMode():
        content = torch.load(path, map_location="cpu", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensors that cannot be written to
        pages = torch.from_numpy(np.memmap(path, mode="r")).untyped_storage()

    def mapped(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        start, place = storage._checkpoint_offset, (tensor.shape, tensor.stride())
        own = pages[start : start + storage.nbytes()]
        return torch.empty(0, dtype=tensor.dtype).set_(own, tensor.storage_offset(), *place)

    return tree_map_only(Tensor, mapped, content)


def _too_old() -> bool:
    """Whether PyTorch cannot leave numbers out of a file, nor tell where they are in one."""
    return torch.__version__ < (2, 7)


def _fill(output: files.Output, numbers: Iterable[Iterable[memoryview]]) -> None:
    """Write what ``torch.save`` left empty in a zip archive, and the checksums."""
    with zipfile.ZipFile(output) as archive:
        records, directory = archive.infolist(), archive.start_dir
    checksums: dict[str, bytes] = {}
    empty = (each for each in records if re.fullmatch(r"[^/]+/data/\d+", each.filename))
    for record, blocks in zip(empty, numbers, strict=True):
        output.seek(record.header_offset + 26)
        start = record.header_offset + 30 + sum(struct.unpack("<2H", output.read(4)))
        output.seek(start)
        checksum = 0
        for block in blocks:
            output.write(block)
            checksum = zlib.crc32(block, checksum)
        if output.tell() != start + record.file_size:
            output.check()
            raise DataError(f"{record.filename} has {record.file_size} bytes, others came")
        checksums[record.filename] = struct.pack("<I", checksum)
        output.seek(4, os.SEEK_CUR)  # behind the numbers: a signature, then their checksum
        output.write(checksums[record.filename])
    for record in records:
        if record.filename in checksums:
            output.seek(directory + 16)
            output.write(checksums[record.filename])
        output.seek(directory + 28)
        directory += 46 + sum(struct.unpack("<3H", output.read(6)))
