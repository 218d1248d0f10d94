"""How long the embeddings of each field are, in each of a model's tables."""

import numpy as np
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from torch import nn

from fuxictr_tf4ctr.analysis.report.elements import count, number
from fuxictr_tf4ctr.analysis.report.page import Figure, ReportedRun, Section
from fuxictr_tf4ctr.analysis.report.plot import Plot, extent

_MOST_FIELDS = 28
_ROW = 21


def embedding_section(runs: list[ReportedRun]) -> Section | None:
    """Draw the embedding tables of the runs; None where no model has any."""
    figures = [figure for run in runs for figure in _norms(run, len(runs) > 1)]
    if not figures:
        return None
    return Section(
        "embeddings",
        "Embeddings",
        "The root mean square of a field's embedding entries, over all its values: comparable "
        "between tables of different dims. Regularization shrinks what does not help.",
        figures,
    )


def field_norms(model: nn.Module) -> dict[str, dict[str, float]]:
    """Measure the embedding tables of a model.

    Returns:
        Role of the tables ("simple", "complex" or "shared") -> field -> root mean square of its
        entries, padding left out. Tables of dim 1, which hold weights, are not measured.
    """
    found: dict[str, dict[str, float]] = {}
    for path, module in model.named_modules():
        if not isinstance(module, FeatureEmbeddingDict):
            continue
        role = next((role for role in ("simple", "complex") if role in path), "shared")
        for field, layer in module.embedding_layers.items():
            weight = getattr(layer, "weight", None)
            if weight is None or (isinstance(layer, nn.Embedding) and weight.shape[1] == 1):
                continue
            rows = weight.detach().double().cpu().numpy()
            padding = getattr(layer, "padding_idx", None)
            if padding is not None and len(rows) > 1:
                rows = np.delete(rows, padding, axis=0)
            found.setdefault(role, {})[field] = float(np.sqrt(np.mean(rows**2)))
    return found


def _norms(run: ReportedRun, several: bool) -> list[Figure]:
    tables = field_norms(run.scores.run.model)
    if not tables:
        return []
    fields = {
        name: max(t.get(name, 0.0) for t in tables.values())
        for table in tables.values()
        for name in table
    }
    shown = sorted(fields, key=fields.get)[-_MOST_FIELDS:]
    values = [table[name] for table in tables.values() for name in shown if name in table]
    plot = Plot(
        (0.0, extent(values, include=[0.0])[1]),
        (-0.6, len(shown) - 0.4),
        "root mean square of the entries",
        height=58 + _ROW * len(shown),
        y_names=[_short(name) for name in shown],
        left=104,
    )
    colors = {"simple": "simple", "complex": "complex", "shared": run.color}
    for at, name in enumerate(shown):
        ends = sorted(table[name] for table in tables.values() if name in table)
        plot.rule((ends[0] if len(ends) > 1 else 0.0, at), (ends[-1], at), "stem")
        for role, table in tables.items():
            if name in table:
                plot.dots([(table[name], at)], colors[role], 4.5)
    plot.tell_rows(
        [
            "\n".join(
                [name] + [f"{role} {number(t[name])}" for role, t in tables.items() if name in t]
            )
            for name in shown
        ]
    )
    some = len(shown) < len(fields)
    part = f" (the {len(shown)} largest of {count(len(fields))})" if some else ""
    title = f"Length by field: {run.name}" if several else "Length by field"
    return [
        Figure(
            title,
            f"From the field with the longest embeddings to that with the shortest{part}: where "
            "two dots lie far apart, the encoders rely on the field differently."
            if len(tables) > 1
            else f"From the field with the longest embeddings to that with the shortest{part}: a "
            "field near zero is hardly used.",
            plot.render(title),
            [
                (f"{role} tables" if role != "shared" else "shared tables", colors[role])
                for role in tables
            ]
            if len(tables) > 1
            else [],
        )
    ]


def _short(name: str) -> str:
    return name if len(name) <= 15 else f"{name[:14]}…"
