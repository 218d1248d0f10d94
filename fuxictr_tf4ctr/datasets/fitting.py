"""Vocabularies and normalizers: counted here in one pass, built by FuxiCTR's own processor.

FuxiCTR's rules of order, padding, sharing and pretrained vocabularies are its processor's to apply;
it is handed counts instead of rows. What it declares and leaves out, buckets, is added.
"""

import gc
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from fuxictr.preprocess import FeatureProcessor

from fuxictr_tf4ctr.fuxictr_imports import PROCESSOR_HOOKS, require

if require(PROCESSOR_HOOKS) == "git":
    from fuxictr_tf4ctr.datasets.fuxictr_git import FitsFromCounts, Normalizer, Tokenizer

    _BASES: tuple[type, ...] = (FitsFromCounts,)
else:
    from fuxictr.preprocess.normalizer import Normalizer
    from fuxictr.preprocess.tokenizer import Tokenizer

    _BASES = ()

__all__ = ["Normalizer", "Tokenizer"]  # beside what is defined here: FuxiCTR's, of either version

RARE = "rare_tokens.parquet"
"""Beside a vocabulary: column, token and count of the most frequent values too rare for an id."""
_MOST_RARE = 100_000  # of each column
QUANTILE_BUCKET, HASH_BUCKET = "quantile_bucket", "hash_bucket"
# What FuxiCTR calls for each batch or column, and this package does in its place.
_REPLACED = ("fit", "transform", "_collect_statistics", "fit_categorical_col", "fit_sequence_col")


def replaced_methods(processor_class: type[FeatureProcessor]) -> list[str]:
    """List the methods a processor class overrides although they would not be called as meant."""
    return [
        name
        for name in _REPLACED
        if getattr(processor_class, name, None) is not getattr(FeatureProcessor, name, None)
    ]


def counting_processor(
    processor_class: type[FeatureProcessor], **arguments: Any
) -> FeatureProcessor:
    """Make a processor of a class that fits from the counts in its ``statistics``.

    Args:
        processor_class: FuxiCTR's FeatureProcessor or a subclass.
        **arguments: Arguments of its constructor.
    """
    bases = (_FitsFromCounts, *_BASES, processor_class)
    return type(processor_class.__name__, bases, {})(**arguments)


class _FitsFromCounts:
    """Mixed in before a FeatureProcessor: takes counts instead of rows, and fits buckets."""

    statistics: Mapping[str, Any]

    def _collect_statistics(self, train_ddf: Any, meta_ddf: Any = None) -> Mapping[str, Any]:
        return self.statistics

    def save_pickle(self, pickle_file: str) -> None:
        """Write nothing: FuxiCTR pickles the whole processor, and pickles run code when loaded."""

    def save_vocab(self, vocab_file: str) -> None:
        """Write what FuxiCTR writes, whose indent makes json go through all tokens in Python."""
        for name, spec in self.feature_map.features.items():
            if "pretrained_emb" in spec:
                _give_python_types(self.processor_dict[f"{name}::tokenizer"].vocab)
        vocabs = []
        for name, spec in self.feature_map.features.items():
            if spec["type"] in ("categorical", "sequence"):
                vocab = self.processor_dict[f"{name}::tokenizer"].vocab
                ordered = dict(sorted(vocab.items(), key=itemgetter(1)))
                tokens = json.dumps(ordered, separators=(",\n        ", ": "))[1:-1]
                vocabs.append(f"    {json.dumps(name)}: {{\n        {tokens}\n    }}")
        text = "{\n" + ",\n".join(vocabs) + "\n}" if vocabs else "{}"
        Path(vocab_file).write_text(text, encoding="ascii")

    def fit_categorical_col(
        self,
        col: dict[str, Any],
        col_series: Any = None,
        min_categr_count: int = 1,
        num_buckets: int = 10,
    ) -> None:
        kind, name = col.get("category_processor"), col["name"]
        if kind is None:
            super().fit_categorical_col(col, col_series, min_categr_count, num_buckets)
            return
        buckets = col.get("num_buckets", num_buckets)
        spec = {"source": col.get("source", ""), "type": col["type"]}
        kept = ("feature_encoder", "embedding_dim", "emb_output_dim")
        spec |= {key: col[key] for key in kept if key in col}
        spec |= {"category_processor": kind, "vocab_size": buckets}
        if kind == QUANTILE_BUCKET:
            shares = np.arange(1, buckets) / buckets
            # In the feature map, so that they are on record: decoding needs them.
            spec["boundaries"] = quantiles(self.statistics[name]["counts"], shares).tolist()
        # FuxiCTR deletes the one and saves the other without looking whether they are there.
        self.feature_map.features[name] = spec | {"oov_idx": None}
        self.processor_dict[f"{name}::tokenizer"] = Tokenizer()


def _give_python_types(vocab: dict[Any, int]) -> None:
    """Replace tokens of numpy's types, as pretrained files add them: json knows no int64."""
    for token in [token for token in vocab if isinstance(token, np.generic)]:
        vocab[token.item()] = vocab.pop(token)


class ColumnStatistics:
    """What FuxiCTR's processor fits from, gathered batch by batch.

    Args:
        columns: The feature columns of the dataset config, complete.
        min_categr_count: How often a token must occur where the column does not say.
        folder: Where counts may go that outgrow the memory.
    """

    def __init__(
        self, columns: Iterable[Mapping[str, Any]], min_categr_count: int, folder: Path
    ) -> None:
        self._least: dict[str, int] = {}
        self._meta: list[str] = []
        self._categories: list[str] = []
        self._buckets: set[str] = set()
        self._splitters: dict[str, str] = {}
        self._numbers: dict[str, Moments] = {}
        for column in (each for each in columns if each["active"] is not False):
            name, kind = column["name"], column["type"]
            self._least[name] = column.get("min_categr_count", min_categr_count)
            if kind == "meta" and column.get("remap", True):
                self._meta.append(name)
            elif kind == "categorical" and column.get("category_processor") != HASH_BUCKET:
                self._categories.append(name)
            elif kind == "sequence":
                self._splitters[name] = column.get("splitter", "^")
            elif kind == "numeric" and "normalizer" in column:
                self._numbers[name] = Moments()
            if column.get("category_processor") == QUANTILE_BUCKET:
                self._buckets.add(name)
        self._lengths = dict.fromkeys(self._splitters, 0)
        counted = [*self._meta, *self._categories, *self._splitters]
        self._counts = TokenCounts(counted, folder)
        self.rows = 0

    @property
    def meta_columns(self) -> list[str]:
        """The columns whose vocabulary covers all splits."""
        return self._meta

    def add_train(self, rows: pa.RecordBatch) -> None:
        """Add training rows, as :func:`coded` gives them."""
        tokens = {name: _counted(rows[name]) for name in (*self._meta, *self._categories)}
        for name, splitter in self._splitters.items():
            lists = _counted(rows[name]).with_columns(pl.col("token").str.split(splitter))
            longest = lists["token"].list.len().max() or 0
            self._lengths[name] = max(self._lengths[name], longest)
            tokens[name] = _summed(lists.lazy().explode("token", empty_as_null=False)).collect()
        self._counts.add(tokens)
        for name, moments in self._numbers.items():
            moments.add(pl.from_arrow(rows[name]))
        self.rows += rows.num_rows

    def add_other(self, rows: pa.RecordBatch) -> None:
        """Add rows of another split, of which the meta columns count."""
        self._counts.add({name: _counted(rows[name]) for name in self._meta})

    def take_in(self, other: "ColumnStatistics") -> None:
        """Add what another has gathered of the same columns, from rows after these."""
        for name, length in other._lengths.items():
            self._lengths[name] = max(self._lengths[name], length)
        self._counts.take_in(other._counts)
        for name, moments in other._numbers.items():
            self._numbers[name].take_in(moments)
        self.rows += other.rows

    def add_counted(self, name: str, counts: pl.DataFrame) -> None:
        """Add tokens of a column, as texts, that were counted in earlier rows."""
        self._counts.add_counted(name, counts)

    def add_known(self, name: str, tokens: list[Any]) -> None:
        """Add tokens of a column that have an id, however often they occur in these rows."""
        known = pl.Series("token", [str(token) for token in tokens], pl.String).to_frame()
        least = self._least[name] if name not in self._meta else 1
        count = pl.lit(least, pl.get_index_type()).alias("count")
        self._counts.add_counted(name, known.with_columns(count))

    def save_rare(self, folder: Path) -> None:
        """Keep what is too rare for an id, if anything is, in :data:`RARE`."""
        tables = [
            _most_frequent(self._counts.rare(name, self._least[name]), _MOST_RARE).select(
                pl.lit(name).alias("column"), pl.col("token").cast(pl.String), "count"
            )
            for name in (*self._categories, *self._splitters)
            if self._least[name] > 1 and name not in self._buckets
        ]
        if any(map(len, tables)):
            pl.concat(tables).write_parquet(folder / RARE)

    def as_fuxictr(self) -> dict[str, dict[str, Any]]:
        """Return the statistics in the form FuxiCTR's ``_collect_statistics`` gives them.

        Tokens too rare for an id are left out: FuxiCTR drops them after sorting them.
        """
        stats: dict[str, dict[str, Any]] = {}
        for name in self._meta:
            stats[name] = {"value_counts": self._value_counts(name, 1)}
        for name in self._categories:
            if name in self._buckets:
                stats[name] = {"counts": self._counts.frequent(name)}
            else:
                stats[name] = {"value_counts": self._value_counts(name, self._least[name])}
        for name in self._splitters:
            counts = self._value_counts(name, self._least[name])
            stats[name] = {"value_counts": counts, "max_len": self._lengths[name]}
        return stats | {name: moments.as_fuxictr() for name, moments in self._numbers.items()}

    def _value_counts(self, name: str, least: int) -> dict[Any, int]:
        # FuxiCTR sorts them so; what is sorted already takes it a tenth of the time.
        found = self._counts.frequent(name, least).sort("count", "token", descending=[True, False])
        return dict(zip(found["token"].to_list(), found["count"].to_list(), strict=True))


@contextmanager
def few_collections() -> Iterator[None]:
    """Stop Python looking for garbage: among millions of tokens that outlasts the work."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def empty_frame(columns: Iterable[Mapping[str, Any]]) -> pl.LazyFrame:
    """Return a frame without rows: FuxiCTR collects the raw values of buckets from one."""
    return pl.LazyFrame(schema={column["name"]: pl.Float64 for column in columns})


def coded(
    rows: pl.DataFrame, columns: Sequence[Mapping[str, Any]], pool: Executor
) -> pa.RecordBatch:
    """Find the distinct values of some rows, once for counting and for encoding them.

    Args:
        rows: After FuxiCTR's preprocessing.

    Returns:
        The rows; columns of tokens and sequences are dictionaries of these rows' values alone.
    """
    tokens = {
        column["name"] for column in columns if column["type"] not in ("numeric", "embedding")
    }

    def code(name: str) -> pa.Array:
        values = rows[name]
        if name not in tokens or values.dtype.is_nested():
            return values.to_arrow()
        if isinstance(values.dtype, pl.Categorical | pl.Enum):
            values = values.cast(pl.String)  # its dictionary may hold more than these rows do
        found = values.to_arrow().dictionary_encode(null_encoding="encode")
        places = found.indices.to_numpy()
        places = places.astype(np.min_scalar_type(len(found.dictionary)))
        return pa.DictionaryArray.from_arrays(places, found.dictionary, safe=False)

    return pa.RecordBatch.from_arrays(list(pool.map(code, rows.columns)), rows.columns)


def _counted(column: pa.Array) -> pl.DataFrame:
    """Return the distinct values of a coded column as token and count; nulls do not count."""
    if not isinstance(column, pa.DictionaryArray):
        values = pl.from_arrow(column).alias("token").to_frame()
        return values.drop_nulls().group_by("token").len("count")
    counts = np.bincount(column.indices.to_numpy(), minlength=len(column.dictionary))
    tokens = pl.from_arrow(column.dictionary).alias("token")
    table = pl.DataFrame([tokens, pl.Series("count", counts, pl.get_index_type())])
    table = table.drop_nulls() if tokens.null_count() else table
    # To Arrow -0.0 is another value than 0.0.
    return _summed(table.lazy()).collect() if tokens.dtype.is_float() else table


# Tokens held in memory, over all columns, before the largest table goes to disk.
_MEMORY_TOKENS = 6_000_000
# Partial counts gathered before they are added up.
_PENDING_TOKENS = 300_000
_PARTITIONS = 16


class TokenCounts:
    """Count the tokens of several columns, all columns at once on all cores.

    Tables too large for memory are split by hash over files; each part is then added up alone.

    Args:
        columns: Names of the columns.
        folder: Where tables may go that outgrow the memory.
        memory_tokens: How many tokens to hold in memory.
    """

    def __init__(
        self, columns: Iterable[str], folder: Path, memory_tokens: int = _MEMORY_TOKENS
    ) -> None:
        self._folder = folder
        self._memory_tokens = memory_tokens
        self._tables: dict[str, list[pl.DataFrame]] = {name: [] for name in columns}
        self._spilled: dict[str, list[Path]] = {name: [] for name in columns}

    def add(self, tokens: Mapping[str, pl.DataFrame]) -> None:
        """Add the tokens of a batch: columns token, each once, and count."""
        for name, table in tokens.items():
            self._tables[name].append(table)
        self._keep_small(list(tokens))

    def _keep_small(self, names: list[str]) -> None:
        self._add_up([name for name in names if _pending(self._tables[name]) > _PENDING_TOKENS])
        while sum(map(_height, self._tables.values())) > self._memory_tokens:
            self._spill(max(self._tables, key=lambda name: _height(self._tables[name])))

    def take_in(self, other: "TokenCounts") -> None:
        """Add what another has counted of the same columns; its files must be readable here."""
        for name, tables in other._tables.items():
            self._tables[name] += tables
            self._spilled[name] += other._spilled[name]
        self._keep_small(list(self._tables))

    def add_counted(self, name: str, counts: pl.DataFrame) -> None:
        """Add counts of tokens, given as texts, of the type that the column's tokens have here."""
        there = self._tables[name] or [self.frequent(name, 2**31)]
        dtype = there[0].schema["token"]
        if not dtype.is_(pl.Null):
            counts = counts.with_columns(pl.col("token").cast(dtype, strict=False)).drop_nulls()
        self._tables[name].append(counts.cast({"count": there[0].schema["count"]}))
        self._keep_small([name])

    def frequent(self, name: str, least: int = 1) -> pl.DataFrame:
        """Return the tokens of a column that occurred at least so often.

        Returns:
            Columns token and count, in no particular order.
        """
        return self._those(name, pl.col("count") >= least)

    def rare(self, name: str, least: int) -> pl.DataFrame:
        """Return the tokens of a column that occurred less often; as :meth:`frequent`."""
        return self._those(name, pl.col("count") < least)

    def _those(self, name: str, wanted: pl.Expr) -> pl.DataFrame:
        if not self._spilled[name]:
            self._add_up(list(self._tables))
            tables = self._tables[name]
            return tables[0].filter(wanted) if tables else pl.DataFrame({"token": [], "count": []})
        self._spill(name)
        parts = []
        for part in range(_PARTITIONS):
            files = [folder / f"{part}.parquet" for folder in self._spilled[name]]
            part_of = pl.concat([pl.read_parquet(file) for file in files])
            parts.append(_summed(part_of.lazy()).filter(wanted).collect())
        return pl.concat(parts)

    def _add_up(self, names: list[str]) -> None:
        names = [name for name in names if len(self._tables[name]) > 1]
        tables = [_summed(pl.concat(self._tables[name]).lazy()) for name in names]
        # The engine that streams adds up as it goes; the other one gathers each token's rows.
        sums = pl.collect_all(tables, engine="streaming")
        for name, table in zip(names, sums, strict=True):
            self._tables[name] = [table]

    def _spill(self, name: str) -> None:
        if not self._tables[name]:
            return
        self._add_up([name])
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        table = self._tables[name][0].with_columns(part=pl.col("token").hash(seed=0) % _PARTITIONS)
        for part in range(_PARTITIONS):
            chosen = table.filter(pl.col("part") == part).drop("part")
            chosen.write_parquet(folder / f"{part}.parquet", compression="lz4")
        self._spilled[name].append(folder)
        self._tables[name] = []


def _summed(table: pl.LazyFrame) -> pl.LazyFrame:
    return table.group_by("token").agg(pl.col("count").sum())


def _most_frequent(table: pl.DataFrame, most: int) -> pl.DataFrame:
    """Return the most frequent tokens, in an order that is the same for the same tokens."""
    if len(table) <= most:
        return table.sort(pl.col("token").hash(seed=0))  # a third of the time of sorting texts
    return table.sort("count", "token", descending=[True, False]).head(most)


def _height(tables: list[pl.DataFrame]) -> int:
    return sum(table.height for table in tables)


def _pending(tables: list[pl.DataFrame]) -> int:
    """Count what is not yet added up; of a large table only what exceeds half its size."""
    return _height(tables[1:]) - _height(tables[:1]) // 2


@dataclass
class Moments:
    """Count, mean, squared deviations and range of a column of numbers, batch after batch.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1982.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = np.inf
    most: float = -np.inf

    def add(self, values: pl.Series) -> None:
        """Add a batch; nulls do not count."""
        batch = values.drop_nulls().cast(pl.Float64).to_numpy()
        if not len(batch):
            return
        mean = float(batch.mean())
        squares = float(((batch - mean) ** 2).sum())
        self.take_in(Moments(len(batch), mean, squares, float(batch.min()), float(batch.max())))

    def take_in(self, other: "Moments") -> None:
        """Add what another was given."""
        if not other.count:
            return
        total, apart = self.count + other.count, other.mean - self.mean
        self.squares += other.squares + apart**2 * self.count * other.count / total
        self.mean += apart * other.count / total
        self.count = total
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)

    def as_fuxictr(self) -> dict[str, float]:
        """Return the statistics FuxiCTR's normalizers are made from."""
        return {
            "min": self.least,
            "max": self.most,
            "mean": self.mean,
            "std": float(np.sqrt(self.squares / max(self.count, 1))),
            "count": self.count,
        }


def quantiles(counts: pl.DataFrame, shares: np.ndarray) -> np.ndarray:
    """Return quantiles of counted numbers, with linear interpolation as in ``numpy.quantile``.

    Args:
        counts: Columns token (numbers) and count; NaN does not count.
        shares: Shares in [0, 1].
    """
    known = counts.with_columns(pl.col("token").cast(pl.Float64))
    known = known.filter(pl.col("token").is_not_nan()).sort("token")
    values = known["token"].to_numpy()
    last = np.cumsum(known["count"].to_numpy().astype(np.int64)) - 1
    at = shares * last[-1]
    low = values[np.searchsorted(last, np.floor(at))]
    high = values[np.searchsorted(last, np.ceil(at))]
    return low + (high - low) * (at - np.floor(at))
