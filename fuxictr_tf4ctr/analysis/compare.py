"""Two runs on the same test rows: their metrics, how sure the difference is, speed and size."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.metrics.definitions import STREAMS
from fuxictr_tf4ctr.metrics.significance import (
    DeLong,
    PairedIntervals,
    delong_test,
    paired_bootstrap,
    statistics,
)
from fuxictr_tf4ctr.runs.loading import LoadedRun, load_run
from fuxictr_tf4ctr.runs.scoring import whole_columns


@dataclass(frozen=True)
class RunScores:
    """Labels and scores of the test rows, in the order of the encoded file.

    Attributes:
        run: The run.
        y_true: [N] labels, 0 or 1.
        y_pred: [N] probabilities.
        streams: [N] probabilities of the "simple" and the "complex" stream, of a twin whose
            streams have heads; empty for other models.
        group_id: [N] group of each row, None where the run has no ``group_id``.
        seconds: How long scoring took, reading included.
    """

    run: LoadedRun
    y_true: np.ndarray
    y_pred: np.ndarray
    streams: dict[str, np.ndarray] = field(default_factory=dict)
    group_id: np.ndarray | None = None
    seconds: float = 0.0

    @property
    def costs(self) -> dict[str, float]:
        """Speed and size, as :class:`Comparison` has them."""
        return {
            "parameters": self.run.record.parameters,
            "train_seconds": self.run.record.seconds["train"],
            "train_rows_per_second": self.trained_rows_per_second,
            "score_rows_per_second": len(self.y_true) / self.seconds,
        }

    @property
    def trained_rows_per_second(self) -> float:
        """Training rows per second of training, evaluations left out; NaN where not recorded."""
        evaluations = self.run.record.evaluations
        seconds = sum(each["seconds"] for each in evaluations)
        if not seconds:
            return float("nan")
        rows, batch = self.run.record.data["rows"]["train"], self.run.settings["batch_size"]
        return evaluations[-1]["step"] * rows / -(-rows // batch) / seconds


def finished_run(folder: str | Path) -> LoadedRun:
    """Load a run that can be judged: finished, a binary classification, with test data.

    Raises:
        SettingsError, DataError: It cannot; the message says what to do.
    """
    run = load_run(folder)
    record = run.record
    if record.status != "finished":
        raise SettingsError(
            f"run {run.folder} is not finished, its status is {record.status!r}: finish it with "
            f"fuxictr run --expid {record.expid} --resume {run.folder}, or name another run"
        )
    task = run.settings["task"]
    if task != "binary_classification":
        raise SettingsError(
            f"run {run.folder} has task {task!r}; only runs of binary_classification can be "
            "compared and reported on"
        )
    if run.settings.params.get("weight_col"):
        raise SettingsError(
            f"run {run.folder} weighs its rows by {run.settings['weight_col']!r}, which intervals "
            "and curves know nothing of: its run.json and fuxictr evaluate have weighted metrics"
        )
    if not record.data["rows"].get("test"):
        raise DataError(
            f"run {run.folder} has no test rows: give its data set {run.settings['dataset_id']!r} "
            "test_data or test_size, and train again"
        )
    return run


def score_run(run: LoadedRun) -> RunScores:
    """Score the test rows with a run's best weights.

    Raises:
        DataError: The test rows are of one class, so that they rank nothing.
    """
    model = run.model.eval()

    def columns(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = model(batch)
        found = {"y_true": model.get_labels(batch), "y_pred": outputs["y_pred"]}
        found |= {name: outputs[f"y_{name}"] for name in STREAMS if f"y_{name}" in outputs}
        found = {name: column.double() for name, column in found.items()}
        if model.feature_map.group_id is not None:
            found["group_id"] = model.get_group_id(batch)
        return found

    start = time.perf_counter()
    scores = whole_columns(run.loader("test"), columns)
    seconds = time.perf_counter() - start
    group_id = scores.pop("group_id", None)
    y_true, y_pred = scores.pop("y_true"), scores.pop("y_pred")
    if y_true.min() == y_true.max():
        raise DataError(
            f"run {run.folder}: all {len(y_true)} test labels are {y_true[0]:.0f}; a comparison "
            "needs both classes"
        )
    return RunScores(run, y_true, y_pred, scores, group_id, seconds)


def comparable_runs(folders: Sequence[str | Path], resamples: int) -> list[LoadedRun]:
    """Load runs that can be compared, by so many resamples; what cannot be is refused unscored.

    Raises:
        SettingsError: A run is not finished, or ``resamples`` is too small.
        DataError: A run is not there, or its encoded data differ from those of the first. Data
            encoded with grown vocabularies differ and may hold the same rows: their labels will
            tell.
    """
    if resamples < 2:
        raise SettingsError(f"resamples={resamples} must be 2 or more")
    first, *others = runs = [finished_run(folder) for folder in folders]
    for other in others:
        grown = first.record.ancestor or other.record.ancestor
        if not grown and other.record.data["fingerprint"] != first.record.data["fingerprint"]:
            described = (
                f"{run.settings['dataset_id']} {run.record.data['fingerprint'][:8]}, "
                f"{run.record.data['rows']['test']} rows"
                for run in (first, other)
            )
            raise DataError(
                f"runs {first.folder} and {other.folder} were trained on different encoded data "
                f"({'; '.join(described)}): compare runs of one data set, "
                "encoded with the same settings"
            )
    return runs


def refuse_other_labels(scores: Sequence[RunScores]) -> None:
    """Refuse runs whose test labels differ in number, value or order.

    Raises:
        DataError: Naming the first run that differs from the first of all.
    """
    first = scores[0]
    for other in scores[1:]:
        if not np.array_equal(first.y_true, other.y_true):
            raise DataError(
                f"the test labels of runs {first.run.folder} and {other.run.folder} differ: "
                "compare runs with the same label column and test rows"
            )


# Always compared, whatever metrics the runs themselves name.
_METRICS = ("AUC", "logloss", "ece", "gAUC")
_SIGNIFICANT = 0.05


# Speed and size, and how each is shown.
_COSTS = {
    "parameters": ("parameters", ",.0f"),
    "train_seconds": ("training, s", ",.1f"),
    "train_rows_per_second": ("training, rows/s", ",.0f"),
    "score_rows_per_second": ("scoring, rows/s", ",.0f"),
}


@dataclass(frozen=True)
class Comparison:
    """Runs A and B on the same test rows.

    Attributes:
        expids: Names of both experiments.
        folders: Folders of both runs.
        rows: Number of test rows.
        resamples: Resamples behind the intervals.
        metrics: Intervals by metric; the difference is B minus A.
        delong: Test of the AUCs.
        costs: Speed and size of both: "parameters", "train_seconds" (evaluations included),
            "train_rows_per_second" and, on this machine, just now, "score_rows_per_second".
    """

    expids: tuple[str, str]
    folders: tuple[str, str]
    rows: int
    resamples: int
    metrics: dict[str, PairedIntervals]
    delong: DeLong
    costs: tuple[dict[str, float], dict[str, float]]

    def as_json(self) -> dict[str, Any]:
        """Return the content in what JSON knows; a number that is not finite becomes None."""
        return _jsonable(asdict(self))

    def __str__(self) -> str:
        named = zip("AB", self.expids, self.folders, strict=True)
        lines = [
            *(f"{letter}  {expid}  {folder}" for letter, expid, folder in named),
            f"{self.rows:,} test rows; 95% intervals of {self.resamples:,} paired resamples",
            "",
            f"{'':<10}{'A':<30}{'B':<30}B - A",
        ]
        for name, pair in self.metrics.items():
            values = f"{name:<10}{f'{pair.first:.5f}':<30}{f'{pair.second:.5f}':<30}"
            lines.append(f"{values}{pair.difference:+.5f}")
        test = self.delong
        differ = "differ" if test.p_value < _SIGNIFICANT else "do not differ significantly"
        lines += [
            f"DeLong's test: z = {test.z:+.2f}, p = {test.p_value:.3g}: the AUCs {differ}",
            "",
            f"{'':<20}{'A':>14}{'B':>14}{'B / A':>10}",
        ]
        first, second = self.costs
        for name, (words, form) in _COSTS.items():
            a, b = first[name], second[name]
            lines.append(f"{words:<20}{a:>14{form}}{b:>14{form}}{b / a:>10.2f}")
        return "\n".join(lines)


def compare_runs(
    first: str | Path, second: str | Path, resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Score the same test rows with two runs and compare them.

    Args:
        first: Folder of run A.
        second: Folder of run B.
        resamples: How many bootstrap resamples to draw.
        seed: Seed of the resamples.

    Raises:
        SettingsError: A run is not finished, or ``resamples`` is too small.
        DataError: A run is not there, or the runs' test data are gone, differ, or have fewer than
            two rows of a class.
    """
    runs = comparable_runs((first, second), resamples)
    scores = [score_run(run) for run in runs]
    refuse_other_labels(scores)
    return compare_scores(*scores, resamples, seed)


def compare_scores(
    first: RunScores, second: RunScores, resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Compare two runs whose test rows are scored; as :func:`compare_runs`."""
    rows, positives = len(first.y_true), int(first.y_true.sum())
    if min(positives, rows - positives) < 2:
        raise DataError(
            f"runs {first.run.folder} and {second.run.folder}: {positives} of {rows} test labels "
            "are 1; a comparison needs two of each class: compare runs with more test rows"
        )
    groups = first.group_id if first.group_id is not None else second.group_id
    prepared = [
        statistics(scores.y_true, scores.y_pred, _METRICS, groups) for scores in (first, second)
    ]
    return Comparison(
        expids=(first.run.record.expid, second.run.record.expid),
        folders=(str(first.run.folder), str(second.run.folder)),
        rows=len(first.y_true),
        resamples=resamples,
        metrics=paired_bootstrap(*prepared, resamples, seed),
        delong=delong_test(first.y_true, first.y_pred, second.y_pred),
        costs=(first.costs, second.costs),
    )


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
