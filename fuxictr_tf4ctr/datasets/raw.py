"""Raw csv and parquet files as one lazy frame per split, streamed in bounded memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from fuxictr_tf4ctr.datasets.csv_blocks import CsvFile
from fuxictr_tf4ctr.errors import DataError

SUFFIXES = {"csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz"), "parquet": (".parquet",)}
# As FuxiCTR gives its dtypes to polars.
DTYPES = {"str": pl.String, "int": pl.Int64, "float": pl.Float64, "list": pl.List}


class RawFiles:
    """The raw files of one split, read one after the other.

    Args:
        files: All csv or all parquet files.
        separator: Of csv files. In files called .tsv a comma stands for the tab.
        n_rows: How many rows to read of each file, None for all.
        declared: Column -> its type in csv files.
        watched: Columns whose missing values are to be counted.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        separator: str = ",",
        n_rows: int | None = None,
        declared: dict[str, pl.DataType] | None = None,
        watched: Sequence[str] = (),
    ) -> None:
        self.files = [Path(file) for file in files]
        self.n_rows = n_rows
        self.error: DataError | None = None
        self._nulls = dict.fromkeys(watched, 0)
        self._csv = [
            CsvFile(file, _separator(file, separator), declared or {})
            for file in self.files
            if file.suffix != ".parquet"
        ]

    def frame(self) -> pl.LazyFrame:
        """Return the rows of all files as one lazy frame.

        Raises:
            DataError: The files differ in their columns or are unreadable.
        """
        if not self._csv:
            frames = [pl.scan_parquet(file, n_rows=self.n_rows, glob=False) for file in self.files]
            _check_same(self.files, [frame.collect_schema() for frame in frames])
            return pl.concat(frames)
        schemas = [file.schema for file in self._csv]
        _check_same(self.files, schemas)
        return register_io_source(self._stream, schema=schemas[0])

    def missing(self) -> dict[str, int]:
        """Count the missing values of the watched columns, in csv files as they were last read."""
        if self._csv:
            return self._nulls
        counts = self.frame().select(pl.col(*self._nulls).null_count()).collect()
        return {name: counts[name][0] for name in self._nulls}

    def _stream(
        self,
        columns: list[str] | None,
        predicate: pl.Expr | None,
        limit: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        left = limit
        self._nulls = dict.fromkeys(self._nulls, 0)
        try:
            for file in self._csv:
                for frame in file.frames(columns, self.n_rows):
                    frame = frame if columns is None else frame.select(columns)
                    if left is not None:
                        frame = frame.head(left)
                        left -= frame.height
                    for name in self._nulls.keys() & frame.columns:
                        self._nulls[name] += frame[name].null_count()
                    yield frame if predicate is None else frame.filter(predicate)
                    if left == 0:
                        return
        except DataError as error:
            self.error = error  # polars reports it as one of its own
            raise


def _separator(file: Path, separator: str) -> str:
    return "\t" if separator == "," and ".tsv" in file.suffixes else separator


def _check_same(files: Sequence[Path], schemas: Sequence[Any]) -> None:
    for file, schema in zip(files, schemas, strict=True):
        for name, dtype in schemas[0].items():
            if schema.get(name) != dtype:
                there = "is missing" if name not in schema else f"is {schema[name]}"
                raise DataError(f"{file}: column {name!r} {there}, in {files[0]} it is {dtype}")
        if list(schema) != list(schemas[0]):
            raise DataError(f"{file}: has other columns, or another order, than {files[0]}")
