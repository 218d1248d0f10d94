"""The rows of an encoding on their way in: opened, preprocessed by FuxiCTR, counted, encoded.

Rows that are counted are kept as dictionaries of each block's values, so that no file is parsed
again to encode them: a block's values are looked up once each, whatever its rows.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from fuxictr.preprocess import FeatureProcessor
from tqdm import tqdm

from fuxictr_tf4ctr.datasets.fitted import ColumnEncoder, encode_columns
from fuxictr_tf4ctr.datasets.fitting import ColumnStatistics, coded
from fuxictr_tf4ctr.datasets.job import EncodingJob
from fuxictr_tf4ctr.datasets.raw import RawFiles, check_source_columns, polars_errors, types_to_read
from fuxictr_tf4ctr.errors import DataError, SettingsError, StorageError
from fuxictr_tf4ctr.files import need_space
from fuxictr_tf4ctr.names import unknown

LOG = logging.getLogger(__name__)

# Rows counted and encoded at a time.
_CHUNK_ROWS = 100_000
_SPLIT_SEED = 2023


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
        with polars_errors(path, source):
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
    path, split_by = job.patterns[split], job.splitting.get("split_by")
    files = None
    with polars_errors(path):
        if job.processor_class.read_data is FeatureProcessor.read_data:
            declared = types_to_read(job.features + job.labels)
            labels = [c for c in job.labels if not c.get("preprocess")]
            sep, n_rows = job.reading["sep"], job.reading["n_rows"]
            if split_by is not None:
                declared.setdefault(split_by, pl.String)
            files = RawFiles(job.files[split], sep, n_rows, declared, labels)
            frame = files.frame()
        else:
            frame = processor.read_data(path, **job.reading)
        schema = frame.collect_schema()
        check_source_columns(path, schema, job.features, job.labels)
        if split_by is not None and split_by not in schema:
            raise DataError(f"{path}: split_by: {unknown('column', split_by, schema)}")
    return files, frame


def warn_of_missing_labels(path: str, files: RawFiles | None) -> None:
    """Log how many labels were missing when the files were last read."""
    for name, count in (files.missing if files is not None else {}).items():
        if count:
            LOG.warning("%s: FuxiCTR fills %d missing %r", path, count, name)


def _split_off(
    job: EncodingJob, files: RawFiles | None, frame: pl.LazyFrame
) -> dict[str, pl.LazyFrame]:
    path, split_by = job.patterns["train"], job.splitting.get("split_by")
    there = frame.collect_schema().names()
    # Labels that preprocess makes are not there; any column counts the rows.
    labels = [column["name"] for column in job.labels if column["name"] in there]
    rows, keys = 0, []
    for batch in _stream(path, files, frame.select({*labels, split_by or (labels or there)[0]})):
        rows += batch.height
        keys += [] if split_by is None else [batch[split_by]]
    warn_of_missing_labels(path, files)
    try:
        return split_rows(frame, rows, pl.concat(keys) if keys else None, job.splitting)
    except ValueError as error:
        raise DataError(f"{path}: valid_size and test_size cannot be split off: {error}") from error


def split_rows(
    frame: pl.LazyFrame, rows: int, keys: pl.Series | None, splitting: Mapping[str, Any]
) -> dict[str, pl.LazyFrame]:
    """Split validation and test rows off the training rows.

    As in FuxiCTR, a size below 1 is a share of all rows, rounded down; "sequential" takes the
    last rows for test and those before them for validation. "random" draws without replacement,
    the same rows for every experiment, whatever its seed; they keep the order of the file. "time"
    takes the latest rows, "group" groups drawn at random: rows of one time or group stay together,
    so that the sizes are met as nearly as they allow.

    Args:
        keys: Time or group of each row [rows], if they decide.
        splitting: ``sizes``: "valid" and "test" -> rows, or share of the rows; ``split_type``.

    Returns:
        Split -> its rows; "train" first, the others where their size is not 0.

    Raises:
        ValueError: No row would be left for training, a split would get none, or a time is none.
    """
    sizes, split_type = splitting["sizes"], splitting["split_type"]
    counts = {
        split: int(rows * sizes[split]) if sizes[split] < 1 else int(sizes[split])
        for split in ("valid", "test")
        if sizes.get(split)
    }
    left = rows - sum(counts.values())
    if left < 1 or not all(counts.values()):
        raise ValueError(f"of {rows} rows, {left} would be left for train, {counts} split off")
    stops = np.cumsum([left, *counts.values()])
    names = ["train", *counts]
    if split_type == "sequential":
        starts = [0, *stops]
        return {
            name: frame.slice(start, stop - start)
            for name, start, stop in zip(names, starts, stops, strict=False)
        }
    random = np.random.Generator(np.random.PCG64(_SPLIT_SEED))
    if keys is None:
        chosen = np.empty(rows, np.uint8)
        for number, part in enumerate(np.split(random.permutation(rows), stops[:-1])):
            chosen[part] = number
    else:
        keys = as_times(keys) if split_type == "time" else keys.cast(pl.String).fill_null("")
        places = keys.rank("dense").to_numpy() - 1
        if split_type == "group":
            places = random.permutation(places.max() + 1)[places]
        ends = np.cumsum(np.bincount(places))
        last = [abs(ends - stop).argmin() for stop in stops[:-1]]
        chosen = np.searchsorted(last, places).astype(np.uint8)
        if not np.bincount(chosen, minlength=len(names)).all():
            raise ValueError(f"its {len(ends)} different values of split_by cannot be divided so")
    return {name: _rows_of(frame, chosen == number) for number, name in enumerate(names)}


def _rows_of(frame: pl.LazyFrame, mask: np.ndarray) -> pl.LazyFrame:
    row = "__row__"
    keep = pl.col(row).map_batches(
        lambda rows: pl.Series(mask[rows.to_numpy()]), pl.Boolean, is_elementwise=True
    )
    return frame.with_row_index(row).filter(keep).drop(row)


def as_times(values: pl.Series) -> pl.Series:
    """Return what orders rows in time: dates and numbers as they are, texts read as either.

    Raises:
        ValueError: One is missing, or no time.
    """
    times = values
    if values.dtype == pl.String:
        times = values.cast(pl.Float64, strict=False)
        if times.is_null().all():
            try:
                times = values.str.to_datetime(strict=False)
            except pl.exceptions.ComputeError:  # no format is that of any value
                times = values.clear(len(values))
    elif not (values.dtype.is_numeric() or values.dtype.is_temporal()):
        raise ValueError(f"column {values.name!r} holds {values.dtype}, no times")
    if times.null_count():
        row = times.is_null().arg_max()
        raise ValueError(
            f"column {values.name!r}: {values[row]!r} in row {row + 1} is no time; a time is a "
            "number, or a date such as 2024-12-31 or 2024-12-31 23:59:59"
        )
    return times


def _stream(path: str, files: RawFiles | None, frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    with polars_errors(path, files):
        batches = frame.collect_batches(
            chunk_size=_CHUNK_ROWS, maintain_order=True, engine="streaming"
        )
        yield from batches if files is None else files.paced(batches)


def watched(split: Split, verb: str) -> Iterator[pl.DataFrame]:
    """Stream the rows of a split, with a progress bar on a terminal."""
    LOG.info("%s the rows of %s", verb, split.path)
    with tqdm(desc=f"{verb} {split.name}", unit=" rows", unit_scale=True, disable=None) as progress:
        for batch in split.batches():
            yield batch
            progress.update(batch.height)


class Passes:
    """The two passes over the rows, made in this process on all its cores."""

    def count(
        self,
        job: EncodingJob,
        splits: Mapping[str, Split],
        statistics: ColumnStatistics,
        folder: Path,
    ) -> None:
        """Add the rows of all splits to the statistics.

        Args:
            folder: For files that last as long as the encoding, rows kept for it among them.
        """
        for name, split in splits.items():
            count_split(job, split, statistics, kept_rows(folder, name))

    def encoded(
        self,
        job: EncodingJob,
        split: Split,
        encoders: Mapping[str, ColumnEncoder],
        folder: Path,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Encode the rows of one split.

        Args:
            folder: That of :meth:`count`.

        Yields:
            Column -> [rows] or [rows, width], for some rows at a time, in their order.
        """
        yield from encode_split(job, split, encoders, kept_rows(folder, split.name), remove=True)


HERE = Passes()


def kept_rows(folder: Path, name: str) -> Path:
    """Return where rows are kept between counting and encoding."""
    return folder / f".{name}.rows"


def count_split(job: EncodingJob, split: Split, statistics: ColumnStatistics, kept: Path) -> None:
    """Add the rows of a split to the statistics: all columns of train, of others the meta ones.

    Args:
        job: The encoding; its files may be a part of the data set's.
        kept: A folder to keep them in for :func:`encode_split`; none is there where they do not
            count, or the disk has no room for them.
    """
    if split.name == "train":
        add = statistics.add_train
    elif statistics.meta_columns:
        add = statistics.add_other
    else:
        return
    with ThreadPoolExecutor() as pool:
        blocks = (coded(batch, job.features, pool) for batch in watched(split, "Count"))
        files = job.files[split.name if split.name in job.files else "train"]
        for rows in _keeping(blocks, kept, sum(map(os.path.getsize, files))):
            add(rows)


def _keeping(
    blocks: Iterable[pa.RecordBatch], folder: Path, needs: int
) -> Iterator[pa.RecordBatch]:
    """Pass blocks of rows on and keep each in a file, if the disk has room for as many bytes."""
    keep = True
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier try
    try:
        need_space(folder, needs)
        folder.mkdir()
    except (OSError, StorageError):
        keep = False
    for number, rows in enumerate(blocks):
        try:
            if keep:
                file = str(folder / f"{number:09d}.arrow")
                with pa.OSFile(file, "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
                    writer.write_batch(rows)
        except OSError as error:
            LOG.info("%s: %s; the raw files will be read once more", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
            keep = False
        yield rows


def encode_split(
    job: EncodingJob,
    split: Split,
    encoders: Mapping[str, ColumnEncoder],
    kept: Path,
    *,
    remove: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Encode the rows of one split.

    Args:
        job: The encoding; its files may be a part of the data set's.
        kept: Where its rows were kept, if they were.
        remove: Whether to remove each of those files once it is read.

    Yields:
        Column -> [rows] or [rows, width], for some rows at a time, in their order.
    """
    with ThreadPoolExecutor() as pool:
        if kept.is_dir():
            blocks = _kept_blocks(split, kept, remove)
        else:
            blocks = (coded(batch, job.features, pool) for batch in watched(split, "Encode"))
        ahead = None
        for rows in blocks:
            encoded = encode_columns(rows, split.path, encoders, pool)
            if ahead is not None:
                yield dict(ahead)  # while the threads encode the next
            ahead = encoded
        if ahead is not None:
            yield dict(ahead)


def _kept_blocks(split: Split, folder: Path, remove: bool) -> Iterator[pa.RecordBatch]:
    LOG.info("Encode the rows of %s", split.path)
    for file in sorted(folder.iterdir()):
        rows = pa.ipc.open_file(pa.py_buffer(file.read_bytes())).get_batch(0)
        if remove:
            file.unlink()
        yield rows
