"""Bad rows left out on request, each counted and the first ones named."""

import csv
import io
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from fuxictr_tf4ctr.datasets.csv_blocks import CsvFile
from fuxictr_tf4ctr.errors import DataError

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
class SkippingCsvFile(CsvFile):
    """A csv file whose bad lines are left out instead of ending the reading.

    Bad is a line with too few or too many fields, with bytes that are not UTF-8, or with a text
    where its column holds numbers.

    Attributes:
        skipped: Where the lines left out are counted.
    """

    skipped: SkippedRows = field(default_factory=SkippedRows)

    def _parse(self, rows: bytes, first_line: int, columns: list[str]) -> pl.DataFrame:
        try:
            return super()._parse(rows, first_line, columns)
        except DataError:
            good = self._good_rows(rows, first_line, columns)
            if not good:
                return pl.DataFrame(schema={name: self.schema[name] for name in columns})
            return super()._parse(good, first_line, columns)

    def _good_rows(self, rows: bytes, first_line: int, columns: list[str]) -> bytes:
        whole, numbers = self._whole_rows(rows, first_line)
        if not whole:
            return b""
        texts = pl.read_csv(
            b"".join(whole),
            has_header=False,
            separator=self.separator,
            schema=dict.fromkeys(self.schema, pl.String),
        )
        good = np.ones(len(whole), bool)
        for name in columns:
            dtype = self.schema[name]
            if dtype.is_numeric():
                values = texts[name]
                bad = values.is_not_null() & values.cast(dtype, strict=False).is_null()
                for at in np.flatnonzero(bad.to_numpy() & good):
                    line = f"{self.path}: line {numbers[at]}"
                    self.skipped.add(f"{line}, column {name!r}: {values[int(at)]!r} is no {dtype}")
                good &= ~bad.to_numpy()
        return b"".join(row for row, keep in zip(whole, good, strict=True) if keep)

    def _whole_rows(self, rows: bytes, first_line: int) -> tuple[list[bytes], list[int]]:
        """Return the rows with the header's fields, as they stand, and the lines they start at."""
        width = len(self.schema)
        # Bytes that are not UTF-8 become surrogates, which no UTF-8 text holds.
        lines = rows.decode(errors="surrogateescape").splitlines(keepends=True)
        reader = csv.reader(io.StringIO("".join(lines), newline=""), delimiter=self.separator)
        whole, numbers, start = [], [], 0
        for fields in reader:
            text, line = "".join(lines[start : reader.line_num]), first_line + start
            start = reader.line_num
            try:
                row = text.encode()
            except UnicodeEncodeError:
                self.skipped.add(f"{self.path}: line {line} is not UTF-8")
                continue
            # A single column may be empty, which leaves an empty line.
            if len(fields) == width or (not fields and width == 1):
                whole.append(row)
                numbers.append(line)
            else:
                found = f"{self.path}: line {line} has {len(fields)} fields, the header {width}"
                self.skipped.add(found)
        return whole, numbers
