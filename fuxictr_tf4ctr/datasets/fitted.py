"""The fitted encoder: raw columns to the ids and numbers of FuxiCTR's own, and ``encoder.json``.

FuxiCTR keeps its fitted processor in a pickle, which runs code when loaded. Here feature_map.json
and feature_vocab.json hold what they hold in FuxiCTR, and this file the rest: the columns as the
data set's section declares them, statistics of the numbers, types of the tokens.
"""

import copy
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor

from fuxictr_tf4ctr.datasets.feature_map import LABEL_DTYPE, VOCABULARIES, column_dtype
from fuxictr_tf4ctr.datasets.feature_specs import complete_columns
from fuxictr_tf4ctr.datasets.fitting import HASH_BUCKET, Normalizer, Tokenizer
from fuxictr_tf4ctr.datasets.job import (
    SEPARATOR,
    EncodingJob,
    check_preprocess,
    describe_class,
    find_processor_class,
)
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.fuxictr_imports import no_handler_left
from fuxictr_tf4ctr.schema import (
    ANYTHING,
    NUMBER,
    TEXT,
    Key,
    Kind,
    ListOf,
    Record,
    is_whole,
    one_of,
    read_json,
    whole,
)

ColumnEncoder = Callable[[pl.Series], np.ndarray]
"""Turns preprocessed values [rows] into what is stored, [rows] or [rows, width], each by itself."""


def column_encoders(processor: FeatureProcessor) -> dict[str, ColumnEncoder]:
    """Return the encoder of every feature and label, in the order they are stored."""
    columns = {column["name"]: column for column in processor.feature_cols}
    encoders: dict[str, ColumnEncoder] = {}
    for name, spec in processor.feature_map.features.items():
        encoders[name] = _encoder(processor, columns[name], spec)
    for name in processor.feature_map.labels:
        encoders[name] = lambda values: _numbers(values).astype(LABEL_DTYPE)
    return encoders


def encode_columns(
    rows: pl.DataFrame | pa.RecordBatch,
    path: str | Path,
    encoders: Mapping[str, ColumnEncoder],
    pool: Executor | None = None,
) -> Iterable[tuple[str, np.ndarray]]:
    """Encode preprocessed rows.

    Args:
        rows: After FuxiCTR's preprocessing; dictionaries are encoded value by value.
        pool: Threads among which the columns are divided, and which begin at once; None for none.

    Returns:
        The columns, as they are done.

    Raises:
        DataError: A column holds what its encoder cannot take.
    """

    def encode(name: str) -> np.ndarray:
        column, encoder = rows[name], encoders[name]
        try:
            if isinstance(column, pa.DictionaryArray):
                return encoder(pl.from_arrow(column.dictionary))[column.indices.to_numpy()]
            return encoder(pl.from_arrow(column) if isinstance(column, pa.Array) else column)
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{path}: column {name!r} cannot be encoded: {error}") from error

    encoded = map(encode, encoders) if pool is None else pool.map(encode, encoders)
    return zip(encoders, encoded, strict=True)


def _encoder(
    processor: FeatureProcessor, column: Mapping[str, Any], spec: Mapping[str, Any]
) -> ColumnEncoder:
    name, kind, dtype = column["name"], spec["type"], column_dtype(spec)
    if kind == "numeric":
        normalizer = processor.processor_dict.get(f"{name}::normalizer")
        transform = np.asarray if normalizer is None else normalizer.transform
        return lambda values: transform(_numbers(values)).astype(dtype)
    if kind == "embedding":
        return lambda values: _vectors(values, spec["pretrain_dim"]).astype(dtype)
    if "boundaries" in spec:
        boundaries = np.asarray(spec["boundaries"])
        return lambda values: bucket_ids(values, boundaries).astype(dtype)
    if spec.get("category_processor") == HASH_BUCKET:
        return lambda values: hash_ids(values, spec["vocab_size"]).astype(dtype)
    tokenizer = processor.processor_dict.get(f"{name}::tokenizer")
    if tokenizer is None:  # a meta column with remap: False
        return lambda values: values.cast(pl.Int64).to_numpy()
    ids = TokenIds(tokenizer.vocab, dtype)
    if kind == "sequence":
        return SequenceIds(tokenizer, ids)
    return ids


class TokenIds:
    """Look tokens up in a vocabulary; what it lacks, nulls and NaN get the id of ``__OOV__``.

    Args:
        vocab: Token -> id, tokens being texts or numbers.
    """

    def __init__(self, vocab: Mapping[Any, int], dtype: np.dtype) -> None:
        texts = {token: i for token, i in vocab.items() if isinstance(token, str)}
        numbers = {token: i for token, i in vocab.items() if not isinstance(token, str)}
        oov = vocab["__OOV__"]
        enum = pl.Enum(pl.Series(list(texts), dtype=pl.String))
        # Given a type anew, polars hashes all its texts; an expression keeps what it was made of.
        self._places = pl.col("token").cast(enum, strict=False).to_physical().cast(pl.UInt32)
        self._text_ids = np.array([*texts.values(), oov], dtype=dtype)
        keys = np.array(list(numbers))
        if numbers and keys.dtype.kind == "f" and all(isinstance(each, int) for each in numbers):
            # Some are beyond int64, which numpy would make floats.
            keys = np.array(list(numbers), np.uint64 if min(numbers) >= 0 else object)
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._number_ids = np.array([*numbers.values(), oov], dtype=dtype)[[*order, len(keys)]]

    def __call__(self, tokens: pl.Series) -> np.ndarray:
        if tokens.dtype.is_numeric() or tokens.dtype == pl.Boolean:
            return self._of_numbers(tokens)
        places = tokens.alias("token").to_frame().select(self._places).to_series()
        return self._text_ids[places.fill_null(len(self._text_ids) - 1).to_numpy()]

    def _of_numbers(self, tokens: pl.Series) -> np.ndarray:
        values = tokens.fill_null(strategy="zero").to_numpy()
        if not len(self._keys):
            return np.full(len(values), self._number_ids[-1])
        known = tokens.is_not_null().to_numpy()
        if {self._keys.dtype.kind, values.dtype.kind} == {"i", "u"}:
            # As each other's type and not, as numpy compares them, as floats of 53 bits.
            known = known & (values.astype(np.int64) >= 0)
            values = values.astype(self._keys.dtype)
        places = np.searchsorted(self._keys, values).clip(max=len(self._keys) - 1)
        known = (self._keys[places] == values) & known
        return self._number_ids[np.where(known, places, len(self._keys))]


class SequenceIds:
    """Split texts into tokens, look them up, and pad or cut the rows to one length.

    Args:
        tokenizer: FuxiCTR's, fitted: its splitter, length, padding side and missing value hold.
    """

    def __init__(self, tokenizer: Tokenizer, ids: TokenIds) -> None:
        self._splitter, self._missing = tokenizer._splitter, tokenizer._na_value
        self._width, self._side = tokenizer.max_len, tokenizer.padding
        self._padding = tokenizer.vocab["__PAD__"]
        self._ids = ids

    def __call__(self, texts: pl.Series) -> np.ndarray:
        if texts.null_count():
            raise ValueError("a sequence is missing; fill it with preprocess")
        lists = texts.str.split(self._splitter)
        tokens = lists.explode(empty_as_null=False)
        ids = self._ids(tokens)
        if isinstance(self._missing, str):
            ids[(tokens == self._missing).to_numpy()] = self._padding
        lengths = lists.list.len().to_numpy().astype(np.int64)
        ends = np.cumsum(lengths)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        if self._side == "post":  # the first tokens, from the left
            places = np.arange(len(ids)) - np.repeat(ends - lengths, lengths)
        else:  # the last tokens, up to the right end
            places = np.arange(len(ids)) - np.repeat(ends, lengths) + self._width
        kept = (places >= 0) & (places < self._width)
        padded = np.full((len(lengths), self._width), self._padding, dtype=ids.dtype)
        padded[rows[kept], places[kept]] = ids[kept]
        return padded


def bucket_ids(values: pl.Series, boundaries: np.ndarray) -> np.ndarray:
    """Return how many boundaries are at most each value: 0 to len(boundaries)."""
    return np.searchsorted(boundaries, _numbers(values), side="right")


def hash_ids(values: pl.Series, buckets: int) -> np.ndarray:
    """Return CRC-32 of each value's text in UTF-8, modulo ``buckets``: alike on every platform."""
    texts = values.cast(pl.String).fill_null("")
    distinct = texts.unique()
    hashed = [zlib.crc32(text.encode()) % buckets for text in distinct]
    ids = {"__OOV__": 0} | dict(zip(distinct, hashed, strict=True))
    return TokenIds(ids, np.dtype(np.int64))(texts)


def _numbers(values: pl.Series) -> np.ndarray:
    if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
        raise TypeError(f"holds {values.dtype}, not numbers")
    numbers = values.to_numpy()
    return numbers.astype(np.float64) if numbers.dtype.kind in "bO" else numbers


def _vectors(values: pl.Series, width: int) -> np.ndarray:
    if not isinstance(values.dtype, pl.List | pl.Array):
        raise TypeError(f"holds {values.dtype}, not lists of numbers")
    lengths = values.cast(pl.List(pl.Float64)).list.len()
    wrong = (lengths != width).fill_null(True)
    if wrong.any():
        row = wrong.arg_max()
        raise ValueError(f"holds a list of {lengths[row]} numbers, pretrain_dim is {width}")
    return values.explode(empty_as_null=False).cast(pl.Float64).to_numpy().reshape(-1, width)


NAME = "encoder.json"
_FORMAT = "fuxictr_tf4ctr encoder 1"
SPECIAL = ("__PAD__", "__OOV__")


def _is_vocabulary(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(token, str | int | float) and is_whole(i) for token, i in value
    )


# How feature_vocab.json, whose keys are texts, gives a vocabulary's tokens back.
_TOKEN_TYPES = {"text": str, "int": int, "float": float}
_TOKENIZER = Record(
    {
        "missing": Key(
            Kind("a text or a number", lambda value: isinstance(value, str | int | float))
        ),
        "splitter": Key(TEXT),
        "max_len": whole(0, 2**16),
        "padding": one_of("pre", "post"),
        "tokens": Key(one_of(*_TOKEN_TYPES)),
        "vocab": Key(Kind("a list of tokens and their ids", _is_vocabulary)),
    }
)
_TOKENIZED = ("categorical", "sequence", "meta")
_MOMENTS = Record(dict.fromkeys(("min", "max", "mean", "std", "count"), NUMBER))
_ENCODER = Record(
    {
        "format": one_of(_FORMAT),
        "dataset_id": TEXT,
        "feature_processor": TEXT,
        "reading": Record({"data_format": TEXT, "sep": SEPARATOR}),
        "features": ListOf(Record({}, others=ANYTHING), least=1),
        "labels": ListOf(Record({}, others=ANYTHING)),
        "normalizers": Record({}, others=_MOMENTS),
        "tokenizers": Record({}, others=_TOKENIZER),
    }
)


def save_encoder(processor: FeatureProcessor, job: EncodingJob) -> None:
    """Write what was fitted beside the processor's feature map."""
    specs = processor.feature_map.features
    content = {
        "format": _FORMAT,
        "dataset_id": processor.feature_map.dataset_id,
        "feature_processor": describe_class(job.processor_class),
        "reading": {key: job.reading[key] for key in ("data_format", "sep")},
        "features": job.features,
        "labels": job.labels,
        "normalizers": {
            name: processor.statistics[name]
            for name in specs
            if f"{name}::normalizer" in processor.processor_dict
        },
        "tokenizers": {
            name: _describe_tokenizer(tokenizer, in_vocab=specs[name]["type"] != "meta")
            for name in specs
            if (tokenizer := processor.processor_dict.get(f"{name}::tokenizer")) is not None
            and tokenizer.vocab
        },
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    (Path(processor.data_dir) / NAME).write_text(text + "\n", encoding="utf-8")


def _describe_tokenizer(tokenizer: Tokenizer, in_vocab: bool) -> dict[str, Any]:
    described = {
        "missing": tokenizer._na_value,
        "splitter": tokenizer._splitter,
        "max_len": tokenizer.max_len,
        "padding": tokenizer.padding,
    }
    types = {type(token) for token in tokenizer.vocab if token not in SPECIAL}
    for name, token_type in _TOKEN_TYPES.items():
        if in_vocab and types <= {token_type}:
            return described | {"tokens": name}
    return described | {"vocab": list(tokenizer.vocab.items())}


def read_encoder(folder: Path) -> dict[str, Any]:
    """Read ``encoder.json``, with the vocabulary of every tokenizer in ``vocab``.

    Returns:
        The content of the file; ``features`` and ``labels`` are checked and complete.

    Raises:
        DataError: There is none, or none of this version.
        SettingsError: It was changed to something the encoder must not run.
    """
    path = folder / NAME
    remedy = "it was not written by this version; encode from csv or parquet, and train again"
    try:
        content = read_json(path, _ENCODER, remedy)
        texts = read_json(folder / "feature_vocab.json", VOCABULARIES, remedy)
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename}: missing, so new rows cannot be encoded: the data were encoded by "
            "FuxiCTR or by an earlier version; encode them from csv or parquet, and train again"
        ) from None
    for name, tokenizer in content["tokenizers"].items():
        try:
            tokenizer["vocab"] = _vocab(tokenizer, texts.get(name, {}))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: tokenizers.{name}: {error}; {remedy}") from error
    content["features"], content["labels"] = complete_columns(
        content["features"], content["labels"]
    )
    of_tokens = {c["name"] for c in content["features"] if c["type"] in _TOKENIZED}
    of_numbers = {c["name"] for c in content["features"] if "normalizer" in c}
    lost = [*(content["tokenizers"].keys() - of_tokens)]
    lost += content["normalizers"].keys() - of_numbers
    if lost:
        raise DataError(f"{path}: what is fitted of {lost[0]!r} is of no such column; {remedy}")
    return content


def check_types(
    columns: Iterable[Mapping[str, Any]], specs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise DataError where the columns of an encoder are not the features of a feature map."""
    types = {column["name"]: column["type"] for column in columns}
    for name, spec in specs.items():
        if types.get(name) != spec.get("type"):
            raise DataError(f"{NAME} and feature_map.json disagree on {name!r}; encode again")


def _vocab(tokenizer: Mapping[str, Any], texts: Mapping[str, int]) -> dict[Any, int]:
    if tokenizer.get("vocab") is not None:
        vocab = {token: i for token, i in tokenizer["vocab"]}
    elif tokenizer.get("tokens") is None:
        raise ValueError("tokens is missing, or vocab")
    else:
        restored = _TOKEN_TYPES[tokenizer["tokens"]]
        vocab = {token if token in SPECIAL else restored(token): i for token, i in texts.items()}
    absent = [token for token in SPECIAL if token not in vocab]
    if absent:
        raise ValueError(f"its vocabulary lacks {' and '.join(absent)}")
    return vocab


@no_handler_left()
def restored_processor(
    content: Mapping[str, Any], feature_map: FeatureMap, *, labels: bool = False
) -> FeatureProcessor:
    """Restore the processor an encoding was made with.

    Raises:
        SettingsError: The data set's own processor class is gone or has changed.
    """
    processor_class = _processor_class(content["feature_processor"])
    features, label_columns = content["features"], content["labels"]
    for column in features + label_columns:
        check_preprocess(column, processor_class)
    if not any(column.get("preprocess") for column in features + label_columns):
        # Without functions that may read any column, those the model leaves out may be missing.
        features = [column for column in features if column["name"] in feature_map.features]
    check_types(features, feature_map.features)
    processor = processor_class(
        feature_cols=copy.deepcopy(features),
        label_col=copy.deepcopy(label_columns) if labels else [],
        dataset_id=content["dataset_id"],
    )
    processor.feature_map = feature_map
    for column in features:
        statistics = dict(content["normalizers"].get(column["name"], {}))
        if statistics:
            normalizer = Normalizer(column["normalizer"])
            least, most = statistics.pop("min"), statistics.pop("max")
            normalizer.fit_from_stats(min_value=least, max_value=most, **statistics)
            processor.processor_dict[f"{column['name']}::normalizer"] = normalizer
    for name, described in content["tokenizers"].items():
        tokenizer = Tokenizer(
            na_value=described.get("missing"),
            splitter=described.get("splitter"),
            max_len=described["max_len"],
            padding=described["padding"],
        )
        tokenizer.vocab = dict(described["vocab"])
        processor.processor_dict[f"{name}::tokenizer"] = tokenizer
    return processor


def _processor_class(described: str) -> type[FeatureProcessor]:
    name = described.split()[0]
    found = find_processor_class(name)
    # FuxiCTR's own fills missing values, no more; another one computes what the model reads.
    if found is not FeatureProcessor and describe_class(found) != described:
        raise SettingsError(
            f"feature_processor {name} has changed since the run's data were encoded; restore its "
            "code, or encode and train again"
        )
    return found
