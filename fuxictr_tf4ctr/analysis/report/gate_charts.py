"""What a twin's gates do: their values by label and by difficulty."""

import numpy as np

from fuxictr_tf4ctr.analysis.report.curves import difficulty_deciles, shares
from fuxictr_tf4ctr.analysis.report.gates import Gate
from fuxictr_tf4ctr.analysis.report.parts import Figure, ReportedRun
from fuxictr_tf4ctr.analysis.report.plot import Plot, extent
from fuxictr_tf4ctr.metrics.definitions import truth_probability

_EDGES = np.linspace(0, 1, 41)
_MIDDLES = (_EDGES[1:] + _EDGES[:-1]) / 2


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
        [
            (
                x,
                "\n".join(
                    [f"gate around {x:.2f}"]
                    + [f"{name} {values[at]:.2%}" for name, (values, _) in found.items()]
                ),
            )
            for at, x in enumerate(_MIDDLES)
        ]
    )
    spread = float(gate.values.std())
    return Figure(
        gate.title,
        f"At 1 {gate.meaning}. A single peak means that the gate treats all samples alike; here "
        f"its mean is {gate.values.mean():.3f} and its standard deviation {spread:.3f}.",
        plot.render(gate.title),
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
        [
            (at, f"decile {at + 1}\nmedian {middle:.3f}\nquartiles {low:.3f} and {high:.3f}")
            for at, (low, middle, high) in enumerate(quartiles)
        ]
    )
    title = f"{gate.title}, by difficulty"
    return Figure(
        title,
        "Median and quartiles over rows from the hardest to the easiest for the fused model: a "
        "slope means that the gate tells easy samples from hard ones.",
        plot.render(title),
    )
