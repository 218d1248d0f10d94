"""Raw files scored into a file, block by block; it appears when it is complete."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import polars as pl
import pyarrow.parquet as pq
import torch

from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.runs.loading import LoadedRun
from fuxictr_tf4ctr.runs.scoring import STREAMS, ScoredRows, encoded, scored

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
    names = ["y_pred", *(STREAMS if streams else ())]
    clash = set(keep) & set(names)
    if clash:
        raise SettingsError(f"column {clash.pop()!r} cannot be kept: scores are so named")
    writer = FrameWriter(output)
    done = ScoredRows()
    with writer, torch.no_grad():
        for rows in encoded(run, source, done, keep, labels=False, skip=skip_bad_rows):
            scores = scored(run, rows, names)
            writer.append(rows.raw.select(keep).with_columns(**scores))
    return done


class FrameWriter:
    """Write one file.

    Args:
        path: Its name ends in .csv or .parquet. An existing file is replaced at the end.

    Raises:
        SettingsError: It ends otherwise, or its folder does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix not in SUFFIXES:
            raise SettingsError(f"{path}: the name of the output must end in .csv or .parquet")
        if not self.path.parent.is_dir():
            raise SettingsError(f"{path}: the folder does not exist")
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._parquet: pq.ParquetWriter | None = None
        self._begun = False

    def __enter__(self) -> "FrameWriter":
        try:
            self._file = self._partial.open("wb")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error}") from error
        return self

    def append(self, frame: pl.DataFrame) -> None:
        """Write the next rows; the columns are those of the first frame."""
        if self.path.suffix == ".csv":
            frame.write_csv(self._file, include_header=not self._begun)
        else:
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            if self._parquet is None:
                self._parquet = pq.ParquetWriter(self._file, table.schema)
            self._parquet.write_table(table)
        self._begun = True

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._parquet is not None:
                self._parquet.close()
            self._file.close()
            if error_type is None:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)
