"""Frames written block by block to one csv or parquet file, which appears when it is complete."""

import os
from pathlib import Path
from types import TracebackType

import polars as pl
import pyarrow.parquet as pq

from fuxictr_tf4ctr.errors import DataError, SettingsError

SUFFIXES = (".csv", ".parquet")


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
