"""What a finished run says of every test row."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.metrics.names import STREAMS
from fuxictr_tf4ctr.runs.loading import LoadedRun, load_run


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
    def rows_per_second(self) -> float:
        """Test rows scored per second."""
        return len(self.y_true) / self.seconds

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
    start = time.perf_counter()
    parts: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for batch in run.loader("test"):
            outputs = model(batch)
            columns = {"y_true": model.get_labels(batch), "y_pred": outputs["y_pred"]}
            columns |= {name: outputs[f"y_{name}"] for name in STREAMS if f"y_{name}" in outputs}
            if model.feature_map.group_id is not None:
                columns["group_id"] = model.get_group_id(batch)
            for name, column in columns.items():
                parts.setdefault(name, []).append(column.reshape(-1).clone())
    whole = {name: torch.cat(columns).cpu() for name, columns in parts.items()}
    group_id = whole.pop("group_id", None)
    scores = {name: column.double().numpy() for name, column in whole.items()}
    y_true, y_pred = scores.pop("y_true"), scores.pop("y_pred")
    if y_true.min() == y_true.max():
        raise DataError(
            f"run {run.folder}: all {len(y_true)} test labels are {y_true[0]:.0f}; a comparison "
            "needs both classes"
        )
    groups = None if group_id is None else group_id.numpy()
    return RunScores(run, y_true, y_pred, scores, groups, time.perf_counter() - start)


def refuse_other_rows(runs: Sequence[LoadedRun]) -> None:
    """Refuse runs whose encoded data differ, before any row is scored.

    Raises:
        DataError: Naming the first run that differs from the first of all.
    """
    first = runs[0]
    for other in runs[1:]:
        if other.record.data["fingerprint"] != first.record.data["fingerprint"]:
            raise DataError(
                f"runs {first.folder} and {other.folder} were trained on different encoded data "
                f"({_described(first)}; {_described(other)}): compare runs of one data set, "
                "encoded with the same settings"
            )


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


def _described(run: LoadedRun) -> str:
    data = run.record.data
    return f"{run.settings['dataset_id']} {data['fingerprint'][:8]}, {data['rows']['test']} rows"
