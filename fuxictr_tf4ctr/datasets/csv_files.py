"""Csv files read in blocks of whole rows: bounded memory, and errors that name their line.

Polars maps a whole csv file into memory and fills the fields a line lacks with nulls. Here a file,
gzipped or not, passes through a buffer of fixed size, and each line has the header's fields; bad
lines are left out on request, each counted and the first ones named.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from fuxictr_tf4ctr.errors import DataError

_BLOCK_BYTES = 8 << 20
# Polars infers the types of undeclared columns from this many rows, in FuxiCTR too.
_INFER_BYTES = 1 << 20
_QUOTE, _NEWLINE = ord('"'), ord("\n")
# Of the rows left out, so many are named.
_NAMED = 5


@dataclass
class SkippedRows:
    """Rows that were left out.

    Attributes:
        count: How many.
        named: What is wrong with the first of them, and where.
    """

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Count a row."""
        self.count += 1
        if len(self.named) < _NAMED:
            self.named.append(problem)


@dataclass(frozen=True)
class CsvFile:
    """One csv file with a header line, plain or gzipped.

    Attributes:
        path: The file; a name that ends in .gz is decompressed.
        separator: A single character.
        declared: Column -> its type; polars infers the types of the others.
        skipped: Where bad lines are counted, which are left out. Bad is a line with too few or too
            many fields, with bytes that are not UTF-8, or with a text where its column holds
            numbers. None raises for the first.
    """

    path: Path
    separator: str
    declared: dict[str, pl.DataType]
    skipped: SkippedRows | None = None

    @cached_property
    def schema(self) -> pl.Schema:
        """Column -> type, in the order of the file.

        Raises:
            DataError: There is no header line, or it cannot be read.
        """
        header, rows = next(self._blocks(_INFER_BYTES), (b"", b""))
        if not header.strip():
            raise DataError(f"{self.path}: the file is empty, it has no header line")
        known = {name: self.declared[name] for name in self._names(header) if name in self.declared}
        try:
            return pl.scan_csv(
                header + rows, separator=self.separator, schema_overrides=known
            ).collect_schema()
        except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: line 1: no header can be read ({error})") from error

    def frames(
        self, columns: Sequence[str] | None = None, limit: int | None = None
    ) -> Iterator[pl.DataFrame]:
        """Read the rows, one frame per block.

        Args:
            columns: The columns to parse, None for all.
            limit: How many rows to read at most.

        Raises:
            DataError: A line has too few or too many fields, a field is not of its column's type,
                or the text is not UTF-8; the message names the line.
        """
        names = list(self.schema)
        chosen = [name for name in names if columns is None or name in columns]
        line, left = 2, limit
        for _, rows in self._blocks(_BLOCK_BYTES):
            if left == 0:
                return
            if rows:
                frame = self._parse(rows, line, chosen)
                if left is not None:
                    frame = frame.head(left)
                    left -= frame.height
                line += _count(rows, _NEWLINE)
                yield frame

    def _names(self, header: bytes) -> list[str]:
        return pl.read_csv(header, separator=self.separator, n_rows=0).columns

    def _parse(self, rows: bytes, first_line: int, columns: list[str]) -> pl.DataFrame:
        if _has_fields(rows, self.separator, len(self.schema)):
            with suppress(pl.exceptions.PolarsError):
                return self._read(rows, self.schema, columns)
        try:
            good = self._good_rows(rows, first_line, columns)
            if good:
                return self._read(good, self.schema, columns)
        except (pl.exceptions.PolarsError, csv.Error) as error:
            # What follows the first paragraph is advice on polars' own options.
            reason = str(error).split("\n\n")[0][:300]
            raise DataError(f"{self.path}: after line {first_line - 1}: {reason}") from error
        return pl.DataFrame(schema={name: self.schema[name] for name in columns})

    def _read(
        self, rows: bytes, schema: Mapping[str, pl.DataType], columns: Sequence[str]
    ) -> pl.DataFrame:
        return pl.read_csv(
            rows,
            has_header=False,
            separator=self.separator,
            schema=schema,
            columns=[list(schema).index(name) for name in columns],
        )

    def _good_rows(self, rows: bytes, first_line: int, columns: list[str]) -> bytes:
        """Return the rows that are as the header and the columns' types say; refuse the others."""
        whole, numbers = self._whole_rows(rows, first_line)
        if not whole:
            return b""
        texts = self._read(b"".join(whole), dict.fromkeys(self.schema, pl.String), columns)
        good = np.ones(len(whole), bool)
        for name in columns:
            dtype, values = self.schema[name], texts[name]
            if dtype.is_numeric():
                bad = values.is_not_null() & values.cast(dtype, strict=False).is_null()
                for at in np.flatnonzero(bad.to_numpy() & good):
                    self._refuse(
                        f"line {numbers[at]}, column {name!r}: {values[int(at)]!r} is no {dtype}",
                        "; mend the file, or the column's dtype",
                    )
                good &= ~bad.to_numpy()
        return b"".join(row for row, keep in zip(whole, good, strict=True) if keep)

    def _whole_rows(self, rows: bytes, first_line: int) -> tuple[list[bytes], list[int]]:
        """Return the rows with the header's fields, as they stand, and the lines they start at."""
        width = len(self.schema)
        # Bytes that are not UTF-8 become surrogates, which no UTF-8 text holds.
        lines = io.StringIO(rows.decode(errors="surrogateescape"), newline="\n").readlines()
        # A field counts, not what is in it: csv refuses a lone \r, and 128 KiB of text.
        content = re.compile(rf'[^{re.escape(self.separator)}"\n]+')
        short = (content.sub("x", line.replace("\r\n", "\n")) for line in lines)
        reader = csv.reader(short, delimiter=self.separator)
        whole, numbers, start = [], [], 0
        for fields in reader:
            text, line = "".join(lines[start : reader.line_num]), first_line + start
            start = reader.line_num
            try:
                row = text.encode()
            except UnicodeEncodeError as error:
                byte = ord(text[error.start]) - 0xDC00
                self._refuse(f"line {line}: byte 0x{byte:02x} is not UTF-8", "; convert the file")
                continue
            # A single column may be empty, which leaves an empty line.
            if len(fields) == width or (not fields and width == 1):
                whole.append(row)
                numbers.append(line)
            else:
                self._refuse(f"line {line} has {len(fields)} fields, the header {width}")
        return whole, numbers

    def _refuse(self, problem: str, remedy: str = "") -> None:
        """Count a bad row, or raise where none is left out."""
        if self.skipped is None:
            raise DataError(f"{self.path}: {problem}{remedy}")
        self.skipped.add(f"{self.path}: {problem}")

    def _blocks(self, size: int) -> Iterator[tuple[bytes, bytes]]:
        """Cut the file between rows; the first block has the header line beside it."""
        try:
            with self._open() as file:
                header = _header_of(file)
                # One buffer for all blocks: fresh memory costs more than to copy what it takes.
                buffer, filled = bytearray(size), 0
                while read := file.readinto(memoryview(buffer)[filled:]):
                    filled += read
                    end = _end_of_rows(buffer, filled)
                    if end == 0 and filled > max(4 * size, _BLOCK_BYTES):
                        raise DataError(f"{self.path}: a quote is opened and never closed")
                    yield header, bytes(memoryview(buffer)[:end])
                    header, filled = b"", filled - end
                    buffer[:filled] = buffer[end : end + filled]
                    if filled == len(buffer):
                        buffer.extend(bytes(size))
                yield header, bytes(memoryview(buffer)[:filled])
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{self.path}: is no whole gzip file ({error})") from error

    def _open(self) -> io.BufferedIOBase:
        return gzip.open(self.path) if self.path.suffix == ".gz" else open(self.path, "rb")


def _header_of(file: io.BufferedIOBase) -> bytes:
    header = file.readline()
    while header.count(b'"') % 2 and (more := file.readline()):
        header += more
    return header.removeprefix(b"\xef\xbb\xbf")


def _inside_quotes(data: bytes | np.ndarray) -> np.ndarray:
    """Say of each byte whether an odd number of quotes lies before it or is it."""
    # Counting modulo 256 keeps what is odd, in a byte instead of eight.
    quotes = np.frombuffer(data, np.uint8) == _QUOTE
    return (np.cumsum(quotes, dtype=np.uint8) & 1).astype(bool)


def _end_of_rows(buffer: bytearray, filled: int) -> int:
    if buffer.find(b'"', 0, filled) < 0:
        return buffer.rfind(b"\n", 0, filled) + 1
    data = np.frombuffer(buffer, np.uint8, filled)
    found = np.flatnonzero((data == _NEWLINE) & ~_inside_quotes(data))
    return int(found[-1]) + 1 if len(found) else 0


def _count(data: bytes, byte: int) -> int:
    """Count a byte; ``bytes.count`` is slow where there are many."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == byte))


def _has_fields(rows: bytes, separator: str, count: int) -> bool:
    """Say whether the rows have ``count`` fields on average: quick, and wrong for no broken file.

    A row too long and one too short could balance; polars itself refuses the one too long.
    """
    if b'"' in rows:
        data, outside = np.frombuffer(rows, np.uint8), ~_inside_quotes(rows)
        separators = int(((data == ord(separator)) & outside).sum())
        lines = int(((data == _NEWLINE) & outside).sum())
    else:
        separators, lines = _count(rows, ord(separator)), _count(rows, _NEWLINE)
    lines += not rows.endswith(b"\n")
    return separators == lines * (count - 1)
