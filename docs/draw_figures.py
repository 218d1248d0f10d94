"""Draw the charts of concepts.md from a run of the demo: ``python docs/draw_figures.py``.

Trains TF4CTR_demo (a minute on two cores) in a temporary folder and draws its test rows. The charts
have colors that can be read on a light and on a dark page.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from fuxictr_tf4ctr import load, load_settings, run_experiment
from fuxictr_tf4ctr.analysis.report.plot import WIDTH, Axis, Plot
from fuxictr_tf4ctr.analysis.report.quality import shares
from fuxictr_tf4ctr.metrics.definitions import truth_probability
from fuxictr_tf4ctr.runs.loading import LoadedRun
from fuxictr_tf4ctr.twin.loss import focus_weights

FIGURES = Path(__file__).resolve().parent / "figures"
EDGES = np.linspace(0, 1, 41)
P_T = Axis(0, 1, "pₜ, probability of the true label")
COLORS = {"simple": "#0e9384", "complex": "#e0602a"}
STYLE = """text { fill: #7a8495; font: 11px sans-serif; } .middle { text-anchor: middle; }
.end { text-anchor: end; } .grid, .axis { stroke: #7a8495; stroke-opacity: .3; }
.rule { stroke: #7a8495; } .dashed { stroke-dasharray: 3 4; }
.line { fill: none; stroke: var(--c); stroke-width: 2; } .thin { stroke-width: 1.2; }
.area { fill: var(--c); fill-opacity: .16; }"""


def focus_chart() -> Plot:
    """Draw the focus weights for gamma 1 and, thinner, gamma 2, at c = 0.8."""
    p = torch.linspace(0.001, 0.999, 81, dtype=torch.float64)
    logit, positive = torch.logit(p), torch.ones_like(p)
    plot = Plot(P_T, Axis(0, 3.4, "weight of the sample"))
    plot.rule((0, 1), (1, 1), "rule dashed")
    for gamma, style in ((1.0, "line"), (2.0, "line thin dashed")):
        weights = focus_weights(logit, logit, positive, c=0.8, gamma=gamma)
        for role, weight in zip(COLORS, weights, strict=True):
            plot.line(list(zip(p.tolist(), weight.tolist(), strict=True)), role, style)
    return plot


def difficulty_chart(p_t: Mapping[str, np.ndarray]) -> Plot:
    """Draw how the test rows' p_t is distributed for both encoders, heights as square roots."""
    heights = {role: np.sqrt(shares(values, EDGES)) for role, values in p_t.items()}
    y = Axis.root(max(map(np.max, heights.values())), "share of test rows")
    plot = Plot(P_T, y)
    plot.rule((0.5, 0), (0.5, y.high), "rule dashed")
    plot.note(0.485, 0.95 * y.high, "hard", "end")
    plot.note(0.515, 0.95 * y.high, "easy")
    for role in ("complex", "simple"):
        plot.steps(EDGES, heights[role], role)
    return plot


def scored_rows(run: LoadedRun) -> dict[str, np.ndarray]:
    """Return p_t of the test rows for each encoder."""
    found: dict[str, list[np.ndarray]] = {role: [] for role in COLORS}
    with torch.no_grad():
        for batch in run.loader("test"):
            outputs, y = run.model(batch), run.model.get_labels(batch).numpy().ravel()
            for role, values in found.items():
                scores = torch.sigmoid(outputs[f"logit_{role}"]).numpy().ravel()
                values.append(truth_probability(y, scores))
    return {role: np.concatenate(values) for role, values in found.items()}


def save(plot: Plot, name: str, label: str) -> None:
    """Write a chart as an SVG file of its own."""
    drawing = plot.render(label)
    inner = drawing[drawing.index(">") + 1 : drawing.rindex("</svg>")]
    classes = "".join(f".c-{role} {{ --c: {color}; }}" for role, color in COLORS.items())
    keys = "".join(
        f'<text x="{WIDTH - 190 + 92 * at}" y="10" style="fill:{color}">{role} encoder</text>'
        for at, (role, color) in enumerate(COLORS.items())
    )
    (FIGURES / name).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {plot.height:g}" '
        f'width="{WIDTH}" role="img" aria-label="{label}"><style>{STYLE}\n{classes}</style>'
        f"{keys}{inner}</svg>\n",
        encoding="utf-8",
    )


def main() -> None:
    """Train the demo and draw all charts."""
    save(focus_chart(), "focus_weights.svg", "Focus weights of both encoders over p_t")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run = load(run_experiment(load_settings("TF4CTR_demo")).folder)
        p_t = scored_rows(run)
        save(difficulty_chart(p_t), "difficulty.svg", "p_t of the demo's test rows, both encoders")
        os.chdir(FIGURES)
    for role, values in p_t.items():
        print(f"{role}: wrong side {np.mean(values < 0.5):.2%}, mean p_t {values.mean():.4f}")
    print(f"fusion weights {run.model.fusion.weight.detach().ravel().tolist()}")


if __name__ == "__main__":
    main()
