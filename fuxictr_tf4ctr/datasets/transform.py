"""Raw columns to ids and numbers, whole arrays at a time, with the ids of FuxiCTR's tokenizers."""

import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from fuxictr.preprocess import FeatureProcessor
from fuxictr.preprocess.tokenizer import Tokenizer

from fuxictr_tf4ctr.datasets.feature_map import LABEL_DTYPE, column_dtype
from fuxictr_tf4ctr.datasets.fitting import HASH_BUCKET
from fuxictr_tf4ctr.errors import DataError

ColumnEncoder = Callable[[pl.Series], np.ndarray]
"""Turns a preprocessed column [rows] into what is stored, [rows] or [rows, width]."""


def column_encoders(processor: FeatureProcessor) -> dict[str, ColumnEncoder]:
    """Return the encoder of every feature and label, in the order they are stored.

    Args:
        processor: A fitted processor.
    """
    columns = {column["name"]: column for column in processor.feature_cols}
    encoders: dict[str, ColumnEncoder] = {}
    for name, spec in processor.feature_map.features.items():
        encoders[name] = _encoder(processor, columns[name], spec)
    for name in processor.feature_map.labels:
        encoders[name] = lambda values: _numbers(values).astype(LABEL_DTYPE)
    return encoders


def encode_columns(
    rows: pl.DataFrame,
    path: str | Path,
    encoders: Mapping[str, ColumnEncoder],
    pool: Executor | None = None,
) -> dict[str, np.ndarray]:
    """Encode preprocessed rows.

    Args:
        rows: After FuxiCTR's preprocessing.
        path: Where they come from, for messages.
        encoders: As :func:`column_encoders` returned them.
        pool: Threads among which the columns are divided; None for none.

    Raises:
        DataError: A column holds what its encoder cannot take.
    """

    def encode(name: str) -> np.ndarray:
        try:
            return encoders[name](rows[name])
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{path}: column {name!r} cannot be encoded: {error}") from error

    encoded = map(encode, encoders) if pool is None else pool.map(encode, encoders)
    return dict(zip(encoders, encoded, strict=True))


def _encoder(
    processor: FeatureProcessor, column: Mapping[str, Any], spec: Mapping[str, Any]
) -> ColumnEncoder:
    name, kind, dtype = column["name"], spec["type"], column_dtype(spec)
    if kind == "numeric":
        normalizer = processor.processor_dict.get(f"{name}::normalizer")
        return lambda values: _normalized(_numbers(values), normalizer).astype(dtype)
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
        dtype: Type of the ids.
    """

    def __init__(self, vocab: Mapping[Any, int], dtype: np.dtype) -> None:
        texts = {token: i for token, i in vocab.items() if isinstance(token, str)}
        numbers = {token: i for token, i in vocab.items() if not isinstance(token, str)}
        oov = vocab["__OOV__"]
        self.texts = pl.Enum(pl.Series(list(texts), dtype=pl.String))
        self._text_ids = np.array([*texts.values(), oov], dtype=dtype)
        keys = np.array(list(numbers)) if numbers else np.zeros(0)
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._number_ids = np.array([*numbers.values(), oov], dtype=dtype)[[*order, len(keys)]]

    def __call__(self, tokens: pl.Series) -> np.ndarray:
        if tokens.dtype.is_numeric() or tokens.dtype == pl.Boolean:
            return self._of_numbers(tokens)
        places = tokens.cast(self.texts, strict=False).to_physical().cast(pl.UInt32)
        return self._text_ids[places.fill_null(len(self._text_ids) - 1).to_numpy()]

    def _of_numbers(self, tokens: pl.Series) -> np.ndarray:
        values = tokens.fill_null(strategy="zero").to_numpy()
        if not len(self._keys):
            return np.full(len(values), self._number_ids[-1])
        places = np.searchsorted(self._keys, values).clip(max=len(self._keys) - 1)
        known = (self._keys[places] == values) & tokens.is_not_null().to_numpy()
        return self._number_ids[np.where(known, places, len(self._keys))]


class SequenceIds:
    """Split texts into tokens, look them up, and pad or cut the rows to one length.

    Args:
        tokenizer: FuxiCTR's, fitted: its splitter, length, padding side and missing value hold.
        ids: The lookup of single tokens.
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


def _normalized(values: np.ndarray, normalizer: Any) -> np.ndarray:
    return values if normalizer is None else normalizer.transform(values)


def _vectors(values: pl.Series, width: int) -> np.ndarray:
    if not isinstance(values.dtype, pl.List | pl.Array):
        raise TypeError(f"holds {values.dtype}, not lists of numbers")
    lengths = values.cast(pl.List(pl.Float64)).list.len()
    wrong = (lengths != width).fill_null(True)
    if wrong.any():
        row = wrong.arg_max()
        raise ValueError(f"holds a list of {lengths[row]} numbers, pretrain_dim is {width}")
    return values.explode(empty_as_null=False).cast(pl.Float64).to_numpy().reshape(-1, width)
