"""The inner life of a twin: what each encoder finds easy, is taught, and gets right."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from fuxictr_tf4ctr.analysis.report.inside import Gate, gate_by_difficulty, gate_values
from fuxictr_tf4ctr.analysis.report.page import Figure, ReportedRun, Section, tiles
from fuxictr_tf4ctr.analysis.report.plot import (
    Markup,
    Plot,
    Scale,
    count,
    extent,
    number,
    root_ticks,
    signed,
)
from fuxictr_tf4ctr.analysis.report.quality import (
    agreement,
    complex_nearer,
    roc_curve,
    roc_tips,
    shares,
)
from fuxictr_tf4ctr.metrics.definitions import STREAMS, auc, cross_entropy, truth_probability
from fuxictr_tf4ctr.twin.fusion import WeightedSumFusion
from fuxictr_tf4ctr.twin.loss import TwinFocusLoss

Weight = Callable[[np.ndarray], np.ndarray]

_BINS = 40
_TALL = 330
_EDGES = np.linspace(0, 1, _BINS + 1)
_MIDDLES = (_EDGES[1:] + _EDGES[:-1]) / 2
_LEGEND = (("simple encoder", "simple"), ("complex encoder", "complex"))
_DISAGREE = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)


def twin_section(run: ReportedRun, gates: Sequence[Gate]) -> Section | None:
    """Draw a twin's encoders; None for a model whose streams have no heads of their own."""
    if not run.scores.streams:
        return None
    figures = [_difficulty(run), *_focus(run)]
    figures += [_agreement(run), _who_is_right(run), _roc_of_streams(run)]
    figures += [gate_values(run, gate) for gate in gates]
    figures += [gate_by_difficulty(run, gate) for gate in gates]
    return Section(
        "twin",
        "Inside the twin",
        "The same test rows, seen by each encoder alone. A sample is easy for an encoder that "
        "gives its true label a high probability pₜ, and hard where pₜ is low.",
        figures,
        [_stream_tiles(run)],
    )


def _p_t(run: ReportedRun) -> dict[str, np.ndarray]:
    return {
        role: truth_probability(run.y_true, scores) for role, scores in run.scores.streams.items()
    }


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


def _difficulty(run: ReportedRun) -> Figure:
    found = {role: shares(p_t, _EDGES) for role, p_t in _p_t(run).items()}
    top = np.sqrt(max(values.max() for values in found.values()))
    bounds = extent([top], include=[0.0])
    plot = Plot((0, 1), bounds, "pₜ, probability of the true label", "share of rows")
    plot.ticks_at(root_ticks(bounds[1]))
    plot.rule((0.5, 0), (0.5, plot.y.high), "rule dashed")
    plot.note(0.485, 0.94 * plot.y.high, "hard", "end")
    plot.note(0.515, 0.94 * plot.y.high, "easy")
    for role in ("complex", "simple"):
        plot.steps(_EDGES, np.sqrt(found[role]), role)
    _tell_shares(plot, found)
    wrong = {role: float((p_t < 0.5).mean()) for role, p_t in _p_t(run).items()}
    return Figure(
        "Easy and hard samples",
        f"Left of the middle an encoder is on the wrong side: {wrong['simple']:.1%} of the rows "
        f"for the simple, {wrong['complex']:.1%} for the complex one (heights on a square-root "
        "scale).",
        plot,
        _LEGEND,
    )


def _tell_shares(plot: Plot, found: Mapping[str, np.ndarray], words: str = "") -> None:
    plot.tell(
        (x, [f"pₜ around {x:.2f}", *(f"{role} {found[role][at]:.2%}{words}" for role in STREAMS)])
        for at, x in enumerate(_MIDDLES)
    )


def _focus(run: ReportedRun) -> list[Figure]:
    loss = run.scores.run.model.twin_focus
    if loss is None:
        return []
    weights = {
        "simple": lambda p: np.power(loss.c + p, loss.gamma),
        "complex": lambda p: np.power(2 - loss.c - p, loss.gamma),
    }
    return [_focus_weights(run, weights, loss), _focused_loss(run, weights)]


def _focus_weights(run: ReportedRun, weights: Mapping[str, Weight], loss: TwinFocusLoss) -> Figure:
    p = np.linspace(0, 1, 41)
    curves = {role: weight(p) for role, weight in weights.items()}
    top = max(values.max() for values in curves.values())
    plot = Plot(
        (0, 1), (0.0, 1.06 * top), "pₜ, probability of the true label", "weight in the loss"
    )
    for role, p_t in _p_t(run).items():
        found = np.sqrt(shares(p_t, _EDGES))
        ground = Scale(0, found.max(), 0, 0.4 * top)
        corners = [
            (e, ground(h))
            for a, b, h in zip(_EDGES, _EDGES[1:], found, strict=False)
            for e in (a, b)
        ]
        plot.area(corners, role)
    plot.rule((0, 1), (1, 1), "rule dashed")
    for role, values in curves.items():
        plot.line(list(zip(p, values, strict=True)), role)
    plot.tell(
        (x, [f"pₜ {x:.3f}", f"weight simple {simple:.3f}", f"weight complex {complex_:.3f}"])
        for x, simple, complex_ in zip(p, curves["simple"], curves["complex"], strict=True)
    )
    return Figure(
        "Focus weights",
        f"How much a sample counts for each encoder at c\u00a0=\u00a0{loss.c:g}, "
        f"γ\u00a0=\u00a0{loss.gamma:g} (dashed: plain cross entropy), with the test "
        "rows as hills below: the steeper the lines over the hills, the more the loss divides "
        "the work.",
        plot,
        _LEGEND,
    )


def _focused_loss(run: ReportedRun, weights: Mapping[str, Weight]) -> Figure:
    found, plain = {}, {}
    for role, p_t in _p_t(run).items():
        entropy = cross_entropy(run.y_true, run.scores.streams[role])
        found[role] = shares(p_t, _EDGES, weights[role](p_t) * entropy)
        plain[role] = float(entropy[p_t < 0.5].sum() / entropy.sum())
    top = max(values.max() for values in found.values())
    plot = Plot(
        (0, 1),
        extent([top], include=[0.0]),
        "pₜ, probability of the true label",
        "share of the encoder's loss",
    )
    for role in ("complex", "simple"):
        plot.steps(_EDGES, found[role], role)
    _tell_shares(plot, found, " of its loss")
    hard = {role: values[: _BINS // 2].sum() for role, values in found.items()}
    return Figure(
        "Where the loss comes from",
        f"Hard rows make up {hard['simple']:.0%} of the simple encoder's weighted loss (unweighted "
        f"{plain['simple']:.0%}) and {hard['complex']:.0%} of the complex one's "
        f"({plain['complex']:.0%}): the gap to the unweighted shares is what focusing does.",
        plot,
        _LEGEND,
    )


def _agreement(run: ReportedRun) -> Figure:
    simple, complex_ = (run.scores.streams[role] for role in ("simple", "complex"))
    found = agreement(run.y_true, simple, complex_)
    bins = len(found.rows)
    labels = (f"prediction of the {role} encoder" for role in ("simple", "complex"))
    plot = Plot((0, 1), (0, 1), *labels, height=_TALL)
    plot.rule((0, 0), (1, 1), "rule dashed")
    largest = np.log1p(found.rows.max())
    for row, column in zip(*np.nonzero(found.rows), strict=True):
        rows = found.rows[row, column]
        share = found.complex_right[row, column]
        x, y = (row + 0.5) / bins, (column + 0.5) / bins
        tip = (
            f"simple {row / bins:.2f} to {(row + 1) / bins:.2f}\n"
            f"complex {column / bins:.2f} to {(column + 1) / bins:.2f}\n"
            f"{count(rows)} rows, complex nearer in {share:.0%}"
        )
        plot.mixed_dot(x, y, 1.6 + 8.4 * float(np.log1p(rows) / largest), share, tip)
    return Figure(
        "Where the encoders disagree",
        "Each dot is a group of rows (its size grows with the logarithm of their number), colored "
        "by the encoder that comes nearer to the label: off the diagonal a strong color names the "
        "one to trust.",
        plot,
        [("simple is right", "simple"), ("even", "mixed"), ("complex is right", "complex")],
    )


def _who_is_right(run: ReportedRun) -> Figure:
    simple, complex_ = (run.scores.streams[role] for role in ("simple", "complex"))
    gap = np.abs(simple - complex_)
    nearer = complex_nearer(run.y_true, simple, complex_)
    part = np.clip(np.digitize(gap, _DISAGREE) - 1, 0, len(_DISAGREE) - 2)
    names = [f"{low:g}–{high:g}" for low, high in pairwise(_DISAGREE)]
    plot = Plot(
        (-0.6, len(names) - 0.4),
        (0, 1),
        "distance of both predictions",
        "share of rows to which it comes nearer",
        x_names=names,
        height=_TALL,
    )
    tips = []
    for at in range(len(names)):
        inside = part == at
        rows = int(inside.sum())
        if rows:
            share = float(nearer[inside].mean())
            plot.bar((at - 0.36, at - 0.02), (0, 1 - share), "simple")
            plot.bar((at + 0.02, at + 0.36), (0, share), "complex")
        else:
            share = float("nan")
        told = [f"{count(rows)} rows, {rows / len(gap):.1%}"]
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
    colors = {"fused": run.color, "simple": "simple", "complex": "complex"}
    scores = {"fused": run.y_pred, **run.scores.streams}
    curves = {name: roc_curve(run.y_true, y_pred) for name, y_pred in scores.items()}
    plot = Plot((0, 1), (0, 1), "false positive rate", "true positive rate", height=_TALL)
    plot.rule((0, 0), (1, 1), "rule dashed")
    for name in reversed(curves):
        plot.line(curves[name], colors[name])
    plot.tell(roc_tips(curves))
    return Figure(
        "ROC curve of each encoder",
        "What each encoder ranks alone, and both together: where the fused curve runs above both, "
        "the encoders know different things.",
        plot,
        list(colors.items()),
    )
