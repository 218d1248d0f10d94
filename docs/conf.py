"""How Sphinx builds the site: ``python -m sphinx -W docs build/docs``."""

import re
from pathlib import Path

from sphinx.application import Sphinx

import fuxictr_tf4ctr

DOCS = Path(__file__).resolve().parent

project = "fuxictr_tf4ctr"
author = "the authors of fuxictr_tf4ctr"
version = release = fuxictr_tf4ctr.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
smartquotes = False  # options begin with two hyphens
autodoc_typehints = "none"  # the signature has them
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"fuxictr_tf4ctr {version}"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]

# A link to a file of the clone: the site has only the pages of docs/.
_OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)]+)\)")


def name_files_of_the_clone(text: str) -> str:
    """Replace links that lead out of docs/ by the name of the file they lead to."""

    def replacement(link: re.Match[str]) -> str:
        words, path = link[1].strip("`"), link[2]
        return f"`{path}`" if path.rstrip("/").endswith(words) else f"{words} (`{path}`)"

    return _OUTSIDE.sub(replacement, text)


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = name_files_of_the_clone(source[0])


def setup(app: Sphinx) -> None:
    """Register the change of links."""
    app.connect("source-read", _read)
