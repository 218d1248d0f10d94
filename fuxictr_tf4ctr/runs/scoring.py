"""Raw rows encoded and scored by the model of a run, in their order and in bounded memory."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from fuxictr.pytorch.models import MultiTaskModel
from torch import Tensor
from tqdm import tqdm

from fuxictr_tf4ctr.datasets.csv_files import SkippedRows
from fuxictr_tf4ctr.datasets.loader import is_binary
from fuxictr_tf4ctr.datasets.new_rows import EncodedRows, RawRows, RowEncoder, read_rows
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.training import evaluate

if TYPE_CHECKING:
    from fuxictr_tf4ctr.runs.loading import LoadedRun

LOG = logging.getLogger(__name__)

STREAMS = ("y_simple", "y_complex")


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
    done = ScoredRows()
    groups = _Groups(run)
    batches = (
        batch
        for rows in encoded(run, source, done, groups.columns, labels=True, skip=skip_bad_rows)
        for batch in _batches(run, groups.renumbered(rows))
    )
    done.metrics = evaluate(run.model, batches, run.metrics, progress=False)
    return done


def score_names(run: "LoadedRun", streams: bool) -> list[str]:
    """Name the scores of a run: y_pred, y_calibrated if it is calibrated, its streams if wanted.

    A model of several labels has one for each, click_pred and the like.
    """
    several = isinstance(run.model, MultiTaskModel)
    scores = [f"{label}_pred" for label in run.feature_map.labels] if several else ["y_pred"]
    calibrated = ["y_calibrated"] if run.calibrated else []
    return [*scores, *calibrated, *(STREAMS if streams else ())]


def score_frame(run: "LoadedRun", frame: Any, streams: bool = False) -> dict[str, np.ndarray]:
    """Score the rows of a polars or pandas frame; see :meth:`LoadedRun.predict_frame`."""
    rows = RawRows(Path("frame"), 0, _polars(frame))
    encoder = run.row_encoder
    names = score_names(run, streams)
    if not rows.frame.height:
        encoder.checked(rows.frame, rows.path)
        return {name: np.empty(0) for name in names}
    with torch.no_grad():
        scores = scored(run, encoder.encode(rows), names)
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


def encoded(
    run: "LoadedRun",
    source: str | Path,
    done: ScoredRows,
    keep: Sequence[str],
    *,
    labels: bool,
    skip: bool,
) -> Iterator[EncodedRows]:
    """Read and encode files, and note in ``done`` what became of the rows."""
    skipped = done.skipped if skip else None
    encoder = RowEncoder(
        run.record.schema_folder,
        run.feature_map,
        labels=labels,
        binary=is_binary(run.settings["task"]),
        skipped=skipped,
    )
    done.seen, done.unknown = encoder.seen, encoder.unknown
    with tqdm(unit=" rows", unit_scale=True, disable=None) as progress:
        for raw in read_rows(source, encoder, keep, skipped):
            rows = encoder.encode(raw)
            if rows.raw.height:
                yield rows
            done.rows += rows.raw.height
            progress.update(rows.raw.height)
    if not done.rows:
        raise DataError(f"{source}: no row is left, all {done.skipped.count} are bad")


def _batches(run: "LoadedRun", rows: EncodedRows) -> Iterator[dict[str, Tensor]]:
    """Cut rows into batches as the loader serves them: ids int64, numbers float32."""
    columns = {
        name: torch.from_numpy(values.astype(np.int64 if values.dtype.kind in "iu" else np.float32))
        for name, values in rows.columns.items()
    }
    size = run.settings["batch_size"]
    for start in range(0, rows.raw.height, size):
        yield {name: column[start : start + size] for name, column in columns.items()}


def scored(run: "LoadedRun", rows: EncodedRows, names: Sequence[str]) -> dict[str, np.ndarray]:
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for batch in _batches(run, rows):
        outputs = run.model(batch)
        for name in names:
            if name not in outputs:
                raise SettingsError(
                    f"{run.settings.model_class.__name__} as it was trained returns no {name}; "
                    "only a twin with twin_focus scores its streams"
                )
            parts[name].append(outputs[name].reshape(-1))
    return {name: torch.cat(scores).cpu().numpy() for name, scores in parts.items()}


class _Groups:
    """Tell new groups apart: to a meta column's vocabulary all new ones are one, ``__OOV__``."""

    def __init__(self, run: "LoadedRun") -> None:
        name = run.feature_map.group_id
        spec = run.feature_map.features.get(name, {})
        self.columns = [name] if spec.get("type") == "meta" else []
        self._numbers: dict[Any, int] = {}

    def renumbered(self, rows: EncodedRows) -> EncodedRows:
        """Number the groups by their raw values, in the order they come in."""
        columns = dict(rows.columns)
        for name in self.columns:
            groups = rows.raw[name].to_list()
            numbers = [self._numbers.setdefault(each, len(self._numbers)) for each in groups]
            columns[name] = np.array(numbers, np.int64)
        return EncodedRows(columns, rows.raw)
