"""Make the demo data set from the UCI "Bank Marketing" csv.

    python data/make_demo.py bank-full.csv

writes ``train.csv``, ``valid.csv`` and ``test.csv`` beside this script, in ``demo/``. The same
input gives the same bytes on every machine; their md5 sums are in ``data/README.md``.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl

# 30,000 of the 45,211 rows keep every file below 2 MB.
SPLIT_SIZES = {"train": 24_000, "valid": 3_000, "test": 3_000}
SEED = 2024


def read_bank(source: Path) -> pl.DataFrame:
    """Read the UCI csv and shape it as a CTR data set.

    ``duration`` is left out: the length of a call is known only after it, with its outcome.

    Args:
        source: ``bank-full.csv``; UCI's own file is separated by ``;``, its mirrors by ``,``.

    Returns:
        One row per call, in the order of the file: ``label`` (1: the client subscribed), then the
        15 fields.

    Raises:
        ValueError: The file is not the Bank Marketing table.
    """
    with source.open(encoding="utf-8") as file:
        header = file.readline()
    bank = pl.read_csv(source, separator=";" if ";" in header else ",")
    missing = {"age", "poutcome", "duration", "y"}.difference(bank.columns)
    if missing or bank.height < sum(SPLIT_SIZES.values()):
        raise ValueError(
            f"{source} is not UCI's bank-full.csv: {bank.height:,} rows, "
            f"columns missing: {', '.join(sorted(missing)) or 'none'}"
        )
    label = (pl.col("y") == "yes").cast(pl.Int8).alias("label")
    return bank.select(label, pl.exclude("y", "duration"))


def split(rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Draw the three disjoint splits, 8:1:1, without regard to time or client.

    Args:
        rows: The whole table.

    Returns:
        Split name to its rows.
    """
    # RandomState, not Generator: NumPy promises never to change the stream of the former.
    order = np.random.RandomState(SEED).permutation(rows.height)
    ends = np.cumsum(list(SPLIT_SIZES.values()))
    drawn = np.split(order[: ends[-1]], ends[:-1])
    return {name: rows[part] for name, part in zip(SPLIT_SIZES, drawn, strict=True)}


def make_demo(source: Path, folder: Path) -> None:
    """Write ``train.csv``, ``valid.csv`` and ``test.csv``.

    Args:
        source: The UCI csv.
        folder: Where to write; made if absent, files of these names are replaced.
    """
    splits = split(read_bank(source))
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        rows.write_csv(folder / f"{name}.csv")
        print(f"{name}: {rows.height:,} rows, {rows['label'].mean():.2%} positive")


def main() -> None:
    """Parse the command line and make the data set."""
    parser = argparse.ArgumentParser(description="Make the demo data set from UCI Bank Marketing.")
    parser.add_argument("source", type=Path, help="bank-full.csv of doi 10.24432/C5K306")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).resolve().parent / "demo",
        help="where to write (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        make_demo(arguments.source, arguments.folder)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
