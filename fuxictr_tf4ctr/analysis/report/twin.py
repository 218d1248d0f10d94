"""The inner life of a twin: what each encoder finds easy, is taught, and gets right."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fuxictr_tf4ctr.analysis.report.inside import Gate, gate_by_difficulty, gate_values
from fuxictr_tf4ctr.analysis.report.page import Figure, ReportedRun, Section, tiles
from fuxictr_tf4ctr.analysis.report.plot import (
    Axis,
    Markup,
    Plot,
    count,
    extent,
    number,
    signed,
    steps,
)
from fuxictr_tf4ctr.analysis.report.quality import (
    EDGES,
    MIDDLES,
    agreement,
    complex_nearer,
    roc_plot,
    shares,
)
from fuxictr_tf4ctr.metrics.definitions import STREAMS, auc, cross_entropy, truth_probability
from fuxictr_tf4ctr.twin.fusion import WeightedSumFusion

_TALL = 330
_P_T = Axis(0, 1, "pₜ, probability of the true label")
_LEGEND = (("simple encoder", "simple"), ("complex encoder", "complex"))
_DISAGREE = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)


def twin_section(run: ReportedRun, gates: Sequence[Gate]) -> Section | None:
    """Draw a twin's encoders; None for a model whose streams have no heads of their own."""
    if not run.scores.streams:
        return None
    p_t = {
        role: truth_probability(run.y_true, scores) for role, scores in run.scores.streams.items()
    }
    return Section(
        "twin",
        "Inside the twin",
        "The same test rows, seen by each encoder alone. A sample is easy for an encoder that "
        "gives its true label a high probability pₜ, and hard where pₜ is low.",
        [
            _difficulty(p_t),
            *_focus(run, p_t),
            _agreement(run),
            _who_is_right(run),
            _roc_of_streams(run),
            *(gate_values(run, gate) for gate in gates),
            *(gate_by_difficulty(run, gate) for gate in gates),
        ],
        [_stream_tiles(run)],
    )


def _stream_tiles(run: ReportedRun) -> Markup:
    final = auc(run.y_true, run.y_pred)
    entries = []
    for role, scores in run.scores.streams.items():
        alone = auc(run.y_true, scores)
        loss = cross_entropy(run.y_true, scores).mean()
        remark = f"{signed(alone - final, 5)} vs both fused, logloss {number(loss)}"
        entries.append((f"AUC, {role} encoder alone", number(alone, 5), remark))
    simple, complex_ = run.scores.streams["simple"], run.scores.streams["complex"]
    correlation = float(np.corrcoef(simple, complex_)[0, 1])
    opposed = float(((simple > 0.5) != (complex_ > 0.5)).mean())
    entries.append(
        ("Correlation of both", number(correlation, 3), f"opposite verdicts on {opposed:.2%}")
    )
    fusion = run.scores.run.model.fusion
    if isinstance(fusion, WeightedSumFusion):
        weights = [number(float(weight), 3) for weight in fusion.weight.detach()[:, 0]]
        remark = "simple : complex, both 0.5 at the start"
        entries.append(("Fusion weights", " : ".join(weights), remark))
    return tiles(entries)


def _difficulty(p_t: dict[str, np.ndarray]) -> Figure:
    found = {role: shares(values, EDGES) for role, values in p_t.items()}
    y = Axis.root(np.sqrt(max(values.max() for values in found.values())), "share of rows")
    plot = Plot(_P_T, y)
    plot.rule((0.5, 0), (0.5, y.high), "rule dashed")
    plot.note(0.485, 0.94 * y.high, "hard", "end")
    plot.note(0.515, 0.94 * y.high, "easy")
    for role in ("complex", "simple"):
        plot.steps(EDGES, np.sqrt(found[role]), role)
    plot.tell_series(((x, f"pₜ around {x:.2f}") for x in MIDDLES), found, "{:.2%}".format)
    wrong = {role: float((values < 0.5).mean()) for role, values in p_t.items()}
    return Figure(
        "Easy and hard samples",
        f"Left of the middle an encoder is on the wrong side: {wrong['simple']:.1%} of the rows "
        f"for the simple, {wrong['complex']:.1%} for the complex one (heights on a square-root "
        "scale).",
        plot,
        _LEGEND,
    )


def _focus(run: ReportedRun, p_t: dict[str, np.ndarray]) -> list[Figure]:
    """Draw how the loss weighs samples, and where it comes from; nothing without TF Loss."""
    loss = run.scores.run.model.twin_focus
    if loss is None:
        return []
    weights = {
        "simple": lambda p: np.power(loss.c + p, loss.gamma),
        "complex": lambda p: np.power(2 - loss.c - p, loss.gamma),
    }
    p = np.linspace(0, 1, 41)
    curves = {role: weight(p) for role, weight in weights.items()}
    top = max(values.max() for values in curves.values())
    plot = Plot(_P_T, Axis(0.0, 1.06 * top, "weight in the loss"))
    for role, values in p_t.items():
        hills = np.sqrt(shares(values, EDGES))
        plot.area(steps(EDGES, hills * (0.4 * top / hills.max())), role)
    plot.rule((0, 1), (1, 1), "rule dashed")
    for role, values in curves.items():
        plot.line(zip(p, values, strict=True), role)
    named = {f"weight {role}": values for role, values in curves.items()}
    plot.tell_series(((x, f"pₜ {x:.3f}") for x in p), named, "{:.3f}".format)
    focus = Figure(
        "Focus weights",
        f"How much a sample counts for each encoder at c\u00a0=\u00a0{loss.c:g}, "
        f"γ\u00a0=\u00a0{loss.gamma:g} (dashed: plain cross entropy), with the test "
        "rows as hills below: the steeper the lines over the hills, the more the loss divides "
        "the work.",
        plot,
        _LEGEND,
    )
    found, plain = {}, {}
    for role, values in p_t.items():
        entropy = cross_entropy(run.y_true, run.scores.streams[role])
        found[role] = shares(values, EDGES, weights[role](values) * entropy)
        plain[role] = float(entropy[values < 0.5].sum() / entropy.sum())
    y = Axis(*extent(*found.values(), include=[0.0]), "share of the encoder's loss")
    plot = Plot(_P_T, y)
    for role in ("complex", "simple"):
        plot.steps(EDGES, found[role], role)
    heads = ((x, f"pₜ around {x:.2f}") for x in MIDDLES)
    plot.tell_series(heads, found, "{:.2%} of its loss".format)
    hard = {role: values[: len(values) // 2].sum() for role, values in found.items()}
    source = Figure(
        "Where the loss comes from",
        f"Hard rows make up {hard['simple']:.0%} of the simple encoder's weighted loss (unweighted "
        f"{plain['simple']:.0%}) and {hard['complex']:.0%} of the complex one's "
        f"({plain['complex']:.0%}): the gap to the unweighted shares is what focusing does.",
        plot,
        _LEGEND,
    )
    return [focus, source]


def _agreement(run: ReportedRun) -> Figure:
    counts, shares_right = agreement(run.y_true, *(run.scores.streams[role] for role in STREAMS))
    bins = len(counts)
    axes = (Axis(0, 1, f"prediction of the {role} encoder") for role in STREAMS)
    plot = Plot(*axes, _TALL)
    plot.rule((0, 0), (1, 1), "rule dashed")
    largest = np.log1p(counts.max())
    for row, column in zip(*np.nonzero(counts), strict=True):
        rows, share = counts[row, column], shares_right[row, column]
        middle = (row + 0.5) / bins, (column + 0.5) / bins
        tip = (
            f"simple {row / bins:.2f} to {(row + 1) / bins:.2f}\n"
            f"complex {column / bins:.2f} to {(column + 1) / bins:.2f}\n"
            f"{count(rows)} rows, complex nearer in {share:.0%}"
        )
        plot.mixed_dot(middle, 1.6 + 8.4 * float(np.log1p(rows) / largest), share, tip)
    return Figure(
        "Where the encoders disagree",
        "Each dot is a group of rows (its size grows with the logarithm of their number), colored "
        "by the encoder that comes nearer to the label: off the diagonal a strong color names the "
        "one to trust.",
        plot,
        [("simple is right", "simple"), ("even", "mixed"), ("complex is right", "complex")],
    )


def _who_is_right(run: ReportedRun) -> Figure:
    simple, complex_ = (run.scores.streams[role] for role in STREAMS)
    gap = np.abs(simple - complex_)
    nearer = complex_nearer(run.y_true, simple, complex_)
    part = np.clip(np.digitize(gap, _DISAGREE) - 1, 0, len(_DISAGREE) - 2)
    names = [f"{low:g}–{high:g}" for low, high in pairwise(_DISAGREE)]
    y = Axis(0, 1, "share of rows to which it comes nearer")
    plot = Plot(Axis.of(names, "distance of both predictions", 0.6), y, _TALL)
    tips = []
    for at in range(len(names)):
        inside = nearer[part == at]
        share = float(inside.mean()) if len(inside) else float("nan")
        if len(inside):
            plot.bar((at - 0.36, at - 0.02), (0, 1 - share), "simple")
            plot.bar((at + 0.02, at + 0.36), (0, share), "complex")
        told = [f"{count(len(inside))} rows, {len(inside) / len(gap):.1%}"]
        told += [f"simple {number(1 - share, 3)}", f"complex {number(share, 3)}"]
        tips.append((at, told))
    plot.rule((-0.6, 0.5), (len(names) - 0.4, 0.5), "rule dashed")
    plot.tell(tips)
    return Figure(
        "Who is right when they disagree",
        "From slight to strong disagreement: bars of equal height mean that neither encoder is "
        "worth more; a gap that widens to the right means one of them could be followed.",
        plot,
        _LEGEND,
    )


def _roc_of_streams(run: ReportedRun) -> Figure:
    scores = {"fused": (run.y_pred, run.color)}
    scores |= {role: (y_pred, role) for role, y_pred in run.scores.streams.items()}
    return Figure(
        "ROC curve of each encoder",
        "What each encoder ranks alone, and both together: where the fused curve runs above both, "
        "the encoders know different things.",
        roc_plot(run.y_true, scores, _TALL),
        [(name, color) for name, (_, color) in scores.items()],
    )
