"""Make the data set ml_1m_7 from the files of MovieLens-1M, which may not be passed on.

    python data/make_ml_1m_7.py ml-1m

reads ``ratings.dat``, ``users.dat`` and ``movies.dat`` of GroupLens' ``ml-1m.zip`` and writes
``train.csv``, ``valid.csv`` and ``test.csv`` beside this script, in ``ml_1m_7/``. The same input
gives the same bytes on every machine; their md5 sums are in ``data/README.md``.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl

SEED = 7
# Where train ends and where valid ends, as shares of the rows.
CUTS = {"train": 0.8, "valid": 0.9, "test": 1.0}
FIELDS = {
    "ratings": ["user_id", "movie_id", "rating", "timestamp"],
    "users": ["user_id", "gender", "age", "occupation", "zip_code"],
    "movies": ["movie_id", "title", "genres"],
}


def read_table(folder: Path, name: str) -> pl.DataFrame:
    """Read one of the three files, fields separated by ``::``, as text.

    Args:
        folder: The unpacked ``ml-1m``.
        name: "ratings", "users" or "movies".

    Raises:
        OSError: The file is not there.
        ValueError: It is not one of MovieLens-1M.
    """
    file = folder / f"{name}.dat"
    lines = file.read_text(encoding="latin-1").splitlines()
    rows = [line.split("::") for line in lines if line]
    if not rows or any(len(row) != len(FIELDS[name]) for row in rows):
        raise ValueError(f"{file} is not MovieLens-1M's: a line is {'::'.join(FIELDS[name])}")
    return pl.DataFrame(rows, schema=FIELDS[name], orient="row")


def read_movielens(folder: Path) -> pl.DataFrame:
    """Read MovieLens-1M as a CTR data set: is a movie rated above 3, or below?

    Args:
        folder: The unpacked ``ml-1m``.

    Returns:
        One row per rating other than 3, by user and movie: label, seven id fields, and genres,
        a sequence separated by ``^``.
    """
    ratings, users, movies = (read_table(folder, name) for name in FIELDS)
    movies = movies.with_columns(
        pl.col("title").str.extract(r"\((\d{4})\)\s*$").alias("release_year"),
        pl.col("genres").str.replace_all("|", "^", literal=True),
    )
    return (
        ratings.with_columns(pl.col("rating", "user_id", "movie_id").cast(pl.Int32))
        .filter(pl.col("rating") != 3)
        .sort("user_id", "movie_id")
        .with_columns(pl.col("user_id", "movie_id").cast(pl.String))
        .join(users, on="user_id", how="left", maintain_order="left")
        .join(movies, on="movie_id", how="left", maintain_order="left")
        .select(
            (pl.col("rating") > 3).cast(pl.Int8).alias("label"),
            *FIELDS["users"], "movie_id", "release_year", "genres",
        )
    )  # fmt: skip


def make_ml_1m_7(source: Path, folder: Path) -> None:
    """Write the three splits, drawn at random over ratings.

    Args:
        source: The unpacked ``ml-1m``.
        folder: Where to write; made if absent, files of these names are replaced.
    """
    rows = read_movielens(source)
    # RandomState, not Generator: NumPy promises never to change the stream of the former.
    order = np.random.RandomState(SEED).permutation(rows.height)
    ends = [int(share * rows.height) for share in CUTS.values()]
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(CUTS, np.split(order, ends[:-1]), strict=True):
        split = rows[part]
        split.write_csv(folder / f"{name}.csv")
        print(f"{name}: {split.height:,} rows, {split['label'].mean():.2%} positive")


def main() -> None:
    """Parse the command line and make the data set."""
    parser = argparse.ArgumentParser(description="Make ml_1m_7 from MovieLens-1M.")
    parser.add_argument("source", type=Path, help="unpacked ml-1m.zip of GroupLens")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).resolve().parent / "ml_1m_7",
        help="where to write (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        make_ml_1m_7(arguments.source, arguments.folder)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
