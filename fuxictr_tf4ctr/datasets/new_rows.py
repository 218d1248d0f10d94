"""Rows that come after training: encoded as the run's data were, or vocabularies grown by them.

Where vocabularies grow, every value keeps its id, ``__OOV__`` included; new ones follow, most
frequent first. A value too rare for an id is remembered with its count in
``rare_tokens.parquet``, and counted on later.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor

from fuxictr_tf4ctr.datasets import manifest
from fuxictr_tf4ctr.datasets.csv_files import CsvFile, SkippedRows
from fuxictr_tf4ctr.datasets.feature_map import read_feature_map, typed_columns
from fuxictr_tf4ctr.datasets.fitted import (
    NAME,
    SPECIAL,
    check_types,
    column_encoders,
    encode_columns,
    read_encoder,
    restored_processor,
)
from fuxictr_tf4ctr.datasets.fitting import RARE, ColumnStatistics
from fuxictr_tf4ctr.datasets.job import as_json, raw_files
from fuxictr_tf4ctr.datasets.raw import (
    ParquetFile,
    check_source_columns,
    labels_as_numbers,
    polars_errors,
    separator_of,
    types_to_read,
)
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.names import shown, unknown

_LARGEST = float(np.finfo(np.float32).max)


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
        labels: Whether the rows have labels; they must be 0 or 1 where ``binary``.
        skipped: Where to count bad rows, which are left out; None raises for the first.

    Attributes:
        seen: Categorical or sequence column -> how many values were encoded.
        unknown: Column -> how many of them the vocabulary lacks, which share the id of
            ``__OOV__``; missing values are among them unless ``fill_na`` is a known one.
        separator: Of the csv files of the training data.
        features: The feature columns to read, as the data set's section declares them.
        labels: The label columns, if any are to be read.

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
        content = read_encoder(folder)
        self._processor = restored_processor(content, self._feature_map, labels=labels)
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
        self.separator: str = content["reading"]["sep"]
        self.features, self.labels = self._processor.feature_cols, self._processor.label_cols

    @property
    def source_columns(self) -> list[str] | None:
        """Names of the raw columns to read; None where a preprocess function may read any."""
        columns = self.features + self.labels
        if any(column.get("preprocess") for column in columns):
            return None
        return [column["name"] for column in columns]

    @property
    def reads_files_itself(self) -> bool:
        """Whether the data set's own processor class replaces FuxiCTR's way to read files."""
        return type(self._processor).read_data is not FeatureProcessor.read_data

    def checked(self, frame: pl.DataFrame, path: Path | str) -> pl.DataFrame:
        """Give a frame the types that were declared.

        Raises:
            DataError: A column is missing, or of a type that means something else.
        """
        texts = []
        for column in self.features:
            found = frame.schema.get(column["name"])
            if found is None or column["dtype"] != "str":
                continue
            # As a csv file would have it: the number 7 is the token "7".
            if found.is_integer() or isinstance(found, pl.Categorical | pl.Enum):
                texts.append(pl.col(column["name"]).cast(pl.String))
        frame = labels_as_numbers(frame.with_columns(texts), self.labels)
        check_source_columns(path, frame.schema, self.features, self.labels)
        return frame

    def encode(self, rows: RawRows) -> EncodedRows:
        """Encode some rows.

        Raises:
            DataError: A column is missing or of another type, or a value is none a model can take:
                a number that is not finite, a list of another length, a label other than 0 or 1.
        """
        frame = self.checked(rows.frame, rows.path)
        if self._skipped is None:
            self._refuse_missing_labels(frame, rows)
        with polars_errors(rows.path):
            prepared = self._processor.preprocess(frame.lazy()).collect()
        if self._skipped is not None:
            good = self._good_rows(frame, prepared, rows.path)
            frame, prepared = frame.filter(good), prepared.filter(good)
        columns = dict(encode_columns(prepared, rows.path, self._encoders))
        columns = typed_columns(
            rows.path, columns, self._feature_map, binary=self._binary, first_row=rows.first
        )
        for name, oov in self._oov.items():
            ids = columns[name]
            # A sequence is padded with id 0, which is no value.
            self.seen[name] += ids.size if ids.ndim == 1 else int(np.count_nonzero(ids))
            self.unknown[name] += int((ids == oov).sum())
        return EncodedRows(columns, frame)

    def _refuse_missing_labels(self, frame: pl.DataFrame, rows: RawRows) -> None:
        for name in (column["name"] for column in self.labels):
            # FuxiCTR would take a missing label for 0.
            if name in frame.columns and frame[name].null_count():
                row = rows.first + frame[name].is_null().arg_max()
                raise DataError(f"{rows.path}: label {name!r}, row {row} (counted from 0): missing")

    def _good_rows(self, frame: pl.DataFrame, prepared: pl.DataFrame, path: Path) -> pl.Series:
        """Say which rows a model can take, and count the others."""
        good = pl.repeat(True, frame.height, dtype=pl.Boolean, eager=True)
        for name, fits in self._fitting_values(frame, prepared):
            for value in prepared[name].filter(good & ~fits):
                self._skipped.add(f"{path}: column {name!r}: {value!r} is none a model can take")
            good &= fits
        return good

    def _fitting_values(
        self, frame: pl.DataFrame, prepared: pl.DataFrame
    ) -> Iterator[tuple[str, pl.Series]]:
        for name in (column["name"] for column in self.labels):
            if name == getattr(self._feature_map, "weight_col", None):
                yield name, prepared[name].is_between(0, _LARGEST)
            elif self._binary:
                yield name, prepared[name].is_in([0, 1])
            if name in frame.columns:
                yield name, frame[name].is_not_null()
        for name, spec in self._feature_map.features.items():
            values = prepared[name]
            if spec["type"] == "numeric" and values.dtype.is_float():
                yield name, (values.abs() <= _LARGEST).fill_null(True)
            if spec["type"] == "embedding" and isinstance(values.dtype, pl.List):
                finite = values.list.eval(pl.element().abs() <= _LARGEST).list.all()
                yield name, ((values.list.len() == spec["pretrain_dim"]) & finite).fill_null(False)


def read_rows(
    source: str | Path,
    encoder: RowEncoder,
    keep: Sequence[str] = (),
    skipped: SkippedRows | None = None,
) -> Iterator[RawRows]:
    """Read csv or parquet files some rows at a time, in order.

    Args:
        source: A file, a folder of files, or a glob pattern. Csv files are separated as the
            training data were.
        keep: Further columns to read; in csv files as texts, unless a preprocess function might
            read them.
        skipped: Where to count bad lines, which are left out; None raises for the first.

    Raises:
        SettingsError: A column to keep is not there, or only the data set's own processor class
            knows how to read files.
        DataError: A file is missing, empty or unreadable, or lacks a column.
    """
    if encoder.reads_files_itself:
        raise SettingsError(
            "the data set's feature_processor reads raw files in its own way; read the rows, and "
            "give them to predict_frame of fuxictr_tf4ctr.load(run)"
        )
    columns = encoder.source_columns
    types = types_to_read(encoder.features + encoder.labels)
    if columns is not None:
        types = dict.fromkeys(keep, pl.String) | types
        columns = list(dict.fromkeys([*columns, *keep]))
    files = [
        ParquetFile(path)
        if path.suffix == ".parquet"
        else CsvFile(path, separator_of(path, encoder.separator), types, skipped)
        for path in input_files(source)
    ]
    for file in files:
        encoder.checked(pl.DataFrame(schema=file.schema), file.path)
        for name in keep:
            if name not in file.schema:
                raise SettingsError(f"{file.path}: {unknown('column', name, file.schema)}")
            if file.schema[name] != files[0].schema[name]:
                raise DataError(
                    f"{file.path}: column {name!r} is {file.schema[name]}, in {files[0].path} it "
                    f"is {files[0].schema[name]}"
                )
    return _rows_of(source, files, columns)


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


# What a column may say otherwise than in the ancestor's data; its buckets are compared as they are.
_FREE = ("min_categr_count", "num_buckets")


@dataclass(frozen=True)
class Ancestor:
    """The fitted encoder of a run, to be grown.

    Attributes:
        folder: Where the run keeps feature map, vocabularies and encoder.
        refit_normalizers: Whether numbers are normalised by the new data's statistics.
    """

    folder: Path
    refit_normalizers: bool = False

    @cached_property
    def _content(self) -> dict[str, Any]:
        return read_encoder(self.folder)

    @cached_property
    def specs(self) -> dict[str, dict[str, Any]]:
        """Feature -> its specification in the ancestor's feature map."""
        content = read_feature_map(self.folder / "feature_map.json")
        return {name: spec for entry in content["features"] for name, spec in entry.items()}

    def check(self, features: Sequence[Mapping[str, Any]], num_buckets: int) -> None:
        """Find columns that are not those the ancestor was trained on.

        Args:
            num_buckets: Buckets of a category_processor where the column does not say.

        Raises:
            SettingsError: Columns differ; the message has a line for each.
            DataError: The ancestor keeps no fitted encoder.
        """
        then, now = ({each["name"]: each for each in columns if each["active"] is not False}
                     for columns in (self._content["features"], as_json(features)))  # fmt: skip
        problems = [f"column {name!r} was not there" for name in now if name not in then]
        problems += [f"column {name!r} is not there now" for name in then if name not in now]
        check_types(then.values(), {name: self.specs.get(name, {}) for name in then})
        for name in [name for name in now if name in then]:
            for key in sorted((then[name].keys() | now[name].keys()) - {*_FREE}):
                before, after = then[name].get(key), now[name].get(key)
                if before != after:
                    told = f"{shown(before)} then, {shown(after)} now"
                    problems.append(f"column {name!r}: {key}: {told}")
            before, after = self.specs[name], now[name].get("num_buckets", num_buckets)
            if before.get("category_processor") and before["vocab_size"] != after:
                told = f"{before['vocab_size']} then, {after} now"
                problems.append(f"column {name!r}: num_buckets: {told}")
            if "pretrained_emb" in now[name]:
                problems.append(f"column {name!r}: a pretrained_emb cannot grow")
        if not problems and list(then) != list(now):
            problems.append("the columns are in another order")
        if problems:
            raise SettingsError(
                f"{self.folder.parent} cannot be continued from, its columns differ:\n- "
                + "\n- ".join(problems)
            )

    def made_from(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return sources and settings that an encoding grown from it is made from as well."""
        names = ("feature_map.json", "feature_vocab.json", NAME)
        sources = manifest.describe_files([self.folder / name for name in names])
        return {"continue_from": sources}, {"refit_normalizers": self.refit_normalizers}

    def add_counts(self, statistics: ColumnStatistics) -> bool:
        """Add what the ancestor has counted: its vocabularies, and values too rare for them.

        Returns:
            Whether it has counts of rare values.
        """
        rare = self.folder / RARE
        if rare.is_file():
            for (name,), counts in _read_counts(rare).group_by("column"):
                if name in self._content["tokenizers"]:
                    statistics.add_counted(name, counts.select("token", "count"))
        for name, tokenizer in self._content["tokenizers"].items():
            statistics.add_known(
                name, [token for token in tokenizer["vocab"] if token not in SPECIAL]
            )
        return rare.is_file()

    def normalizers(self) -> Mapping[str, Mapping[str, float]]:
        """Return the statistics that numbers are normalised by, by column."""
        return {} if self.refit_normalizers else self._content["normalizers"]

    def grow(self, processor: FeatureProcessor) -> None:
        """Give the values that the ancestor knows their ids, the others those that follow.

        Args:
            processor: Fitted to the new data and the ancestor's counts; its files are written anew.
        """
        specs = processor.feature_map.features
        for name, old in self._content["tokenizers"].items():
            tokenizer, spec = processor.processor_dict[f"{name}::tokenizer"], specs[name]
            if "share_embedding" not in spec:
                ordered = sorted(tokenizer.vocab, key=tokenizer.vocab.get)
                new = [token for token in ordered if token not in old["vocab"]]
                first = max(old["vocab"].values()) + 1
                tokenizer.vocab = old["vocab"] | {token: first + i for i, token in enumerate(new)}
            tokenizer.max_len = old["max_len"]
            if "max_len" in spec:
                spec["max_len"] = old["max_len"]
        for name, spec in specs.items():
            tokenizer = processor.processor_dict.get(f"{name}::tokenizer")
            if "share_embedding" in spec:
                tokenizer.vocab = processor.processor_dict[
                    f"{spec['share_embedding']}::tokenizer"
                ].vocab
            elif "boundaries" in spec:
                spec["boundaries"] = self.specs[name]["boundaries"]
            if "vocab_size" in spec and tokenizer is not None and tokenizer.vocab:
                grown = max(tokenizer.vocab.values()) + 1
                if "share_embedding" not in spec:
                    processor.feature_map.total_features += grown - spec["vocab_size"]
                spec["vocab_size"] = grown
        processor.feature_map.save(processor.json_file)
        processor.save_vocab(processor.vocab_file)


def _read_counts(file: Path) -> pl.DataFrame:
    texts, count = pl.col("column", "token"), pl.col("count")
    with polars_errors(f"{file}: cannot be read, remove it to count anew"):
        counts = pl.read_parquet(file)
        return counts.select(texts.cast(pl.String), count.cast(pl.get_index_type())).drop_nulls()
