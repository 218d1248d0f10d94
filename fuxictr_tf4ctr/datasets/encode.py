"""Encode raw csv or parquet files once, by FuxiCTR's FeatureProcessor, into h5 files.

Ids, vocabularies and the feature map are FuxiCTR's, to the last digit: its processor builds them,
from counts. What is ours is the way around it: rows streamed in their order and in bounded memory,
whole columns looked up at once, no Ray, and a folder that is either complete or not used.
"""

import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import h5py
import numpy as np
import polars as pl
from fuxictr.preprocess import FeatureProcessor

from fuxictr_tf4ctr import __version__
from fuxictr_tf4ctr.datasets import manifest
from fuxictr_tf4ctr.datasets.feature_map import LABEL_DTYPE, column_dtype, row_shape
from fuxictr_tf4ctr.datasets.fitted import SPECIAL, column_encoders, save_encoder
from fuxictr_tf4ctr.datasets.fitting import ColumnStatistics, empty_frame, few_collections
from fuxictr_tf4ctr.datasets.job import DATA_FORMAT, SPLITS, EncodingJob, plan_encoding
from fuxictr_tf4ctr.datasets.new_rows import Ancestor
from fuxictr_tf4ctr.datasets.splits import (
    HERE,
    Passes,
    Split,
    kept_rows,
    open_splits,
    warn_of_missing_labels,
)
from fuxictr_tf4ctr.datasets.stored import SUFFIXES, H5Writer, count_rows, part_files
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.files import (
    held,
    need_space,
    scratch_folder,
    storage_errors,
    sweep_up,
    system_error,
)
from fuxictr_tf4ctr.fuxictr_imports import no_handler_left
from fuxictr_tf4ctr.schema import FILE_NAME

LOG = logging.getLogger(__name__)

# The folder of our encoding within one that FuxiCTR encoded into.
_BESIDE = "h5"


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


@no_handler_left()
def encode_dataset(
    params: Mapping[str, Any], passes: Passes = HERE, ancestor: Ancestor | None = None
) -> EncodedDataset:
    """Make an encoded data set available: encode it, or find it encoded already.

    Files of ``data_format`` csv and parquet are encoded into ``data_root/dataset_id``; a later
    call with the same sources and settings uses them again. Encoded files, of format h5 and npz,
    and parquet where there are no ``feature_cols``, are used as they are. Processes that encode the
    same data set at once wait for each other.

    Args:
        params: FuxiCTR's parameters; dataset_id, data_root, data_format, train_data, valid_data,
            test_data, feature_cols, label_col, min_categr_count, num_buckets, sep, n_rows,
            valid_size, test_size, split_type, split_by and rebuild_dataset are heeded, and ours
            ``compression`` ("lzf" or "gzip"). ``feature_processor`` names the class to encode with:
            a module with a CustomizedFeatureProcessor ("fuxictr.datasets.criteo") or
            "module:Class"; default is FuxiCTR's own.
        passes: Where the rows are counted and encoded.
        ancestor: The run whose vocabularies are to be grown; a folder named after it in
            ``data_root/dataset_id`` takes the encoding. None begins anew.

    Raises:
        SettingsError: A setting is missing or not valid, or the ancestor has other columns.
        DataError: A file is missing, empty, unreadable or lacks a column.
        StorageError: The disk has no room for the encoding, or cannot be written.
    """
    encoded = _encoded_files(params, _data_dir(params))
    if encoded is not None and ancestor is not None:
        raise SettingsError("continue_from grows vocabularies: give raw csv or parquet data")
    if encoded is not None:
        return _encoded_already(_data_dir(params), encoded)
    data_dir = _own_dir(_data_dir(params))
    if ancestor is not None:
        data_dir /= f"after-{ancestor.folder.parent.name}"
    job = plan_encoding(params, data_dir, _sources(params), ancestor)
    if not _reasons_to_encode(job, manifest.read(data_dir)):
        LOG.info("Use the encoded data set %s", data_dir)
        sweep_up(data_dir)
    else:
        with storage_errors(data_dir):
            data_dir.parent.mkdir(parents=True, exist_ok=True)
            with held(
                data_dir.parent / f".{data_dir.name}.lock",
                waiting=lambda: LOG.info("Another process encodes %s: wait for it", data_dir),
            ):
                _encode_if_needed(job, passes)
    return _published(data_dir)


def find_encoded(params: Mapping[str, Any], folder: str | Path | None = None) -> EncodedDataset:
    """Find a data set that was encoded before, without looking at its raw files.

    Args:
        params: FuxiCTR's parameters it was encoded with.
        folder: Where it lies, if not where ``params`` say, seen from the present folder.

    Raises:
        SettingsError: A setting is missing.
        DataError: It is not there, or its encoding was interrupted.
    """
    data_dir = Path(folder) if folder else _data_dir(params)
    encoded = _encoded_files(params, data_dir)
    if encoded is not None:
        return _encoded_already(data_dir, encoded)
    data_dir = data_dir if folder else _own_dir(data_dir)
    if manifest.read(data_dir) is None:
        raise DataError(
            f"{data_dir}: holds no encoded data set; encode it again, by fuxictr encode"
        )
    return _published(data_dir)


def _sources(params: Mapping[str, Any]) -> dict[str, str | Path]:
    return {split: path for split in SPLITS if (path := params.get(f"{split}_data"))}


def _data_dir(params: Mapping[str, Any]) -> Path:
    for key in ("dataset_id", "data_root"):
        if not params.get(key):
            raise SettingsError(f"{key} is missing")
    if problems := FILE_NAME.problems(params["dataset_id"], "dataset_id"):
        raise SettingsError(problems[0])
    return Path(params["data_root"]) / params["dataset_id"]


def _own_dir(data_dir: Path) -> Path:
    """Return where our encoding goes: into a folder of its own where FuxiCTR encoded before."""
    ours = manifest.read(data_dir)
    known = ours["files"] if ours else {}
    if "feature_map.json" in known or not (data_dir / "feature_map.json").exists():
        return data_dir
    LOG.info("%s was encoded by FuxiCTR: our encoding goes into %s there", data_dir, _BESIDE)
    return data_dir / _BESIDE


def _encoded_files(params: Mapping[str, Any], data_dir: Path) -> dict[str, str | Path] | None:
    """Return split -> its encoded files where the settings say that there are, None if raw ones.

    Raises:
        SettingsError: The format is none that can be read.
    """
    data_format = params.get("data_format", "csv")
    if problems := DATA_FORMAT.problems(data_format, "data_format"):
        raise SettingsError(problems[0])
    sources = _sources(params)
    if "train" not in sources:
        raise SettingsError("train_data is missing")
    if data_format in ("npz", "h5") or (
        data_format == "parquet" and not params.get("feature_cols")
    ):
        if params.get("valid_size") or params.get("test_size"):
            raise SettingsError("valid_size and test_size split raw files, not encoded ones")
        return sources
    if params.get("rebuild_dataset", True) is not False:
        return None
    LOG.info("rebuild_dataset is False: use %s as it is", data_dir)
    splits = [split for split in SPLITS if split in sources or params.get(f"{split}_size")]
    return {split: _left_file(data_dir, split, sources.get(split)) for split in splits}


def _left_file(data_dir: Path, split: str, source: str | Path | None) -> str | Path:
    """Find what we, or else FuxiCTR, left of a split; a parquet file may itself be encoded."""
    names = [data_dir / f"{split}{suffix}" for suffix in SUFFIXES]
    there = [path for path in (*names, data_dir / split) if path.exists()]
    if not there and str(source).endswith(".parquet"):
        return source
    return there[0] if there else names[0]


def _encoded_already(data_dir: Path, splits: Mapping[str, str | Path]) -> EncodedDataset:
    """Find files that were encoded before, by us or by FuxiCTR 1.x to 2.2."""
    feature_map_path = data_dir / "feature_map.json"
    if not feature_map_path.is_file():
        raise DataError(
            f"{feature_map_path}: missing; encoded data has FuxiCTR's feature_map.json there. Put "
            "it there, or encode raw csv or parquet, with feature_cols and rebuild_dataset: True"
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
    rows = {split: sum(map(count_rows, files)) for split, files in parts.items()}
    return _dataset(data_dir, paths, manifest.fingerprint(described), rows)


def _published(data_dir: Path) -> EncodedDataset:
    """Read back from the manifest what was encoded."""
    content = manifest.read(data_dir)
    if content is None or not content["complete"]:
        raise DataError(f"{data_dir}: another process is encoding it again; start once more")
    paths = {split: data_dir / f"{split}.h5" for split in content["rows"]}
    return _dataset(data_dir, paths, content["fingerprint"], content["rows"])


def _dataset(
    data_dir: Path, paths: Mapping[str, Path], fingerprint: str, rows: dict[str, int]
) -> EncodedDataset:
    splits = (paths.get(split) for split in SPLITS)
    return EncodedDataset(data_dir, data_dir / "feature_map.json", *splits, fingerprint, rows)


def _encode_if_needed(job: EncodingJob, passes: Passes) -> None:
    """Encode under the lock, unless another process did so while this one waited for it."""
    data_dir = job.data_dir
    found = manifest.read(data_dir)
    reasons = _reasons_to_encode(job, found)
    if not reasons:
        LOG.info("Use the data set another process encoded: %s", data_dir)
        return
    LOG.info("Encode %s: %s", data_dir, "; ".join(reasons))
    manifest.refuse_foreign_files(found, data_dir, job.file_names())
    with _staging_folder(data_dir) as staging:
        content = _encode(job, staging, passes)
        manifest.refuse_changed_sources(job.made_from)
        manifest.publish(staging / job.dataset_id, data_dir, found, content)


def _reasons_to_encode(job: EncodingJob, found: dict[str, Any] | None) -> list[str]:
    return manifest.differences(found, job.data_dir, job.made_from, job.file_names())


@contextmanager
def _staging_folder(data_dir: Path) -> Iterator[Path]:
    """Lend a temporary folder inside ``data_dir``: surely on the file system files move to."""
    is_new = not data_dir.exists()
    data_dir.mkdir(parents=True, exist_ok=True)
    for stale in data_dir.glob(".encoding.*.tmp"):  # nobody else encodes: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    try:
        with scratch_folder(data_dir / "encoding") as staging:
            yield staging
    finally:
        if is_new and not any(data_dir.iterdir()):
            data_dir.rmdir()


def _encode(job: EncodingJob, staging: Path, passes: Passes) -> dict[str, Any]:
    """Write all files into ``staging/dataset_id`` and return what the manifest says of them."""
    processor = job.processor(staging)
    splits = open_splits(job, processor)
    train_rows = _fit(job, processor, splits, staging, passes)
    _refuse_empty_vocabularies(job, processor)
    save_encoder(processor, job)
    # Each of these files goes when its rows are encoded.
    kept = sum(file.stat().st_size for file in kept_rows(staging, "train").glob("*"))
    need_space(job.data_dir, max(_bytes_needed(job, processor, train_rows) - kept, 0))
    with few_collections():
        encoders = column_encoders(processor)
    rows = {}
    for name, split in splits.items():
        encoded = passes.encoded(job, split, encoders, staging)
        rows[name] = _write_split(job, Path(processor.data_dir), split, encoded)
    features = processor.feature_map.features
    dtypes = {name: column_dtype(spec) for name, spec in features.items()}
    dtypes |= dict.fromkeys(processor.feature_map.labels, LABEL_DTYPE)
    return {
        "fuxictr_tf4ctr": __version__,
        "versions": {module.__name__: module.__version__ for module in (pl, h5py, np)},
        **job.made_from,
        "fingerprint": manifest.fingerprint(job.made_from),
        "rows": rows,
        "columns": {
            name: {"dtype": str(dtype), "vocab_size": features.get(name, {}).get("vocab_size")}
            for name, dtype in dtypes.items()
        },
    }


def _fit(
    job: EncodingJob,
    processor: FeatureProcessor,
    splits: Mapping[str, Split],
    folder: Path,
    passes: Passes,
) -> int:
    """Build vocabularies and normalizers: from training rows, for meta columns from all rows.

    Returns:
        How many training rows there are.
    """
    statistics = ColumnStatistics(job.features, job.min_categr_count, folder)
    passes.count(job, splits, statistics, folder)
    if not statistics.rows:
        raise DataError(f"{job.patterns['train']}: the train split is empty, it has no rows")
    kept: Mapping[str, Any] = {}
    if job.ancestor is not None:
        if not job.ancestor.add_counts(statistics):
            LOG.info("No counts of rare values before: min_categr_count is counted over new rows")
        kept = job.ancestor.normalizers()
    processor.statistics = {**statistics.as_fuxictr(), **kept}
    try:
        with few_collections():
            processor.fit(
                empty_frame(job.features),
                rebuild_dataset=True,
                min_categr_count=job.min_categr_count,
                num_buckets=job.num_buckets,
            )
    except (KeyError, OSError, ValueError, BadZipFile, pl.exceptions.PolarsError) as error:
        refused = system_error(error)
        if refused is not None:
            raise refused from error
        raise DataError(
            f"{job.patterns['train']}: FuxiCTR cannot fit the columns: {error!r}; a pretrained_emb "
            "file must hold the arrays key and value"
        ) from error
    except IndexError as error:
        # FuxiCTR takes the first of the frequent tokens, and there is none.
        name = next(reversed(processor.feature_map.features))
        raise DataError(
            f"{job.patterns['train']}: column {name!r}: no value occurs min_categr_count times; "
            "lower it, or drop the column"
        ) from error
    statistics.save_rare(Path(processor.data_dir))
    if job.ancestor is not None:
        job.ancestor.grow(processor)
    return statistics.rows


def _refuse_empty_vocabularies(job: EncodingJob, processor: FeatureProcessor) -> None:
    """Raise where no column has a token of its own: a model could only learn the mean."""
    vocabularies = [
        tokenizer.vocab
        for name, spec in processor.feature_map.features.items()
        if spec["type"] in ("categorical", "sequence")
        and "category_processor" not in spec
        and (tokenizer := processor.processor_dict.get(f"{name}::tokenizer")) is not None
    ]
    if vocabularies and all(vocab.keys() <= set(SPECIAL) for vocab in vocabularies):
        raise DataError(
            f"{job.patterns['train']}: the vocabularies hold nothing but padding and OOV; is "
            "this FuxiCTR one that this version knows, and min_categr_count low enough?"
        )


def _bytes_needed(job: EncodingJob, processor: FeatureProcessor, train_rows: int) -> int:
    """Estimate the size of the encoded rows: those of train are counted, others by file size."""
    if job.compression:
        return 0  # nobody knows
    width = LABEL_DTYPE.itemsize * len(processor.feature_map.labels)
    for spec in processor.feature_map.features.values():
        width += column_dtype(spec).itemsize * math.prod(row_shape(spec))
    sizes = {split: sum(map(os.path.getsize, files)) for split, files in job.files.items()}
    split_off = sum(size for size in job.splitting.get("sizes", {}).values() if size < 1)
    rows = train_rows / max(1 - split_off, 0.01)
    return int(width * rows * sum(sizes.values()) / max(sizes["train"], 1))


def _write_split(
    job: EncodingJob, folder: Path, split: Split, encoded: Iterable[Mapping[str, np.ndarray]]
) -> int:
    """Write the encoded rows of one split and return their number."""
    with H5Writer(folder / f"{split.name}.h5", job.compression) as writer:
        for columns in encoded:
            writer.append(columns)
        if not writer.rows:
            raise DataError(f"{split.path}: the {split.name} split is empty, it has no rows")
    if not job.splitting:
        warn_of_missing_labels(split.path, split.files)
    return writer.rows
