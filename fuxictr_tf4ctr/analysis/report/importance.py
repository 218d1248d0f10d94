"""``fuxictr explain``: what each field is worth to a finished run, by permutation.

A field's values are dealt out anew among the test rows, and the rows scored again: what the metrics
lose is what the model had from the field. Of a twin that is said for each encoder and gate too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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


@dataclass(frozen=True)
class Worth:
    """What scores lose when a field, or a pair of fields, says nothing, with 95 % intervals."""

    auc: Interval
    logloss: Interval


@dataclass(frozen=True)
class Importance:
    """A field, or a pair of fields permuted together.

    Attributes:
        fields: Their names.
        final: What the model's prediction loses.
        streams: What "simple" and "complex" lose, of a twin.
        gates: Title of a gate -> by how much it moves, the mean over rows, of 1.
    """

    fields: tuple[str, ...]
    final: Worth
    streams: dict[str, Worth] = field(default_factory=dict)
    gates: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return it as a row of a table."""
        cells: dict[str, Any] = {"field": " × ".join(self.fields)}
        for name, worth in {"": self.final, **self.streams}.items():
            of = f" ({name})" if name else ""
            cells[f"AUC lost{of}"] = f"{worth.auc:+.5f}"
            cells[f"logloss gained{of}"] = f"{worth.logloss:+.5f}"
        return cells | {name: round(moved, 4) for name, moved in self.gates.items()}


@dataclass(frozen=True)
class Explanation:
    """The fields of a run, the most important first.

    Attributes:
        rows: How many test rows were scored.
        seed: Seed of the permutations.
        importances: One per field, and per pair asked for.
    """

    rows: int
    seed: int
    importances: list[Importance]

    def as_json(self) -> dict[str, Any]:
        """Return the content in what JSON knows."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Explanation":
        """Read what :meth:`as_json` returned."""

        def worth(of: Mapping[str, Any]) -> Worth:
            return Worth(Interval(**of["auc"]), Interval(**of["logloss"]))

        importances = [
            Importance(
                tuple(each["fields"]),
                worth(each["final"]),
                {name: worth(of) for name, of in each["streams"].items()},
                each["gates"],
            )
            for each in content["importances"]
        ]
        return cls(content["rows"], content["seed"], importances)


def explain_run(
    folder: str | Path,
    pairs: Sequence[tuple[str, str]] = (),
    rows: int = 100_000,
    seed: int = 0,
) -> Explanation:
    """Permute each field of a run's test rows, and keep what was found in the run's folder.

    The intervals are DeLong's for the AUC and the mean's for the logloss: how sure the loss is on
    these rows, under this permutation.

    Args:
        folder: A finished run.
        pairs: Fields to permute together as well: what they are worth beyond each alone tells of
            their interaction.
        rows: How many test rows to score, from the first.
        seed: Seed of the permutations.

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
    for fields in [*((name,) for name in names), *(tuple(pair) for pair in pairs)]:
        shuffled = torch.from_numpy(order).to(run.model.device)
        after, moved = _scored(run, batch | {name: batch[name][shuffled] for name in fields})
        worths = {name: _worth(y_true, before[name], after[name]) for name in before}
        moves = {title: float(np.abs(moved[title] - gates[title]).mean()) for title in gates}
        found.append(Importance(fields, worths.pop("pred"), worths, moves))
    found.sort(key=lambda each: -each.final.auc.value)
    explanation = Explanation(len(y_true), seed, found)
    write_whole(run.folder / FILE, json.dumps(explanation.as_json(), indent=1) + "\n")
    return explanation


def importance_section(run: ReportedRun) -> Section | None:
    """Show what :func:`explain_run` found of a run; None where it was not called."""
    file = run.scores.run.folder / FILE
    if not file.is_file():
        return None
    found = Explanation.from_json(read_json(file, _SCHEMA, "explain the run again"))
    rows = [each.row() for each in found.importances]
    return Section(
        "fields",
        "What each field is worth",
        f"What {run.name} loses on {count(found.rows)} test rows when a field's values are dealt "
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


def _worth(y_true: np.ndarray, before: np.ndarray, after: np.ndarray) -> Worth:
    test = delong_test(y_true, after, before)
    lost = Interval.of(test.aucs[1] - test.aucs[0], test.standard_error)
    return Worth(
        lost, Interval.of_mean(cross_entropy(y_true, after) - cross_entropy(y_true, before))
    )
