"""``fuxictr explain``: what each field is worth to a finished run, by permutation.

A field's values are dealt out anew among the test rows, and the rows scored again: what the metrics
lose is what the model had from the field. Of a twin that is said for each encoder and gate too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuxictr_tf4ctr.analysis.compare import finished_run
from fuxictr_tf4ctr.analysis.report.inside import watched_gates
from fuxictr_tf4ctr.analysis.report.page import ReportedRun, Section, table
from fuxictr_tf4ctr.analysis.report.plot import count
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.files import write_whole
from fuxictr_tf4ctr.metrics.definitions import STREAMS, cross_entropy
from fuxictr_tf4ctr.metrics.significance import Interval, delong_test
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.runs.loading import LoadedRun
from fuxictr_tf4ctr.runs.scoring import cut_into_batches, whole_columns
from fuxictr_tf4ctr.schema import NUMBER, TEXT, ListOf, Record, read_json, whole

FILE = "explanation.json"
_INTERVAL = Record(dict.fromkeys(("value", "low", "high"), NUMBER))
_WORTH = Record({"auc": _INTERVAL, "logloss": _INTERVAL})
_IMPORTANCE = Record(
    {
        "fields": ListOf(TEXT, least=1),
        "final": _WORTH,
        "streams": Record({}, others=_WORTH),
        "gates": Record({}, others=NUMBER),
    }
)
_SCHEMA = Record({"rows": whole(1), "seed": whole(0), "importances": ListOf(_IMPORTANCE, least=1)})
Content = dict[str, Any]


def table_row(importance: Mapping[str, Any]) -> dict[str, str | float]:
    """Return one of the importances of :func:`explain_run` as a row of a table."""
    cells: dict[str, str | float] = {"field": " × ".join(importance["fields"])}
    for name, worth in {"": importance["final"], **importance["streams"]}.items():
        of = f" ({name})" if name else ""
        cells[f"AUC lost{of}"] = f"{Interval(**worth['auc']):+.5f}"
        cells[f"logloss gained{of}"] = f"{Interval(**worth['logloss']):+.5f}"
    return cells | {name: round(moved, 4) for name, moved in importance["gates"].items()}


def explain_run(
    folder: str | Path,
    pairs: Sequence[tuple[str, str]] = (),
    rows: int = 100_000,
    seed: int = 0,
) -> Content:
    """Permute each field of a run's test rows, and keep what was found in the run's folder.

    The intervals are DeLong's for the AUC and the mean's for the logloss: how sure the loss is on
    these rows, under this permutation.

    Args:
        folder: A finished run.
        pairs: Fields to permute together as well: what they are worth beyond each alone tells of
            their interaction.
        rows: How many test rows to score, from the first.
        seed: Seed of the permutations.

    Returns:
        What is in the file: "rows", how many were scored, "seed", and "importances", a mapping for
        each field and pair, the most important first. Of these "fields" names them; "final" has
        what the model's prediction loses in "auc" and in "logloss", each a value with its bounds
        "low" and "high", and "streams" the same of "simple" and "complex", of a twin; "gates" has
        by how much each gate moves, the mean over rows, of 1.

    Raises:
        SettingsError: A run that is not finished, or a field that its model does not read.
        DataError: The test rows are gone, or too few of one class.
    """
    run = finished_run(folder)
    features = run.feature_map.features
    names = [name for name, spec in features.items() if spec["type"] != "meta"]
    for name in (name for pair in pairs for name in pair):
        if name not in names:
            raise SettingsError(unknown("field", name, names))
    batch = next(iter(run.loader("test", batch_size=rows)))
    y_true = run.model.get_labels(batch).double().cpu().numpy().ravel()
    if min(y_true.sum(), (1 - y_true).sum()) < 2:
        raise DataError(f"{folder}: the first {len(y_true)} test rows lack two of each class")
    before, gates = _scored(run, batch)
    order = np.random.default_rng(seed).permutation(len(y_true))
    found = []
    for fields in [*([name] for name in names), *(list(pair) for pair in pairs)]:
        shuffled = torch.from_numpy(order).to(run.model.device)
        after, moved = _scored(run, batch | {name: batch[name][shuffled] for name in fields})
        worths = {name: _worth(y_true, before[name], after[name]) for name in before}
        moves = {title: float(np.abs(moved[title] - gates[title]).mean()) for title in gates}
        found.append(
            {"fields": fields, "final": worths.pop("pred"), "streams": worths, "gates": moves}
        )
    found.sort(key=lambda each: -each["final"]["auc"]["value"])
    explanation = {"rows": len(y_true), "seed": seed, "importances": found}
    write_whole(run.folder / FILE, json.dumps(explanation, indent=1) + "\n")
    return explanation


def importance_section(run: ReportedRun) -> Section | None:
    """Show what :func:`explain_run` found of a run; None where it was not called."""
    file = run.scores.run.folder / FILE
    if not file.is_file():
        return None
    found = read_json(file, _SCHEMA, "explain the run again")
    rows, scored = [table_row(each) for each in found["importances"]], count(found["rows"])
    return Section(
        "fields",
        "What each field is worth",
        f"What {run.name} loses on {scored} test rows when a field's values are dealt "
        "out anew among them, with 95% intervals; a field whose interval holds zero could be left "
        "out. Under a gate stands by how much it moves.",
        blocks=[table(list(rows[0]), [list(map(str, row.values())) for row in rows])],
    )


def _scored(
    run: LoadedRun, columns: Mapping[str, Tensor]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return [N] scores, "pred" and those of the streams, and the values of the gates."""

    def scores(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = run.model(batch)
        names = [name for name in ("pred", *STREAMS) if f"y_{name}" in outputs]
        return {name: outputs[f"y_{name}"].double() for name in names}

    with watched_gates(run.model) as gates:
        found = whole_columns(cut_into_batches(columns, run.settings["batch_size"]), scores)
    return found, {gate.title: gate.values for gate in gates()}


def _worth(y_true: np.ndarray, before: np.ndarray, after: np.ndarray) -> Content:
    """Return what scores lose that say nothing of a field, with 95 % intervals."""
    test = delong_test(y_true, after, before)
    lost = Interval.of(test.aucs[1] - test.aucs[0], test.standard_error)
    gained = Interval.of_mean(cross_entropy(y_true, after) - cross_entropy(y_true, before))
    return {"auc": vars(lost), "logloss": vars(gained)}
