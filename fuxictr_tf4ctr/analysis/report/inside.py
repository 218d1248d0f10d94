"""What a twin's gates do and its embeddings hold, noted for each row while it is scored."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from torch import Tensor, nn

from fuxictr_tf4ctr.analysis.report.page import Figure, ReportedRun, Section
from fuxictr_tf4ctr.analysis.report.plot import Axis, Plot, count, extent, number, shortened
from fuxictr_tf4ctr.analysis.report.quality import (
    EDGES,
    MIDDLES,
    decile_plot,
    difficulty_deciles,
    shares_by_label,
)
from fuxictr_tf4ctr.metrics.definitions import STREAMS, truth_probability
from fuxictr_tf4ctr.twin.fusion import MixtureOfExpertsFusion, VotingFusion
from fuxictr_tf4ctr.twin.sample_selection import GatingMechanism, MixtureOfExperts


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
    value: Callable[..., Tensor] = lambda weights: weights


@contextmanager
def watched_gates(model: nn.Module) -> Iterator[Callable[[], list[Gate]]]:
    """Note the gates of a model while in context, for every batch it scores.

    Args:
        model: Any model; one without gates is watched in vain.

    Yields:
        A function that returns the gates' values, in the order of the rows scored.
    """
    sources = [source for module in model.modules() for source in _sources(module)]
    outputs: dict[nn.Module, list[Tensor]] = {m: [] for each in sources for m in each.modules}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[module].append(output.detach().cpu())

    def gates() -> list[Gate]:
        found = []
        for source in sources:
            value = source.value(*(torch.cat(outputs[module]) for module in source.modules))
            found.append(Gate(source.title, source.meaning, value[:, 0].double().numpy()))
        return found

    hooks = [module.register_forward_hook(note) for module in outputs]
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


def _sources(module: nn.Module) -> Iterator[_Source]:
    if isinstance(module, GatingMechanism):
        meaning = "the embedding goes to the simple encoder whole"
        yield _Source("Gate g of GM", meaning, (module.gate,))
    elif isinstance(module, MixtureOfExperts):
        for role, gate in zip(STREAMS, module.gates, strict=True):
            meaning = f"the {role} encoder sees the first expert alone"
            yield _Source(f"MoE gate of the {role} encoder", meaning, (gate,))
    elif isinstance(module, VotingFusion):
        votes, meaning = (
            (module.vote_simple, module.vote_complex),
            "the simple encoder decides alone",
        )
        yield _Source(
            "Vote p for the simple encoder",
            meaning,
            votes,
            lambda simple, complex_: torch.sigmoid((simple - complex_) / module.tau),
        )
    elif isinstance(module, MixtureOfExpertsFusion):
        meaning = "the first expert of the fusion decides alone"
        yield _Source("Gate of MoEF", meaning, (module.gate,), lambda logits: logits.softmax(-1))


def gate_values(run: ReportedRun, gate: Gate) -> Figure:
    """Draw how a gate's values spread over the rows of each label."""
    found, legend = shares_by_label(run, gate.values)
    y = Axis(*extent(*found.values(), include=[0.0]), "share of rows")
    plot = Plot(Axis(0, 1, "value of the gate"), y)
    for name, color in legend:
        plot.steps(EDGES, found[name], color)
    plot.tell_series(((x, f"gate around {x:.2f}") for x in MIDDLES), found, "{:.2%}".format)
    return Figure(
        gate.title,
        f"At 1 {gate.meaning}. A single peak means that the gate treats all samples alike; here "
        f"its mean is {gate.values.mean():.3f} and its standard deviation "
        f"{gate.values.std():.3f}.",
        plot,
        legend,
    )


def gate_by_difficulty(run: ReportedRun, gate: Gate) -> Figure:
    """Draw whether a gate tells samples that are easy for the fused model from hard ones."""
    deciles = difficulty_deciles(truth_probability(run.y_true, run.y_pred))
    quartiles = np.array([np.quantile(gate.values[d], (0.25, 0.5, 0.75)) for d in deciles])
    y = Axis(*extent(quartiles.ravel()), "value of the gate")
    plot = decile_plot(deciles, y, "decile: 1 hardest, 10 easiest")
    for at, (low, _, high) in enumerate(quartiles):
        plot.whisker((at, low), (at, high), run.color)
    plot.dotted(enumerate(quartiles[:, 1]), run.color, "line thin")
    plot.tell(
        (at, [f"decile {at + 1}", f"median {middle:.3f}", f"quartiles {low:.3f} and {high:.3f}"])
        for at, (low, middle, high) in enumerate(quartiles)
    )
    return Figure(
        f"{gate.title}, by difficulty",
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
        role = next((role for role in STREAMS if role in path), "shared")
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


def _norms(run: ReportedRun, several: bool) -> Iterator[Figure]:
    tables = field_norms(run.scores.run.model)
    if not tables:
        return
    # Field -> role of a table -> its norm, the fields with the largest norms last.
    norms: dict[str, dict[str, float]] = {}
    for role, table in tables.items():
        for name, norm in table.items():
            norms.setdefault(name, {})[role] = norm
    shown = sorted(norms, key=lambda name: max(norms[name].values()))[-_MOST_FIELDS:]
    longest = extent((norm for name in shown for norm in norms[name].values()), include=[0.0])[1]
    names = [shortened(name, 15) for name in shown]
    plot = Plot(
        Axis(0.0, longest, "root mean square of the entries"),
        Axis.of(names, margin=0.6),
        58 + _ROW * len(shown),
        104,
    )
    colors = {role: run.color if role == "shared" else role for role in tables}
    for at, name in enumerate(shown):
        ends = sorted(norms[name].values())
        plot.rule((ends[0] if len(ends) > 1 else 0.0, at), (ends[-1], at), "stem")
        for role, norm in norms[name].items():
            plot.dots([(norm, at)], colors[role], 4.5)
    plot.tell_rows(
        [name, *(f"{role} {number(norm)}" for role, norm in norms[name].items())] for name in shown
    )
    some = len(shown) < len(norms)
    part = f" (the {len(shown)} largest of {count(len(norms))})" if some else ""
    apart = "where two dots lie far apart, the encoders rely on the field differently."
    meaning = apart if len(tables) > 1 else "a field near zero is hardly used."
    yield Figure(
        f"Length by field: {run.name}" if several else "Length by field",
        f"From the field with the longest embeddings to that with the shortest{part}: {meaning}",
        plot,
        [(f"{role} tables", color) for role, color in colors.items()] if len(tables) > 1 else [],
    )
