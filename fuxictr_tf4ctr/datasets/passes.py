"""The two passes over the rows of an encoding: count them, then encode them."""

import dataclasses
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from fuxictr_tf4ctr.datasets.fitting import ColumnStatistics
from fuxictr_tf4ctr.datasets.job import EncodingJob
from fuxictr_tf4ctr.datasets.splits import Split, watched
from fuxictr_tf4ctr.datasets.transform import ColumnEncoder, encode_columns


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
