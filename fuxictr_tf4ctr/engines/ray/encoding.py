"""A data set of many files, counted and encoded file by file across a Ray cluster.

Ids and vocabularies are those of encoding on one machine: counts are added up in the order of the
files, and one process fits from them and writes the encoded rows in their order. Means and standard
deviations of normalizers may differ in their last digits, as they are added up in other parts.
"""

import os
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
from fuxictr_tf4ctr.datasets.splits import HERE, Split, count_split, open_splits
from fuxictr_tf4ctr.datasets.stored import H5Writer, opened
from fuxictr_tf4ctr.engines.ray import connected, in_folder
from fuxictr_tf4ctr.errors import EngineError, SettingsError

# Rows copied at a time from a part into the split's file.
_ROWS = 100_000


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


class _OnRay:
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
            _count.remote(job.of_file(name, file), name, str(folder.resolve()), os.getcwd())
            for name in counted
            for file in job.files[name]
        ]
        for part in _in_order(tasks):
            statistics.take_in(part)

    def encoded(
        self,
        job: EncodingJob,
        split: Split,
        encoders: Mapping[str, ColumnEncoder],
        folder: Path,
    ) -> Iterator[dict[str, np.ndarray]]:
        shared = ray.put(dict(encoders))
        tasks = []
        for number, file in enumerate(job.files[split.name]):
            part = folder.resolve() / f"{split.name}.{number}.h5"
            tasks.append(
                _encode.remote(
                    job.of_file(split.name, file), split.name, shared, str(part), os.getcwd()
                )
            )
        for part, rows, missing in _in_order(tasks):
            for name, count in missing.items():
                split.files.missing[name] += count
            if rows:
                with opened(part) as file:
                    for start, stop in file.blocks(rows):
                        yield file.read(list(encoders), start, stop)
            part.unlink()


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
def _count(job: EncodingJob, name: str, staging: str, folder: str) -> ColumnStatistics:
    """Count the rows of one file."""
    with in_folder(folder):
        statistics = ColumnStatistics(job.features, job.min_categr_count, Path(staging))
        count_split(_opened(job, name, staging), statistics)
        return statistics


@ray.remote
def _encode(
    job: EncodingJob, name: str, encoders: dict[str, ColumnEncoder], part: str, folder: str
) -> tuple[Path, int, dict[str, int]]:
    """Encode the rows of one file into a part; return it, its rows, and how many labels lacked."""
    with in_folder(folder):
        split = _opened(job, name, str(Path(part).parent))
        with H5Writer(part) as writer:
            for columns in HERE.encoded(job, split, encoders, Path(part).parent):
                writer.append(columns)
        return Path(part), writer.rows, split.files.missing


def _opened(job: EncodingJob, name: str, staging: str) -> Split:
    return open_splits(job, job.processor(Path(staging)))[name]


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
