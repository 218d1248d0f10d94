"""Write csv files shaped like Criteo's: a label, 13 counts, 26 hashed categories; seeded.

python benchmarks/criteo_like.py ROWS FILE
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

COUNTS = [f"I{i}" for i in range(1, 14)]
CATEGORIES = [f"C{i}" for i in range(1, 27)]
# Distinct values of C1 to C26: Criteo_x4's orders of magnitude, the millions cut to 200,000.
SIZES = (
    *(1460, 580, 200_000, 150_000, 305, 24, 12_500, 630, 3, 90_000, 5600, 180_000, 3200),
    *(27, 15_000, 160_000, 10, 5600, 2170, 4, 170_000, 18, 15, 90_000, 105, 80_000),
)
_BLOCK_ROWS = 100_000


def write_csv(path: Path, rows: int, seed: int = 1) -> None:
    """Write a csv file with a header.

    Args:
        path: The file.
        rows: How many rows it gets.
        seed: The same seed gives the same rows.
    """
    rng = np.random.default_rng(seed)
    texts = [_texts(number, size) for number, size in enumerate(SIZES)]
    with open(path, "wb") as file:
        for start in range(0, rows, _BLOCK_ROWS):
            block = _block(rng, min(_BLOCK_ROWS, rows - start), texts)
            block.write_csv(file, include_header=start == 0)


def _texts(number: int, size: int) -> pl.Series:
    """Make distinct hexadecimal texts: multiplication by an odd number loses none of 2^32."""
    hashed = (np.arange(size, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(number)) % 2**32
    return pl.Series([f"{value:08x}" for value in hashed.tolist()])


def _block(rng: np.random.Generator, rows: int, texts: Sequence[pl.Series]) -> pl.DataFrame:
    columns = {"Label": pl.Series((rng.random(rows) < 0.256).astype(np.int8))}
    for i, name in enumerate(COUNTS, 1):
        values = pl.Series(rng.lognormal(1.5 + i % 4, 1.6, rows).astype(np.int64))
        columns[name] = values.set(pl.Series(rng.random(rows) < 0.05 * (i % 5)), None)
    for i, (name, known) in enumerate(zip(CATEGORIES, texts, strict=True), 1):
        # The cube makes few values frequent and most rare.
        drawn = (len(known) * rng.random(rows) ** 3).astype(np.uint32)
        columns[name] = known.gather(drawn).set(pl.Series(rng.random(rows) < 0.03 * (i % 4)), None)
    return pl.DataFrame(columns)


if __name__ == "__main__":
    write_csv(Path(sys.argv[2]), int(sys.argv[1]))
