"""A data set of many files, counted and encoded file by file across a Ray cluster.

Ids and vocabularies are those of encoding on one machine: counts are added up in the order of the
files, and one process fits from them and writes the encoded rows in their order. Means and standard
deviations of normalizers may differ in their last digits, as they are added up in other parts.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
from fuxictr.preprocess import FeatureProcessor
from ray.exceptions import RayError, RayTaskError

from fuxictr_tf4ctr.datasets import EncodedDataset, encode_dataset
from fuxictr_tf4ctr.datasets.fitted import ColumnEncoder
from fuxictr_tf4ctr.datasets.fitting import ColumnStatistics
from fuxictr_tf4ctr.datasets.job import EncodingJob
from fuxictr_tf4ctr.datasets.splits import (
    Passes,
    Split,
    count_split,
    encode_split,
    kept_rows,
    open_splits,
)
from fuxictr_tf4ctr.datasets.stored import CHUNK_ROWS, H5Writer, opened
from fuxictr_tf4ctr.engines.ray import connected, in_folder
from fuxictr_tf4ctr.errors import EngineError, SettingsError


def encode_on_ray(params: Mapping[str, Any], address: str | None) -> EncodedDataset:
    """Make an encoded data set available, as :func:`encode_dataset` does, its rows by a cluster.

    Args:
        params: FuxiCTR's parameters; raw files and ``data_root`` must be seen by all hosts.
        address: The cluster; see :func:`connected`.

    Raises:
        SettingsError: Rows of one file depend on those of others.
        UserError: As :func:`encode_dataset`, or a host was lost too often.
    """
    with connected(address, {"CPU": 1}):
        return encode_dataset(params, _OnRay())


class _OnRay(Passes):
    """The two passes, as a task for each file."""

    def count(
        self,
        job: EncodingJob,
        splits: Mapping[str, Split],
        statistics: ColumnStatistics,
        folder: Path,
    ) -> None:
        _check(job)
        counted = [name for name in splits if name == "train" or statistics.meta_columns]
        tasks = [
            _count.remote(job.of_file(name, file), name, str(part), os.getcwd())
            for name in counted
            for file, part in _parts(job, name, folder)
        ]
        for part, missing in _in_order(tasks):
            statistics.take_in(part)
            for (name, column), count in missing.items():
                splits[name].files.missing[column] += count

    def encoded(
        self,
        job: EncodingJob,
        split: Split,
        encoders: Mapping[str, ColumnEncoder],
        folder: Path,
    ) -> Iterator[dict[str, np.ndarray]]:
        shared = ray.put(dict(encoders))
        tasks = []
        for file, part in _parts(job, split.name, folder):
            part_of = job.of_file(split.name, file)
            tasks.append(_encode.remote(part_of, split.name, shared, str(part), os.getcwd()))
        for part, rows, missing in _in_order(tasks):
            for name, count in missing.items():
                split.files.missing[name] += count
            if rows:
                with opened(part) as file:
                    for start in range(0, rows, CHUNK_ROWS):
                        yield file.read(list(encoders), start, min(start + CHUNK_ROWS, rows))
            part.unlink()
            shutil.rmtree(_kept(part), ignore_errors=True)


def _parts(job: EncodingJob, name: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Return the files of a split, and where each one's encoded rows go."""
    for number, file in enumerate(job.files[name]):
        yield file, folder.resolve() / f"{name}.{number}.h5"


def _kept(part: Path) -> Path:
    return kept_rows(part.parent, part.stem)


def _check(job: EncodingJob) -> None:
    if job.splitting:
        raise SettingsError(
            "valid_size and test_size split all rows at once: give every split its own files, or "
            "encode without --engine ray"
        )
    if job.processor_class.read_data is not FeatureProcessor.read_data:
        raise SettingsError(
            f"{job.processor_class.__name__} reads files its own way: encode without --engine ray"
        )


@ray.remote
def _count(
    job: EncodingJob, name: str, part: str, folder: str
) -> tuple[ColumnStatistics, dict[tuple[str, str], int]]:
    """Count the rows of one file; return also how many labels lacked, if it is not read again."""
    with in_folder(folder):
        kept = _kept(Path(part))
        statistics = ColumnStatistics(job.features, job.min_categr_count, kept.parent)
        split = _opened(job, name, kept.parent)
        count_split(job, split, statistics, kept)
        missing = split.files.missing if kept.is_dir() else {}
        return statistics, {(name, column): count for column, count in missing.items()}


@ray.remote
def _encode(
    job: EncodingJob, name: str, encoders: dict[str, ColumnEncoder], part: str, folder: str
) -> tuple[Path, int, dict[str, int]]:
    """Encode the rows of one file into a part; return it, its rows, and how many labels lacked."""
    with in_folder(folder):
        split = _opened(job, name, Path(part).parent)
        with H5Writer(part) as writer:
            for columns in encode_split(job, split, encoders, _kept(Path(part))):
                writer.append(columns)
        return Path(part), writer.rows, split.files.missing


def _opened(job: EncodingJob, name: str, staging: Path) -> Split:
    return open_splits(job, job.processor(staging))[name]


def _in_order(tasks: list[ray.ObjectRef]) -> Iterator[Any]:
    """Return what the tasks returned, in their order; on an error cancel those that are left."""
    try:
        while tasks:
            yield ray.get(tasks.pop(0))
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise EngineError(f"the Ray cluster lost a host too often: {error}") from error
    finally:
        for task in tasks:
            ray.cancel(task)
