"""Encode raw csv or parquet files once, by FuxiCTR's FeatureProcessor, into h5 files.

Ids, vocabularies and the feature map are FuxiCTR's, to the last digit: its processor computes them.
What is ours is the way around it: no Ray, rows in their order, and a folder that is either complete
or not used.
"""

import copy
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock, Timeout
from fuxictr.preprocess import FeatureProcessor
from tqdm import tqdm

from fuxictr_tf4ctr import __version__
from fuxictr_tf4ctr.datasets import manifest
from fuxictr_tf4ctr.datasets.columns import LABEL_DTYPE, column_dtype
from fuxictr_tf4ctr.datasets.h5 import H5Writer, count_rows, part_files
from fuxictr_tf4ctr.datasets.job import EncodingJob, plan_encoding
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.names import nearest, unknown

LOG = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
FORMATS = ("csv", "parquet", "h5")
# Rows encoded at a time: FuxiCTR's own batch.
_CHUNK_ROWS = 100_000
_STAGING = ".encoding-"


@dataclass(frozen=True)
class EncodedDataset:
    """Where an encoded data set lies.

    Attributes:
        data_dir: The data set's folder, which also holds its vocabularies.
        feature_map_path: FuxiCTR's ``feature_map.json``.
        train: The training rows, an h5 file or a folder of part files.
        valid: The validation rows, if any.
        test: The test rows, if any.
        fingerprint: Hex digest of the sources and of the settings they were encoded with.
        rows: Split -> number of rows.
    """

    data_dir: Path
    feature_map_path: Path
    train: Path
    valid: Path | None
    test: Path | None
    fingerprint: str
    rows: dict[str, int]


def encode_dataset(params: Mapping[str, Any]) -> EncodedDataset:
    """Make an encoded data set available: encode it, or find it encoded already.

    Files of ``data_format`` csv and parquet are encoded into ``data_root/dataset_id``; a later
    call with the same sources and settings uses them again. Files of format h5 are used as they
    are. Processes that encode the same data set at once wait for each other.

    Args:
        params: FuxiCTR's parameters; dataset_id, data_root, data_format, train_data, valid_data,
            test_data, feature_cols, label_col, min_categr_count, sep, n_rows and rebuild_dataset
            are heeded. ``feature_processor`` names the class to encode with:
            a module with a CustomizedFeatureProcessor ("fuxictr.datasets.criteo") or
            "module:Class"; default is FuxiCTR's own.

    Raises:
        SettingsError: A setting is missing or not valid.
        DataError: A file is missing, empty, unreadable or lacks a column.
    """
    data_format = params.get("data_format", "csv")
    if data_format not in FORMATS:
        raise SettingsError(unknown("data_format", data_format, FORMATS))
    data_dir = _data_dir(params)
    sources = {split: path for split in SPLITS if (path := params.get(f"{split}_data"))}
    if "train" not in sources:
        raise SettingsError("train_data is missing")
    if params.get("valid_size") or params.get("test_size"):
        raise SettingsError("valid_size and test_size are not supported: split the file before")
    if data_format == "h5":
        return _encoded_already(data_dir, sources)
    if params.get("rebuild_dataset", True) is False:
        LOG.info("rebuild_dataset is False: use %s as it is", data_dir)
        return _encoded_already(data_dir, {split: data_dir / f"{split}.h5" for split in sources})
    job = plan_encoding(params, data_dir, sources)
    if not manifest.differences(manifest.read(data_dir), data_dir, job.made_from):
        LOG.info("Use the encoded data set %s", data_dir)
    else:
        with _file_errors(data_dir), _lock(data_dir):
            _encode_if_needed(job)
    return _published(data_dir)


def _data_dir(params: Mapping[str, Any]) -> Path:
    for key in ("dataset_id", "data_root"):
        if not params.get(key):
            raise SettingsError(f"{key} is missing")
    dataset_id = str(params["dataset_id"])
    if Path(dataset_id).name != dataset_id or dataset_id == "..":
        raise SettingsError(f"dataset_id {dataset_id!r} must be a plain folder name")
    return Path(params["data_root"]) / dataset_id


def _encoded_already(data_dir: Path, splits: Mapping[str, str | Path]) -> EncodedDataset:
    """Find files that were encoded before, by us or by FuxiCTR 1.x to 2.2."""
    feature_map_path = data_dir / "feature_map.json"
    if not feature_map_path.is_file():
        raise DataError(
            f"{feature_map_path}: missing; encoded data has FuxiCTR's feature_map.json there. "
            "Put it there, or encode from csv or parquet (with rebuild_dataset: True)"
        )
    ours = manifest.read(data_dir)
    if ours is not None and not ours["complete"]:
        raise DataError(f"{data_dir}: its encoding was interrupted; encode it again")
    parts = {split: part_files(path) for split, path in splits.items()}
    described = {split: manifest.describe_files(files) for split, files in parts.items()}
    described["feature_map"] = manifest.describe_files([feature_map_path])
    paths = {
        split: files[0] if len(files) == 1 else Path(splits[split])
        for split, files in parts.items()
    }
    return EncodedDataset(
        data_dir=data_dir,
        feature_map_path=feature_map_path,
        train=paths["train"],
        valid=paths.get("valid"),
        test=paths.get("test"),
        fingerprint=manifest.fingerprint(described),
        rows={split: sum(map(count_rows, files)) for split, files in parts.items()},
    )


def _published(data_dir: Path) -> EncodedDataset:
    """Read back from the manifest what was encoded."""
    content = manifest.read(data_dir)
    if content is None or not content["complete"]:
        raise DataError(f"{data_dir}: another process is encoding it again; start once more")
    paths = {split: data_dir / f"{split}.h5" for split in content["rows"]}
    return EncodedDataset(
        data_dir=data_dir,
        feature_map_path=data_dir / "feature_map.json",
        train=paths["train"],
        valid=paths.get("valid"),
        test=paths.get("test"),
        fingerprint=content["fingerprint"],
        rows=content["rows"],
    )


@contextmanager
def _lock(data_dir: Path) -> Iterator[None]:
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(data_dir.parent / f".{data_dir.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        LOG.info("Another process encodes %s: wait for it", data_dir)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _file_errors(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{data_dir}: the data cannot be encoded: {error}") from error


@contextmanager
def _polars_errors(path: str) -> Iterator[None]:
    try:
        yield
    except pl.exceptions.PolarsError as error:
        # What follows the first paragraph is advice on polars' own options, or its query plan.
        raise DataError(f"{path}: {str(error).split(chr(10) * 2)[0]}") from error


def _encode_if_needed(job: EncodingJob) -> None:
    """Encode under the lock, unless another process did so while this one waited for it."""
    data_dir = job.data_dir
    found = manifest.read(data_dir)
    reasons = manifest.differences(found, data_dir, job.made_from)
    if not reasons:
        LOG.info("Use the data set another process encoded: %s", data_dir)
        return
    LOG.info("Encode %s: %s", data_dir, "; ".join(reasons))
    manifest.refuse_foreign_files(found, data_dir, job.file_names())
    with _staging_folder(data_dir) as staging:
        content = _encode(job, staging)
        manifest.publish(staging / data_dir.name, data_dir, found, content)


@contextmanager
def _staging_folder(data_dir: Path) -> Iterator[Path]:
    """Lend a temporary folder inside ``data_dir``: surely on the file system files move to."""
    is_new = not data_dir.exists()
    data_dir.mkdir(parents=True, exist_ok=True)
    for stale in data_dir.glob(f"{_STAGING}*"):  # left by a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=data_dir))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new and not any(data_dir.iterdir()):
            data_dir.rmdir()


def _encode(job: EncodingJob, staging: Path) -> dict[str, Any]:
    """Write all files into ``staging/dataset_id`` and return what the manifest says of them."""
    processor = job.processor_class(
        # FuxiCTR keeps and may change what it is given; the manifest tells what was asked.
        feature_cols=copy.deepcopy(job.features),
        label_col=copy.deepcopy(job.labels),
        dataset_id=job.data_dir.name,
        data_root=str(staging),
    )
    # FuxiCTR pickles the whole processor; nothing here reads it, and pickles run code when loaded.
    processor.save_pickle = lambda pickle_file: None
    scans = {split: _scan(job, processor, split) for split in job.patterns}
    train = _collect(job, scans, "train")
    _fit(job, processor, scans | {"train": train.lazy()})
    dtypes = _column_dtypes(processor)
    rows = {}
    for split in job.patterns:
        frame = train if split == "train" else _collect(job, scans, split)
        _write_split(job, processor, frame, split, dtypes)
        rows[split] = frame.height
    features = processor.feature_map.features
    return {
        "fuxictr_tf4ctr": __version__,
        **job.made_from,
        "fingerprint": manifest.fingerprint(job.made_from),
        "rows": rows,
        "columns": {
            name: {"dtype": str(dtype), "vocab_size": features.get(name, {}).get("vocab_size")}
            for name, dtype in dtypes.items()
        },
    }


def _scan(job: EncodingJob, processor: FeatureProcessor, split: str) -> pl.LazyFrame:
    """Open one split, check its columns and put FuxiCTR's preprocessing before it."""
    path = job.patterns[split]
    with _polars_errors(path):
        frame = processor.read_data(path, **job.reading)
        names = frame.collect_schema().names()
        _check_source_columns(job, path, names)
        _warn_of_missing_labels(job, path, frame)
        try:
            return processor.preprocess(frame)
        except TypeError as error:  # a preprocess function called with the wrong arguments
            raise SettingsError(f"preprocess: {error}") from error


def _check_source_columns(job: EncodingJob, path: str, names: list[str]) -> None:
    for role, columns in (("label", job.labels), ("column", job.features)):
        for column in columns:
            name = column["name"]
            # A preprocess function may make the column from others.
            if name not in names and not column.get("preprocess"):
                close = nearest(name, names) or names
                raise DataError(f"{path}: no {role} {name!r}; there: {', '.join(close)}")


def _warn_of_missing_labels(job: EncodingJob, path: str, frame: pl.LazyFrame) -> None:
    names = [column["name"] for column in job.labels if not column.get("preprocess")]
    missing = frame.select(pl.col(names).null_count()).collect()
    for name in names:
        if missing[name][0]:
            LOG.warning("%s: FuxiCTR fills %d missing %r", path, missing[name][0], name)


def _collect(job: EncodingJob, scans: Mapping[str, pl.LazyFrame], split: str) -> pl.DataFrame:
    LOG.info("Read %s", job.patterns[split])
    with _polars_errors(job.patterns[split]):
        frame = scans[split].collect()
    if frame.height == 0:
        raise DataError(f"{job.patterns[split]}: the {split} split is empty, it has no rows")
    return frame


def _fit(job: EncodingJob, processor: FeatureProcessor, frames: Mapping[str, pl.LazyFrame]) -> None:
    """Build vocabularies and normalizers: from training rows, for meta columns from all rows."""
    meta = job.meta_columns()
    path = job.patterns["train"]
    try:
        with _polars_errors(path):
            meta_frame = pl.concat([frame.select(meta) for frame in frames.values()])
            processor.fit(
                frames["train"],
                meta_ddf=meta_frame if meta else None,
                rebuild_dataset=True,
                min_categr_count=job.min_categr_count,
            )
    except (KeyError, OSError, ValueError) as error:
        raise DataError(
            f"{path}: FuxiCTR cannot fit the columns: {error!r}; a pretrained_emb file must hold "
            "the arrays key and value"
        ) from error
    except IndexError as error:
        # FuxiCTR takes the first of the frequent tokens, and there is none.
        name = next(reversed(processor.feature_map.features))
        raise DataError(
            f"{path}: column {name!r}: no value occurs min_categr_count times; "
            "lower it, or drop the column"
        ) from error


def _column_dtypes(processor: FeatureProcessor) -> dict[str, np.dtype]:
    features = processor.feature_map.features
    return {name: column_dtype(spec) for name, spec in features.items()} | dict.fromkeys(
        processor.feature_map.labels, LABEL_DTYPE
    )


def _write_split(
    job: EncodingJob,
    processor: FeatureProcessor,
    frame: pl.DataFrame,
    split: str,
    dtypes: Mapping[str, np.dtype],
) -> None:
    LOG.info("Encode %d rows of %s", frame.height, split)
    path = Path(processor.data_dir) / f"{split}.h5"
    progress = tqdm(total=frame.height, desc=f"Encode {split}", unit=" rows", disable=None)
    with H5Writer(path, frame.height) as writer, progress:
        for chunk in frame.iter_slices(_CHUNK_ROWS):
            writer.append(_transform(processor, chunk, job.patterns[split], dtypes))
            progress.update(chunk.height)


def _transform(
    processor: FeatureProcessor, chunk: pl.DataFrame, path: str, dtypes: Mapping[str, np.dtype]
) -> dict[str, np.ndarray]:
    name = "any"
    try:
        encoded = processor.transform({column.name: column.to_numpy() for column in chunk})
        columns = {}
        for name, dtype in dtypes.items():
            columns[name] = _as_array(encoded[name]).astype(dtype)
        return columns
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: column {name!r} cannot be encoded: {error}") from error


def _as_array(values: Any) -> np.ndarray:
    values = np.asarray(values)
    # Polars gives a list column as an array of arrays, one per row.
    return np.stack(values) if values.dtype == object else values
