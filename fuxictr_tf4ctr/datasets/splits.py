"""The rows of an encoding on their way in: opened, preprocessed by FuxiCTR, counted, encoded."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from fuxictr.preprocess import FeatureProcessor
from tqdm import tqdm

from fuxictr_tf4ctr.datasets.fitted import ColumnEncoder, encode_columns
from fuxictr_tf4ctr.datasets.fitting import ColumnStatistics, split_rows
from fuxictr_tf4ctr.datasets.job import EncodingJob
from fuxictr_tf4ctr.datasets.raw import DTYPES, RawFiles, check_source_columns
from fuxictr_tf4ctr.errors import DataError, SettingsError

LOG = logging.getLogger(__name__)

# Rows counted and encoded at a time.
_CHUNK_ROWS = 100_000


@dataclass(frozen=True)
class Split:
    """The rows of one split on their way in.

    Attributes:
        name: "train", "valid" or "test".
        path: Where they come from, for messages.
        files: Their raw files; None where the processor reads them itself.
        frame: The rows after FuxiCTR's preprocessing, lazily.
    """

    name: str
    path: str
    files: RawFiles | None
    frame: pl.LazyFrame

    def batches(self) -> Iterator[pl.DataFrame]:
        """Stream the preprocessed rows in order, in bounded memory."""
        yield from _stream(self.path, self.files, self.frame)


def open_splits(job: EncodingJob, processor: FeatureProcessor) -> dict[str, Split]:
    """Open all splits, check their columns and put FuxiCTR's preprocessing before them.

    Args:
        job: The encoding; its files may be a part of the data set's.
        processor: Its processor.

    Returns:
        Split -> its rows, in FuxiCTR's order of splits.

    Raises:
        SettingsError: A preprocess function does not take its arguments.
        DataError: A file is unreadable or lacks a column.
    """
    raw = {split: _open(job, processor, split) for split in job.patterns}
    files = {split: opened[0] for split, opened in raw.items()}
    frames = {split: opened[1] for split, opened in raw.items()}
    if job.splitting:
        frames |= _split_off(job, files["train"], frames["train"])
    splits = {}
    for split in job.splits():
        path, source = job.pattern(split), files[split if split in files else "train"]
        with _polars_errors(path, source):
            try:
                frame = processor.preprocess(frames[split])
                frame.collect_schema()
            except TypeError as error:  # a preprocess function called with the wrong arguments
                raise SettingsError(f"preprocess: {error}") from error
        splits[split] = Split(split, path, source, frame)
    return splits


def _open(
    job: EncodingJob, processor: FeatureProcessor, split: str
) -> tuple[RawFiles | None, pl.LazyFrame]:
    path = job.patterns[split]
    files = None
    with _polars_errors(path):
        if job.processor_class.read_data is FeatureProcessor.read_data:
            declared = {c["name"]: DTYPES[c["dtype"]] for c in job.features + job.labels}
            labels = [c["name"] for c in job.labels if not c.get("preprocess")]
            sep, n_rows = job.reading["sep"], job.reading["n_rows"]
            files = RawFiles(job.files[split], sep, n_rows, declared, labels)
            frame = files.frame()
        else:
            frame = processor.read_data(path, **job.reading)
        schema = frame.collect_schema()
        check_source_columns(path, schema, job.features, job.labels)
    return files, frame


def warn_of_missing_labels(path: str, files: RawFiles | None) -> None:
    """Log how many labels were missing when the files were last read."""
    for name, count in (files.missing if files is not None else {}).items():
        if count:
            LOG.warning("%s: FuxiCTR fills %d missing %r", path, count, name)


def _split_off(
    job: EncodingJob, files: RawFiles | None, frame: pl.LazyFrame
) -> dict[str, pl.LazyFrame]:
    path = job.patterns["train"]
    labels = frame.select(column["name"] for column in job.labels)
    rows = sum(batch.height for batch in _stream(path, files, labels))
    warn_of_missing_labels(path, files)
    try:
        return split_rows(frame, rows, **job.splitting)
    except ValueError as error:
        raise DataError(f"{path}: valid_size and test_size cannot be split off: {error}") from error


def _stream(path: str, files: RawFiles | None, frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    with _polars_errors(path, files):
        batches = frame.collect_batches(
            chunk_size=_CHUNK_ROWS, maintain_order=True, engine="streaming"
        )
        yield from batches if files is None else files.paced(batches)


@contextmanager
def _polars_errors(path: str, files: RawFiles | None = None) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        if files is not None and files.error is not None:
            raise files.error from error
        # What follows the first paragraph is advice on polars' own options, or its query plan.
        raise DataError(f"{path}: {str(error).split(chr(10) * 2)[0]}") from error


def watched(split: Split, verb: str) -> Iterator[pl.DataFrame]:
    """Stream the rows of a split, with a progress bar on a terminal."""
    LOG.info("%s the rows of %s", verb, split.path)
    with tqdm(desc=f"{verb} {split.name}", unit=" rows", unit_scale=True, disable=None) as progress:
        for batch in split.batches():
            yield batch
            progress.update(batch.height)


class Passes(Protocol):
    """Where the two passes are made."""

    def count(
        self,
        job: EncodingJob,
        splits: Mapping[str, Split],
        statistics: ColumnStatistics,
        folder: Path,
    ) -> None:
        """Add the rows of all splits to the statistics.

        Args:
            job: The encoding.
            splits: Its splits.
            statistics: Where to add them.
            folder: For files that last as long as the encoding.
        """

    def encoded(
        self,
        job: EncodingJob,
        split: Split,
        encoders: Mapping[str, ColumnEncoder],
        folder: Path,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Encode the rows of one split.

        Args:
            job: The encoding.
            split: The split.
            encoders: Column -> its encoder.
            folder: For files that last as long as the encoding.

        Yields:
            Column -> [rows] or [rows, width], for some rows at a time, in their order.
        """


class _Here:
    """In this process, on all its cores."""

    def count(
        self,
        job: EncodingJob,
        splits: Mapping[str, Split],
        statistics: ColumnStatistics,
        folder: Path,
    ) -> None:
        for split in splits.values():
            count_split(split, statistics)

    def encoded(
        self,
        job: EncodingJob,
        split: Split,
        encoders: Mapping[str, ColumnEncoder],
        folder: Path,
    ) -> Iterator[dict[str, np.ndarray]]:
        with ThreadPoolExecutor() as pool:
            for batch in watched(split, "Encode"):
                yield encode_columns(batch, split.path, encoders, pool)


HERE = _Here()


def count_split(split: Split, statistics: ColumnStatistics) -> None:
    """Add the rows of a split to the statistics: all columns of train, of others the meta ones."""
    if split.name == "train":
        for batch in watched(split, "Count"):
            statistics.add_train(batch)
    elif statistics.meta_columns:
        only_meta = dataclasses.replace(split, frame=split.frame.select(statistics.meta_columns))
        for batch in watched(only_meta, "Count"):
            statistics.add_other(batch)
