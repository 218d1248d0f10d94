"""Raw rows that come after training: read in bounded memory, encoded as the run's data were."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor

from fuxictr_tf4ctr.datasets.columns import typed_columns
from fuxictr_tf4ctr.datasets.csv_blocks import CsvFile
from fuxictr_tf4ctr.datasets.fitted import load_processor, read_encoder
from fuxictr_tf4ctr.datasets.job import raw_files
from fuxictr_tf4ctr.datasets.raw import DTYPES, ParquetFile, check_source_columns, separator_of
from fuxictr_tf4ctr.datasets.skipping import SkippedRows, SkippingCsvFile
from fuxictr_tf4ctr.datasets.transform import column_encoders, encode_columns
from fuxictr_tf4ctr.errors import DataError, SettingsError


@dataclass(frozen=True)
class RawRows:
    """Some rows as they were read.

    Attributes:
        path: The file they came from.
        first: Number of the first row in it, from 0.
        frame: The rows.
    """

    path: Path
    first: int
    frame: pl.DataFrame


@dataclass(frozen=True)
class EncodedRows:
    """Some rows as a model takes them.

    Attributes:
        columns: Column -> array [rows] or [rows, width].
        raw: The same rows before.
    """

    columns: dict[str, np.ndarray]
    raw: pl.DataFrame


class RowEncoder:
    """Encode raw rows with the vocabularies and statistics of a run.

    Args:
        folder: Where the fitted encoder lies.
        feature_map: The features the model reads.
        labels: Whether the rows have labels; they must be 0 or 1 where ``binary``.
        binary: Whether the task is binary_classification.
        skipped: Where to count bad rows, which are left out; None raises for the first.

    Attributes:
        seen: Categorical or sequence column -> how many values were encoded.
        unknown: Column -> how many of them the vocabulary lacks, so that they are one in ``__OOV__``;
            missing values are among them unless ``fill_na`` names a known one.

    Raises:
        DataError: The run keeps no fitted encoder.
        SettingsError: The data set's own processor class is gone or has changed.
    """

    def __init__(
        self,
        folder: Path,
        feature_map: FeatureMap,
        *,
        labels: bool = False,
        binary: bool = True,
        skipped: SkippedRows | None = None,
    ) -> None:
        self._feature_map = copy.copy(feature_map)
        self._feature_map.labels = feature_map.labels if labels else []
        self._processor = load_processor(folder, self._feature_map, labels=labels)
        self._encoders = column_encoders(self._processor)
        self._binary, self._skipped = binary, skipped
        self._oov = {
            name: tokenizer.vocab["__OOV__"]
            for name, spec in feature_map.features.items()
            if spec["type"] in ("categorical", "sequence")
            and (tokenizer := self._processor.processor_dict.get(f"{name}::tokenizer"))
        }
        self.seen = dict.fromkeys(self._oov, 0)
        self.unknown = dict.fromkeys(self._oov, 0)
        self.labels = self._processor.label_cols

    @property
    def declared(self) -> list[dict[str, Any]]:
        """The columns to be read, as the data set's section declares them."""
        return self._processor.feature_cols

    @property
    def source_columns(self) -> list[str] | None:
        """Names of the raw columns read; None where a preprocess function may read any."""
        columns = self.declared + self.labels
        if any(column.get("preprocess") for column in columns):
            return None
        return [column["name"] for column in columns]

    def encode(self, rows: RawRows) -> EncodedRows:
        """Encode some rows.

        Raises:
            DataError: A column is missing or of another type, or a value is none a model can take:
                a number that is not finite, a list of another length, a label other than 0 or 1.
        """
        frame = _as_declared(rows.frame, self.declared)
        check_source_columns(rows.path, frame.schema, self.declared, self.labels)
        frame = self._without_missing_labels(frame, rows)
        if self._skipped is not None:
            frame = self._without_bad_lists(frame, rows.path)
        try:
            prepared = self._processor.preprocess(frame.lazy()).collect()
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{rows.path}: {str(error).split(chr(10) * 2)[0]}") from error
        columns = encode_columns(prepared, rows.path, self._encoders)
        if self._skipped is not None:
            columns, frame = self._without_bad_numbers(columns, frame, rows.path)
        columns = typed_columns(
            rows.path, columns, self._feature_map, binary=self._binary, first_row=rows.first
        )
        self._count_unknown(columns)
        return EncodedRows(columns, frame)

    def _count_unknown(self, columns: Mapping[str, np.ndarray]) -> None:
        for name, oov in self._oov.items():
            ids = columns[name]
            # A sequence is padded with id 0, which is no value.
            self.seen[name] += ids.size if ids.ndim == 1 else int(np.count_nonzero(ids))
            self.unknown[name] += int((ids == oov).sum())

    def _without_missing_labels(self, frame: pl.DataFrame, rows: RawRows) -> pl.DataFrame:
        """FuxiCTR would take a missing label for 0: true of no row."""
        for label in (column["name"] for column in self.labels):
            if label in frame.columns and frame[label].null_count():
                if self._skipped is None:
                    row = rows.first + frame[label].is_null().arg_max()
                    raise DataError(
                        f"{rows.path}: label {label!r}, row {row} (counted from 0) is missing"
                    )
                frame = self._kept(frame, frame[label].is_not_null(), rows.path, label, "missing")
        return frame

    def _without_bad_lists(self, frame: pl.DataFrame, path: Path) -> pl.DataFrame:
        for name, spec in self._feature_map.features.items():
            if spec["type"] == "embedding" and isinstance(frame.schema.get(name), pl.List):
                good = (frame[name].list.len() == spec["pretrain_dim"]).fill_null(False)
                frame = self._kept(frame, good, path, name, "of another length")
        return frame

    def _without_bad_numbers(
        self, columns: dict[str, np.ndarray], frame: pl.DataFrame, path: Path
    ) -> tuple[dict[str, np.ndarray], pl.DataFrame]:
        good = np.ones(frame.height, bool)
        for name, values in columns.items():
            spec = self._feature_map.features.get(name)
            if spec is None and self._binary:
                fits = (values == 0) | (values == 1)
            elif spec is None or spec["type"] in ("numeric", "embedding"):
                fits = np.isfinite(values).reshape(frame.height, -1).all(1)
            else:
                continue
            for _ in range(int((good & ~fits).sum())):
                self._skipped.add(f"{path}: column {name!r}: a value no model can take")
            good &= fits
        return {n: values[good] for n, values in columns.items()}, frame.filter(pl.Series(good))

    def _kept(
        self, frame: pl.DataFrame, good: pl.Series, path: Path, name: str, problem: str
    ) -> pl.DataFrame:
        for _ in range(frame.height - int(good.sum())):
            self._skipped.add(f"{path}: column {name!r}: {problem}")
        return frame.filter(good)


def read_rows(
    source: str | Path,
    folder: Path,
    encoder: RowEncoder,
    keep: Sequence[str] = (),
    skipped: SkippedRows | None = None,
) -> Iterator[RawRows]:
    """Read csv or parquet files some rows at a time, in order.

    Args:
        source: A file, a folder of files, or a glob pattern.
        folder: Where the fitted encoder lies: csv files are separated as the training data were.
        encoder: Says which columns to read.
        keep: Further columns to read; in csv files as texts, unless a preprocess function might
            read them.
        skipped: Where to count bad lines, which are left out; None raises for the first.

    Raises:
        SettingsError: A column to keep is not there.
        DataError: A file is missing, empty or unreadable, or lacks a column.
    """
    wanted = encoder.source_columns
    types = {c["name"]: DTYPES[c["dtype"]] for c in encoder.declared + encoder.labels}
    if wanted is not None:
        types = dict.fromkeys(keep, pl.String) | types
        wanted = list(dict.fromkeys([*wanted, *keep]))
    files = [
        _open(path, read_encoder(folder)["reading"]["sep"], types, skipped)
        for path in input_files(source)
    ]
    for file in files:
        check_source_columns(file.path, file.schema, encoder.declared, encoder.labels)
        for name in keep:
            if name not in file.schema:
                raise SettingsError(f"{file.path}: no column {name!r} to keep")
            if file.schema[name] != files[0].schema[name]:
                raise DataError(
                    f"{file.path}: column {name!r} is {file.schema[name]}, in {files[0].path} it is "
                    f"{files[0].schema[name]}"
                )
    return _rows_of(source, files, wanted)


def _rows_of(
    source: str | Path, files: Sequence[CsvFile | ParquetFile], columns: list[str] | None
) -> Iterator[RawRows]:
    empty = True
    for file in files:
        first = 0
        for frame in file.frames(columns):
            if frame.height:
                empty = False
                yield RawRows(file.path, first, frame)
                first += frame.height
    if empty:
        raise DataError(f"{source}: holds no row that can be used")


def input_files(source: str | Path) -> list[Path]:
    """List the csv or parquet files meant by a path: a file, a folder, or a glob pattern.

    Raises:
        DataError: There is none, or there are both.
    """
    path = Path(source)
    names = [p.name for p in path.iterdir()] if path.is_dir() else glob(str(path)) or [str(path)]
    parquet = [name.endswith(".parquet") for name in names]
    csv = [name.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")) for name in names]
    if any(parquet) and any(csv):
        raise DataError(f"{source}: holds both csv and parquet files; name those of one kind")
    return [Path(file) for file in raw_files(path, "parquet" if any(parquet) else "csv")]


def _open(
    path: Path, separator: str, types: dict[str, pl.DataType], skipped: SkippedRows | None
) -> CsvFile | ParquetFile:
    if path.suffix == ".parquet":
        return ParquetFile(path)
    separator = separator_of(path, separator)
    if skipped is None:
        return CsvFile(path, separator, types)
    return SkippingCsvFile(path, separator, types, skipped)


def _as_declared(frame: pl.DataFrame, columns: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Give frames made elsewhere the types csv files would give: 7 is the token "7"."""
    texts = []
    for column in columns:
        found = frame.schema.get(column["name"])
        if found is None or column["dtype"] != "str":
            continue
        if found.is_integer() or isinstance(found, pl.Categorical | pl.Enum):
            texts.append(pl.col(column["name"]).cast(pl.String))
    return frame.with_columns(texts)


def reads_raw_files_itself(encoder: RowEncoder) -> bool:
    """Whether the data set's processor class has a ``read_data`` of its own."""
    return type(encoder._processor).read_data is not FeatureProcessor.read_data
