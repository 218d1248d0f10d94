"""Counts of tokens and sums of numbers over a stream of batches, in bounded memory."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

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

    def add(self, tokens: Mapping[str, pl.Series]) -> None:
        """Count the tokens of a batch; nulls do not count."""
        found = pl.collect_all(
            [
                values.alias("token").to_frame().lazy().drop_nulls().group_by("token").len("count")
                for values in tokens.values()
            ]
        )
        for name, table in zip(tokens, found, strict=True):
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

    def frequent(self, name: str, least: int = 1) -> pl.DataFrame:
        """Return the tokens of a column that occurred at least so often.

        Returns:
            Columns token and count, in no particular order.
        """
        rare = pl.col("count") < least
        if not self._spilled[name]:
            self._add_up([name])
            tables = self._tables[name]
            return tables[0].filter(~rare) if tables else pl.DataFrame({"token": [], "count": []})
        self._spill(name)
        parts = []
        for part in range(_PARTITIONS):
            files = [folder / f"{part}.parquet" for folder in self._spilled[name]]
            part_of = pl.concat([pl.read_parquet(file) for file in files])
            parts.append(_summed(part_of.lazy()).filter(~rare).collect())
        return pl.concat(parts)

    def _add_up(self, names: list[str]) -> None:
        names = [name for name in names if len(self._tables[name]) > 1]
        sums = pl.collect_all([_summed(pl.concat(self._tables[name]).lazy()) for name in names])
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
