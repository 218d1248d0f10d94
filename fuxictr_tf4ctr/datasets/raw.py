"""Raw csv and parquet files as one lazy frame per split, streamed in bounded memory."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from polars import selectors
from polars.io.plugins import register_io_source

from fuxictr_tf4ctr.datasets.csv_files import CsvFile
from fuxictr_tf4ctr.datasets.feature_specs import WEIGHT
from fuxictr_tf4ctr.errors import DataError
from fuxictr_tf4ctr.names import nearest

SUFFIXES = {"csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz"), "parquet": (".parquet",)}
# As FuxiCTR gives its dtypes to polars.
DTYPES = {"str": pl.String, "int": pl.Int64, "float": pl.Float64, "list": pl.List}
_PARQUET_ROWS = 100_000
_ROWS_AHEAD = 200_000


class RawFiles:
    """The raw files of one split, read one after the other.

    Args:
        files: All csv or all parquet files.
        separator: Of csv files. In files called .tsv a comma stands for the tab.
        n_rows: How many rows to read of each file, None for all.
        declared: Column -> its type in csv files.
        labels: Label columns, to be made numbers, and their missing values counted.

    Attributes:
        missing: Label column -> how many of its values were missing when last read.
        error: What went wrong when last read; polars reports it as an error of its own.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        separator: str = ",",
        n_rows: int | None = None,
        declared: dict[str, pl.DataType] | None = None,
        labels: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._files: list[CsvFile | ParquetFile] = [
            ParquetFile(Path(file))
            if Path(file).suffix == ".parquet"
            else CsvFile(Path(file), separator_of(Path(file), separator), declared or {})
            for file in files
        ]
        self._n_rows = n_rows
        self._pace = _Pace()
        self._labels = labels
        self.missing = dict.fromkeys((each["name"] for each in labels), 0)
        self.error: DataError | None = None

    def frame(self) -> pl.LazyFrame:
        """Return the rows of all files as one lazy frame.

        Raises:
            DataError: The files differ in their columns or are unreadable.
        """
        first = self._files[0]
        for file in self._files:
            for name, dtype in first.schema.items():
                found = file.schema.get(name)
                if found != dtype:
                    there = "is missing" if found is None else f"is {found}"
                    raise DataError(
                        f"{file.path}: column {name!r} {there}, in {first.path} it is {dtype}"
                    )
            if list(file.schema) != list(first.schema):
                raise DataError(
                    f"{file.path}: has other columns, or another order, than {first.path}"
                )
        empty = labels_as_numbers(first.schema.to_frame(), self._labels)
        return register_io_source(self._stream, schema=empty.schema)

    def paced(self, batches: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Pass on what was made of :meth:`frame`, and let the files be read no faster than that.

        Polars itself would pile up batches before a consumer slower than the reading.
        """
        return self._pace.consumed(batches)

    def _stream(
        self,
        columns: list[str] | None,
        predicate: pl.Expr | None,
        limit: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        left = limit
        self.missing = dict.fromkeys(self.missing, 0)
        try:
            for file in self._files:
                for frame in file.frames(columns, self._n_rows):
                    frame = frame if columns is None else frame.select(columns)
                    frame = labels_as_numbers(frame, self._labels)
                    if left is not None:
                        frame = frame.head(left)
                        left -= frame.height
                    for name in self.missing.keys() & frame.columns:
                        self.missing[name] += frame[name].null_count()
                    self._pace.produced(frame.height)
                    yield frame if predicate is None else frame.filter(predicate)
                    if left == 0:
                        return
        except DataError as error:
            self.error = error
            raise


class ParquetFile:
    """One parquet file, read some rows at a time; its dictionary columns are texts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Dictionaries differ from file to file, and FuxiCTR fills missing values with new ones.
        dictionary = selectors.categorical() | selectors.enum()
        self._scan = pl.scan_parquet(path, glob=False).with_columns(dictionary.cast(pl.String))

    @cached_property
    def schema(self) -> pl.Schema:
        """Column -> type, in the order of the file.

        Raises:
            DataError: The file is no parquet, or damaged.
        """
        with polars_errors(f"{self.path}: cannot be read as parquet"):
            return self._scan.collect_schema()

    def frames(
        self, columns: Sequence[str] | None = None, limit: int | None = None
    ) -> Iterator[pl.DataFrame]:
        """Read the rows: as :meth:`CsvFile.frames` does."""
        scan = self._scan if columns is None else self._scan.select(columns)
        unreadable = f"{self.path}: cannot be read as parquet"
        with polars_errors(unreadable):
            rows = self._scan.select(pl.len()).collect().item()
        rows = rows if limit is None else min(rows, limit)
        for start in range(0, rows, _PARQUET_ROWS):
            with polars_errors(unreadable):
                frame = scan.slice(start, min(_PARQUET_ROWS, rows - start)).collect()
            yield frame


@contextmanager
def polars_errors(where: str | Path, files: RawFiles | None = None) -> Iterator[None]:
    """Raise DataError for what polars refuses: what went wrong in the files, or what it says."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        if files is not None and files.error is not None:
            raise files.error from error
        # What follows the first paragraph is advice on polars' own options, or its query plan.
        reason = str(error).split("\n\n")[0][:300]
        raise DataError(f"{where}: {reason}") from error


class _Pace:
    """Lets a producer run some rows ahead of a consumer, and on whenever the consumer waits.

    So a query that drops rows, or needs them all before it gives the first, still gets them.
    """

    def __init__(self) -> None:
        self._ahead = 0
        self._consumer_waits = threading.Event()
        self._consumer_waits.set()

    def produced(self, rows: int) -> None:
        """Called by the producer with each block, before it hands it on."""
        self._ahead += rows
        if self._ahead > _ROWS_AHEAD:
            self._consumer_waits.wait()

    def consumed(self, frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Pass the frames on to the consumer."""
        self._ahead = 0
        try:
            for frame in frames:
                self._ahead -= frame.height
                self._consumer_waits.clear()
                yield frame
                self._consumer_waits.set()
        finally:  # nobody is left to wait for
            self._consumer_waits.set()


def types_to_read(columns: Iterable[Mapping[str, Any]]) -> dict[str, pl.DataType]:
    """Return the types by which columns are read from csv files, labels given as words included."""
    return {
        each["name"]: pl.String if each.get("positive") else DTYPES[each["dtype"]]
        for each in columns
    }


def labels_as_numbers(frame: pl.DataFrame, labels: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Make labels 1 where they are what their entry calls ``positive``, else 0, or missing."""
    return frame.with_columns(
        (pl.col(each["name"]).cast(pl.String) == each["positive"]).cast(pl.Float64)
        for each in labels
        if each.get("positive") and each["name"] in frame.columns
    )


def check_source_columns(
    path: str | Path,
    schema: Mapping[str, pl.DataType],
    features: Sequence[Mapping[str, Any]],
    labels: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Raise unless raw data have the columns declared, of the types declared.

    Raises:
        DataError: A column is missing, or of another type.
    """
    for role, columns in (("label", labels), ("column", features)):
        for column in columns:
            name, dtype = column["name"], column["dtype"]
            # A preprocess function may make the column from others.
            if name not in schema and not column.get("preprocess"):
                close = nearest(name, schema) or list(schema)
                hint = "; is sep right?" if len(schema) == 1 else ""
                role = WEIGHT if column.get("type") == WEIGHT else role
                raise DataError(f"{path}: no {role} {name!r}; there: {', '.join(close)}{hint}")
            found = schema.get(name)
            if found is not None and not _agree(column, found):
                of_list = dtype == "str" and isinstance(found, pl.List)
                says = f"its dtype says {dtype}" + ("; set dtype: list" if of_list else "")
                raise DataError(f"{path}: column {name!r} holds {found}, {says}")


def _agree(column: Mapping[str, Any], found: pl.DataType) -> bool:
    dtype = column["dtype"]
    number = found.is_numeric() or found in (pl.Boolean, pl.Null)
    if dtype in ("int", "float"):
        return number
    texts = isinstance(found, pl.Categorical | pl.Enum) or found in (pl.String, pl.Null)
    # Of other values, such as dates, its function may make text; but FuxiCTR fills lists first.
    made = bool(column.get("preprocess")) and not number and not isinstance(found, pl.List)
    return dtype != "str" or texts or made


def separator_of(file: Path, separator: str) -> str:
    """Return what separates the fields of a csv file: in .tsv a tab stands for the comma."""
    return "\t" if separator == "," and ".tsv" in file.suffixes else separator
