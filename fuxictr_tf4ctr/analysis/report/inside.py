"""What a twin's gates do and its embeddings hold, noted for each row while it is scored."""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from torch import Tensor, nn

from fuxictr_tf4ctr.analysis.report.page import Figure, ReportedRun, Section
from fuxictr_tf4ctr.analysis.report.plot import Plot, count, extent, number
from fuxictr_tf4ctr.analysis.report.quality import difficulty_deciles, shares
from fuxictr_tf4ctr.metrics.definitions import truth_probability
from fuxictr_tf4ctr.twin.fusion import MixtureOfExpertsFusion, VotingFusion
from fuxictr_tf4ctr.twin.sample_selection import GatingMechanism, MixtureOfExperts

_EDGES = np.linspace(0, 1, 41)
_MIDDLES = (_EDGES[1:] + _EDGES[:-1]) / 2


@dataclass(frozen=True)
class Gate:
    """One number in [0, 1] per row.

    Attributes:
        title: Which gate it is.
        meaning: What 1 means; 0 means the contrary.
        values: [N] values.
    """

    title: str
    meaning: str
    values: np.ndarray


@dataclass(frozen=True)
class _Source:
    """Where a gate's values come from: the outputs of modules, and what is made of them."""

    title: str
    meaning: str
    modules: tuple[nn.Module, ...]
    value: Callable[..., Tensor]


class GateWatch:
    """Note the gates of a model while in context, for every batch it scores.

    Args:
        model: Any model; one without gates is watched in vain.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sources = [source for module in model.modules() for source in _sources(module)]
        self._outputs: list[list[list[Tensor]]] = [
            [[] for _ in source.modules] for source in self._sources
        ]

    def __enter__(self) -> "GateWatch":
        def keep(outputs: list[Tensor]) -> Callable[..., None]:
            return lambda module, inputs, output: outputs.append(output.detach().cpu())

        self._hooks = [
            module.register_forward_hook(keep(outputs))
            for source, kept in zip(self._sources, self._outputs, strict=True)
            for module, outputs in zip(source.modules, kept, strict=True)
        ]
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def gates(self) -> list[Gate]:
        """Return the gates' values, in the order of the rows scored."""
        return [
            Gate(
                source.title,
                source.meaning,
                source.value(*(torch.cat(outputs) for outputs in kept)).double().numpy(),
            )
            for source, kept in zip(self._sources, self._outputs, strict=True)
        ]


def _sources(module: nn.Module) -> list[_Source]:
    return next((find(module) for kind, find in _FINDERS.items() if isinstance(module, kind)), [])


def _of_gating(module: GatingMechanism) -> list[_Source]:
    meaning = "the embedding goes to the simple encoder whole"
    return [_Source("Gate g of GM", meaning, (module.gate,), lambda g: g[:, 0])]


def _of_experts(module: MixtureOfExperts) -> list[_Source]:
    return [
        _Source(
            f"MoE gate of the {role} encoder",
            f"the {role} encoder sees the first expert alone",
            (gate,),
            lambda weights: weights[:, 0],
        )
        for role, gate in zip(("simple", "complex"), module.gates, strict=True)
    ]


def _of_voting(module: VotingFusion) -> list[_Source]:
    def share(simple: Tensor, complex_: Tensor) -> Tensor:
        return torch.sigmoid((simple - complex_) / module.tau)[:, 0]

    votes = (module.vote_simple, module.vote_complex)
    meaning = "the simple encoder decides alone"
    return [_Source("Vote p for the simple encoder", meaning, votes, share)]


def _of_expert_fusion(module: MixtureOfExpertsFusion) -> list[_Source]:
    meaning = "the first expert of the fusion decides alone"
    share = _Source(
        "Gate of MoEF", meaning, (module.gate,), lambda logits: logits.softmax(dim=-1)[:, 0]
    )
    return [share]


_FINDERS: dict[type[nn.Module], Callable[..., list[_Source]]] = {
    GatingMechanism: _of_gating,
    MixtureOfExperts: _of_experts,
    VotingFusion: _of_voting,
    MixtureOfExpertsFusion: _of_expert_fusion,
}


def gate_values(run: ReportedRun, gate: Gate) -> Figure:
    """Draw how a gate's values spread over the rows of each label."""
    clicks = run.y_true == 1
    found = {
        "no click": (shares(gate.values[~clicks], _EDGES), "quiet"),
        "click": (shares(gate.values[clicks], _EDGES), "click"),
    }
    top = max(values.max() for values, _ in found.values())
    plot = Plot((0, 1), extent([top], include=[0.0]), "value of the gate", "share of rows")
    for values, color in found.values():
        plot.steps(_EDGES, values, color)
    plot.tell(
        (
            x,
            [
                f"gate around {x:.2f}",
                *(f"{name} {values[at]:.2%}" for name, (values, _) in found.items()),
            ],
        )
        for at, x in enumerate(_MIDDLES)
    )
    spread = float(gate.values.std())
    return Figure(
        gate.title,
        f"At 1 {gate.meaning}. A single peak means that the gate treats all samples alike; here "
        f"its mean is {gate.values.mean():.3f} and its standard deviation {spread:.3f}.",
        plot,
        [(name, color) for name, (_, color) in found.items()],
    )


def gate_by_difficulty(run: ReportedRun, gate: Gate) -> Figure:
    """Draw whether a gate tells samples that are easy for the fused model from hard ones."""
    deciles = difficulty_deciles(truth_probability(run.y_true, run.y_pred))
    quartiles = np.array([np.quantile(gate.values[d], (0.25, 0.5, 0.75)) for d in deciles])
    names = [str(at + 1) for at in range(len(deciles))]
    bounds = (-0.5, len(names) - 0.5), extent(quartiles.ravel())
    plot = Plot(*bounds, "decile: 1 hardest, 10 easiest", "value of the gate", x_names=names)
    for at, (low, _, high) in enumerate(quartiles):
        plot.whisker((at, low), (at, high), run.color)
    medians = list(enumerate(quartiles[:, 1]))
    plot.line(medians, run.color, "line thin")
    plot.dots(medians, run.color)
    plot.tell(
        (at, [f"decile {at + 1}", f"median {middle:.3f}", f"quartiles {low:.3f} and {high:.3f}"])
        for at, (low, middle, high) in enumerate(quartiles)
    )
    title = f"{gate.title}, by difficulty"
    return Figure(
        title,
        "Median and quartiles over rows from the hardest to the easiest for the fused model: a "
        "slope means that the gate tells easy samples from hard ones.",
        plot,
    )


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
        [name, *(f"{role} {number(t[name])}" for role, t in tables.items() if name in t)]
        for name in shown
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
            plot,
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
