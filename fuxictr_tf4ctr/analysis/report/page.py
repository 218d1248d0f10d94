"""The page around the sections: one HTML file that asks for nothing from anywhere."""

from collections.abc import Sequence
from importlib.resources import files

from fuxictr_tf4ctr import __version__
from fuxictr_tf4ctr.analysis.report.elements import Markup, element, joined
from fuxictr_tf4ctr.analysis.report.parts import Section

# A browser that heeds it refuses any request the page might make.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render_page(title: str, header: Markup, sections: Sequence[Section]) -> str:
    """Put the page together.

    Args:
        title: Title of the page.
        header: What stands above the sections.
        sections: The sections, in order.
    """
    links = [element("a", section.title, href=f"#{section.id}") for section in sections]
    head = element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", title),
        element("style", _asset("page.css")),
    )
    body = element(
        "body",
        element("main", header, element("nav", *links), *(each.render() for each in sections)),
        element("footer", f"Written by fuxictr report, fuxictr-tf4ctr {__version__}."),
        element("div", id="tip", role="status", hidden="hidden"),
        element("script", _asset("page.js")),
    )
    return joined(Markup("<!DOCTYPE html>\n"), Markup('<html lang="en">'), head, body, _END)


_END = Markup("</html>\n")


def _asset(name: str) -> Markup:
    return Markup(files(__package__).joinpath(name).read_text("utf-8"))
