"""Raw files scored into a file, block by block; it appears when it is complete."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import torch

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.files import whole_file
from fuxictr_tf4ctr.runs.loading import LoadedRun
from fuxictr_tf4ctr.runs.scoring import ScoredRows, encoded, score_names, scored

SUFFIXES = (".csv", ".parquet")


def predict_files(
    run: LoadedRun,
    source: str | Path,
    output: str | Path,
    keep: Sequence[str] = (),
    streams: bool = False,
    skip_bad_rows: bool = False,
) -> ScoredRows:
    """Score the rows of raw files and write the scores, in the order of the rows.

    Args:
        run: The run whose model scores.
        source: A csv or parquet file, a folder of such files, or a glob pattern.
        output: A csv or parquet file; it appears when all rows are scored.
        keep: Columns of the input to carry along, before the scores.
        streams: Whether to write the scores of both streams as well.
        skip_bad_rows: Leave bad rows out and count them, instead of raising for the first.

    Raises:
        SettingsError: A column to keep is not there, the output cannot be written, or the model
            does not score its streams.
        DataError: A file is missing, empty or unreadable, lacks a column, or holds a bad row.
    """
    names = score_names(run, streams)
    clash = set(keep) & set(names)
    if clash:
        raise SettingsError(f"column {clash.pop()!r} cannot be kept: scores are so named")
    done = ScoredRows()
    with frame_file(output) as append, torch.no_grad():
        for rows in encoded(run, source, done, keep, labels=False, skip=skip_bad_rows):
            scores = scored(run, rows, names)
            append(rows.raw.select(keep).with_columns(**scores))
    return done


@contextmanager
def frame_file(path: str | Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Lend a function that writes the next rows of one file, the columns those of the first frame.

    Args:
        path: Its name ends in .csv or .parquet. An existing file is replaced at the end.

    Raises:
        SettingsError: It ends otherwise, or its folder does not exist.
        StorageError: The disk is full, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise SettingsError(f"{path}: the name of the output must end in .csv or .parquet")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: the folder does not exist")
    parquet: pq.ParquetWriter | None = None

    def append(frame: pl.DataFrame) -> None:
        nonlocal parquet
        if path.suffix == ".csv":
            # Not by polars into the file itself, past its keeping of errors.
            file.write(frame.write_csv(include_header=not file.written).encode())
        else:
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            parquet = parquet or pq.ParquetWriter(file, table.schema)
            parquet.write_table(table)
        file.check()

    with whole_file(path) as file:
        try:
            yield append
        finally:
            if parquet is not None:
                parquet.close()
