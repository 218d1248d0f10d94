"""Raw rows encoded and scored by the model of a run, in their order and in bounded memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from fuxictr.pytorch.models import MultiTaskModel
from torch import Tensor
from tqdm import tqdm

from fuxictr_tf4ctr.datasets.csv_files import SkippedRows
from fuxictr_tf4ctr.datasets.loader import is_binary
from fuxictr_tf4ctr.datasets.new_rows import EncodedRows, RawRows, RowEncoder, read_rows
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.files import whole_file
from fuxictr_tf4ctr.training import evaluate

if TYPE_CHECKING:
    from fuxictr_tf4ctr.runs.loading import LoadedRun

Batch = Mapping[str, Tensor]


@dataclass
class ScoredRows:
    """What became of the rows of an input.

    Attributes:
        rows: How many were scored.
        skipped: How many bad ones were left out, and what is wrong with the first.
        seen: Column -> how many categorical values or tokens were looked up.
        unknown: Column -> how many of them the run's vocabulary lacks.
        metrics: Metric values, of an evaluation.
    """

    rows: int = 0
    skipped: SkippedRows = field(default_factory=SkippedRows)
    seen: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Say what is to be known of the rows, one line each."""
        found = [f"{self.rows:,} rows"]
        for name, count in self.unknown.items():
            if count:
                of = self.seen[name]
                found.append(f"{name}: {count:,} of {of:,} values unknown ({count / of:.2%})")
        if self.skipped.count:
            found.append(f"{self.skipped.count:,} bad rows skipped, such as")
            found += [f"  {problem}" for problem in self.skipped.named]
        return found


def evaluate_files(run: "LoadedRun", source: str | Path, skip_bad_rows: bool = False) -> ScoredRows:
    """Compute the run's metrics on raw files that have the label.

    Args:
        run: The run whose model is evaluated.
        source: A csv or parquet file, a folder of such files, or a glob pattern.
        skip_bad_rows: Leave bad rows out and count them, instead of raising for the first.

    Raises:
        SettingsError: A metric is not defined on the rows.
        DataError: A file is missing, empty or unreadable, lacks a column, or holds a bad row.
    """
    group_id = run.feature_map.group_id
    is_meta = run.feature_map.features.get(group_id, {}).get("type") == "meta"
    keep = [group_id] if is_meta else []
    done, blocks = _encoded(run, source, skip_bad_rows, keep, labels=True)
    numbers: dict[Any, int] = {}

    def batches() -> Iterator[Batch]:
        for rows in blocks:
            columns = dict(rows.columns)
            if is_meta:  # to its vocabulary all new groups are one, ``__OOV__``
                groups = rows.raw[group_id].to_list()
                own = [numbers.setdefault(each, len(numbers)) for each in groups]
                columns[group_id] = np.array(own, np.int64)
            yield from _batches(run, columns)

    done.metrics = evaluate(run.model, batches(), run.metrics, progress=False)
    return done


def predict_files(
    run: "LoadedRun",
    source: str | Path,
    output: str | Path,
    keep: Sequence[str] = (),
    streams: bool = False,
    skip_bad_rows: bool = False,
) -> ScoredRows:
    """Score the rows of raw files and write the scores, in the order of the rows.

    Args:
        run: The run whose model scores.
        source: A csv or parquet file, a folder of such files, or a glob pattern.
        output: A csv or parquet file; it appears when all rows are scored.
        keep: Columns of the input to carry along, before the scores.
        streams: Whether to write the scores of both streams as well.
        skip_bad_rows: Leave bad rows out and count them, instead of raising for the first.

    Raises:
        SettingsError: A column to keep is not there, the output cannot be written, or the model
            does not score its streams.
        DataError: A file is missing, empty or unreadable, lacks a column, or holds a bad row.
    """
    names = _score_names(run, streams)
    clash = set(keep) & set(names)
    if clash:
        raise SettingsError(f"column {clash.pop()!r} cannot be kept: scores are so named")
    with _frame_file(Path(output)) as append:
        done, blocks = _encoded(run, source, skip_bad_rows, keep)
        for rows in blocks:
            append(rows.raw.select(keep).with_columns(**_scored(run, rows, names)))
    return done


@contextmanager
def _frame_file(path: Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Lend a function that writes the next rows of a csv or parquet file."""
    if path.suffix not in (".csv", ".parquet"):
        raise SettingsError(f"{path}: the name of the output must end in .csv or .parquet")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: the folder does not exist")
    parquet: pq.ParquetWriter | None = None

    def append(frame: pl.DataFrame) -> None:
        nonlocal parquet
        if path.suffix == ".csv":
            # Not by polars into the file itself, past its keeping of errors.
            file.write(frame.write_csv(include_header=not file.written).encode())
        else:
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            parquet = parquet or pq.ParquetWriter(file, table.schema)
            parquet.write_table(table)
        file.check()

    with whole_file(path) as file:
        try:
            yield append
        finally:
            if parquet is not None:
                parquet.close()


def _score_names(run: "LoadedRun", streams: bool) -> list[str]:
    """Name the scores of a run; a model of several labels has click_pred and the like."""
    several = isinstance(run.model, MultiTaskModel)
    scores = [f"{label}_pred" for label in run.feature_map.labels] if several else ["y_pred"]
    calibrated = ["y_calibrated"] if run.calibrated else []
    return [*scores, *calibrated, *(("y_simple", "y_complex") if streams else ())]


def score_frame(run: "LoadedRun", frame: Any, streams: bool = False) -> dict[str, np.ndarray]:
    """Score the rows of a polars or pandas frame; see :meth:`LoadedRun.predict_frame`."""
    rows = RawRows(Path("frame"), 0, _polars(frame))
    encoder = run.row_encoder
    names = _score_names(run, streams)
    if not rows.frame.height:
        encoder.checked(rows.frame, rows.path)
        return {name: np.empty(0) for name in names}
    scores = _scored(run, encoder.encode(rows), names)
    return {name: values.astype(np.float64) for name, values in scores.items()}


def _polars(frame: Any) -> pl.DataFrame:
    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    try:
        return pl.from_pandas(frame)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{type(frame).__name__} is no polars or pandas frame: {error}") from error


def _encoded(
    run: "LoadedRun",
    source: str | Path,
    skip_bad_rows: bool,
    keep: Sequence[str] = (),
    labels: bool = False,
) -> tuple[ScoredRows, Iterator[EncodedRows]]:
    """Read and encode files; return also what will have become of the rows once all are read."""
    done = ScoredRows()
    skipped = done.skipped if skip_bad_rows else None
    encoder = RowEncoder(
        run.record.schema_folder,
        run.feature_map,
        labels=labels,
        binary=is_binary(run.settings["task"]),
        skipped=skipped,
    )
    done.seen, done.unknown = encoder.seen, encoder.unknown

    def blocks() -> Iterator[EncodedRows]:
        with tqdm(unit=" rows", unit_scale=True, disable=None) as progress:
            for raw in read_rows(source, encoder, keep, skipped):
                rows = encoder.encode(raw)
                if rows.raw.height:
                    yield rows
                done.rows += rows.raw.height
                progress.update(rows.raw.height)
        if not done.rows:
            raise DataError(f"{source}: no row is left, all {done.skipped.count} are bad")

    return done, blocks()


def _batches(run: "LoadedRun", columns: Mapping[str, np.ndarray]) -> Iterator[Batch]:
    """Cut rows into batches as the loader serves them: ids int64, numbers float32."""
    tensors = {
        name: torch.from_numpy(values.astype(np.int64 if values.dtype.kind in "iu" else np.float32))
        for name, values in columns.items()
    }
    return cut_into_batches(tensors, run.settings["batch_size"])


def cut_into_batches(columns: Batch, size: int) -> Iterator[Batch]:
    """Cut columns [rows, ...] into batches of so many rows."""
    for start in range(0, len(next(iter(columns.values()))), size):
        yield {name: column[start : start + size] for name, column in columns.items()}


def _scored(run: "LoadedRun", rows: EncodedRows, names: Sequence[str]) -> dict[str, np.ndarray]:
    def scores(batch: Batch) -> Batch:
        outputs = run.model(batch)
        missing = [name for name in names if name not in outputs]
        if missing:
            raise SettingsError(
                f"{run.settings.model_class.__name__} as it was trained returns no {missing[0]}; "
                "only a twin with twin_focus scores its streams"
            )
        return {name: outputs[name] for name in names}

    return whole_columns(_batches(run, rows.columns), scores)


def whole_columns(
    batches: Iterable[Batch], columns: Callable[[Batch], Batch]
) -> dict[str, np.ndarray]:
    """Join what is computed of each batch, without gradients: [rows] by name, on the host."""
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for batch in batches:
            for name, column in columns(batch).items():
                # A column may be a view of its batch: a clone lets go of the batch.
                parts.setdefault(name, []).append(column.reshape(-1).clone())
    return {name: torch.cat(each).cpu().numpy() for name, each in parts.items()}
