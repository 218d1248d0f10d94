"""What a page is made of: reported runs, figures, tables, sections, and the HTML around them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from fuxictr_tf4ctr import __version__
from fuxictr_tf4ctr.analysis.compare import RunScores
from fuxictr_tf4ctr.analysis.report.plot import Markup, Plot, element, joined
from fuxictr_tf4ctr.runs.records import RunRecord
from fuxictr_tf4ctr.twin.two_stream import TwoStreamModel

# The style sheet has so many colors for runs; further runs begin anew.
RUN_COLORS = 6


@dataclass(frozen=True)
class ReportedRun:
    """A run on the page: its scores, and the name and color it has throughout."""

    scores: RunScores
    name: str
    color: str

    @property
    def record(self) -> RunRecord:
        """Its run.json."""
        return self.scores.run.record

    @property
    def started(self) -> str:
        """When it began, in UTC, to the minute."""
        return self.record.started[:16].replace("T", " ")

    @property
    def y_true(self) -> np.ndarray:
        """[N] labels."""
        return self.scores.y_true

    @property
    def y_pred(self) -> np.ndarray:
        """[N] predictions."""
        return self.scores.y_pred

    @property
    def is_two_stream(self) -> bool:
        """Whether its model has a simple and a complex stream."""
        return isinstance(self.scores.run.model, TwoStreamModel)

    @property
    def params(self) -> dict[str, Any]:
        """Its settings, with the defaults of its model."""
        params = dict(self.record.settings)
        model_class = type(self.scores.run.model)
        return model_class.with_defaults(params) if self.is_two_stream else params


def reported(scores: Sequence[RunScores]) -> list[ReportedRun]:
    """Name and color runs; runs of one experiment are told apart by their folders."""
    expids = [each.run.record.expid for each in scores]
    return [
        ReportedRun(
            each,
            expid if expids.count(expid) == 1 else f"{expid} {each.run.folder.resolve().name}",
            f"run{at % RUN_COLORS + 1}",
        )
        for at, (each, expid) in enumerate(zip(scores, expids, strict=True))
    ]


@dataclass(frozen=True)
class Figure:
    """A chart with its title, a legend, and one sentence on what to look for."""

    title: str
    caption: str
    plot: Plot
    legend: Sequence[tuple[str, str]] = ()

    def render(self) -> Markup:
        """Return the figure as HTML."""
        keys = [element("li", dot(color), text) for text, color in self.legend]
        return element(
            "figure",
            element("h3", self.title),
            element("ul", *keys, class_="legend") if keys else "",
            self.plot.render(self.title),
            element("figcaption", self.caption),
            class_="card",
        )


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading, a lead, wide blocks and a grid of figures."""

    id: str
    title: str
    lead: str
    figures: Sequence[Figure] = ()
    blocks: Sequence[Markup] = ()

    def render(self) -> Markup:
        """Return the section as HTML."""
        figures = [figure.render() for figure in self.figures]
        return element(
            "section",
            element("h2", self.title),
            element("p", self.lead, class_="lead"),
            *self.blocks,
            element("div", *figures, class_="grid") if figures else "",
            id=self.id,
        )


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Markup:
    """Make a table that scrolls in a container of its own.

    Args:
        header: Names of the columns; the first column names the rows.
        rows: Cells of each row.
        caption: What the table shows.
    """
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in cells))
        for first, *cells in rows
    ]
    head = element("tr", *(element("th", name, scope="col") for name in header))
    parts = [element("caption", caption)] if caption else []
    parts += [element("thead", head), element("tbody", *body)]
    return element("div", element("table", *parts), class_="card scroll", tabindex="0")


def tiles(entries: Iterable[tuple[str, str, str | Markup]]) -> Markup:
    """Make tiles of a name, a large value and a remark each."""
    made = []
    for name, value, remark in entries:
        cells = element("dd", value, class_="value"), element("dd", remark, class_="remark")
        made.append(element("div", element("dt", name), *cells, class_="tile card"))
    return element("dl", *made, class_="tiles")


def dot(color: str) -> Markup:
    """Make the colored mark of a run before its name."""
    return element("i", class_=f"key c-{color}")


def named(run: ReportedRun) -> Markup:
    """Return a run's name behind its colored mark."""
    return joined(dot(run.color), run.name)


def run_legend(runs: Sequence[ReportedRun]) -> list[tuple[str, str]]:
    """Return the legend of several runs; one run needs none."""
    return [(run.name, run.color) for run in runs] if len(runs) > 1 else []


# A browser that heeds the policy refuses any request the page might make.
_META = Markup(
    '<meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
)


def render_page(title: str, header: Markup, sections: Iterable[Section | None]) -> str:
    """Put the page together.

    Args:
        title: Title of the page.
        header: What stands above the sections.
        sections: The sections, in order; None is left out.
    """
    there = [section for section in sections if section is not None]
    links = [element("a", section.title, href=f"#{section.id}") for section in there]
    style, script = (
        Markup(files(__package__).joinpath(name).read_text("utf-8"))
        for name in ("page.css", "page.js")
    )
    head = element("head", _META, element("title", title), element("style", style))
    body = element(
        "body",
        element("main", header, element("nav", *links), *(each.render() for each in there)),
        element("footer", f"Written by fuxictr report, fuxictr-tf4ctr {__version__}."),
        element("div", id="tip", role="status", hidden="hidden"),
        element("script", script),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}{body}</html>\n'
