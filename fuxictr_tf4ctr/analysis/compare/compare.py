"""``fuxictr compare``: is run B better than run A, and what does it cost?"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.analysis.compare.scores import (
    RunScores,
    finished_run,
    refuse_other_labels,
    refuse_other_rows,
    score_run,
)
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.metrics.delong import DeLong, delong_test
from fuxictr_tf4ctr.metrics.resampled import Interval, PairedIntervals, paired_bootstrap, statistics

# Always compared, whatever metrics the runs themselves name.
_METRICS = ("AUC", "logloss", "ece", "gAUC")
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Cost:
    """Speed and size of a run.

    Attributes:
        parameters: Number of trainable parameters.
        train_seconds: Duration of the training, its evaluations included.
        train_rows_per_second: Rows per second of training alone.
        score_rows_per_second: Test rows per second, on this machine, just now.
    """

    parameters: int
    train_seconds: float
    train_rows_per_second: float
    score_rows_per_second: float


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
        costs: Speed and size of both.
    """

    expids: tuple[str, str]
    folders: tuple[str, str]
    rows: int
    resamples: int
    metrics: dict[str, PairedIntervals]
    delong: DeLong
    costs: tuple[Cost, Cost]

    def as_json(self) -> dict[str, Any]:
        """Return the content in what JSON knows; a number that is not finite becomes None."""
        return _jsonable(asdict(self))

    def __str__(self) -> str:
        return "\n".join([*self._heading(), "", *self._metric_lines(), "", *self._cost_lines()])

    def _heading(self) -> list[str]:
        named = zip("AB", self.expids, self.folders, strict=True)
        return [
            *(f"{letter}  {expid}  {folder}" for letter, expid, folder in named),
            f"{self.rows:,} test rows; 95% intervals of {self.resamples:,} paired resamples",
        ]

    def _metric_lines(self) -> list[str]:
        lines = [f"{'':<10}{'A':<30}{'B':<30}B - A"]
        for name, pair in self.metrics.items():
            cells = (_cell(pair.first), _cell(pair.second), _cell(pair.difference, "+"))
            lines.append(f"{name:<10}{cells[0]:<30}{cells[1]:<30}{cells[2]}")
        test = self.delong
        differ = "differ" if test.p_value < _SIGNIFICANT else "do not differ significantly"
        lines.append(f"DeLong's test: z = {test.z:+.2f}, p = {test.p_value:.3g}: the AUCs {differ}")
        return lines

    def _cost_lines(self) -> list[str]:
        first, second = self.costs
        rows = (
            ("parameters", first.parameters, second.parameters, ",.0f"),
            ("training, s", first.train_seconds, second.train_seconds, ",.1f"),
            (
                "training, rows/s",
                first.train_rows_per_second,
                second.train_rows_per_second,
                ",.0f",
            ),
            ("scoring, rows/s", first.score_rows_per_second, second.score_rows_per_second, ",.0f"),
        )
        return [
            f"{'':<20}{'A':>14}{'B':>14}{'B / A':>10}",
            *(f"{name:<20}{a:>14{form}}{b:>14{form}}{b / a:>10.2f}" for name, a, b, form in rows),
        ]


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
        SettingsError: A run is not there or not finished, or ``resamples`` is too small.
        DataError: The runs' test data are gone or differ.
    """
    if resamples < 2:
        raise SettingsError(f"resamples={resamples} must be 2 or more")
    runs = [finished_run(folder) for folder in (first, second)]
    refuse_other_rows(runs)
    scores = [score_run(run) for run in runs]
    refuse_other_labels(scores)
    return compare_scores(*scores, resamples, seed)


def compare_scores(
    first: RunScores, second: RunScores, resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Compare two runs whose test rows are scored; as :func:`compare_runs`."""
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
        costs=(cost(first), cost(second)),
    )


def cost(scores: RunScores) -> Cost:
    """Return speed and size of a run."""
    record = scores.run.record
    return Cost(
        record.parameters,
        record.seconds["train"],
        scores.trained_rows_per_second,
        scores.rows_per_second,
    )


def _cell(interval: Interval, sign: str = "") -> str:
    form = f"{sign}.5f"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
