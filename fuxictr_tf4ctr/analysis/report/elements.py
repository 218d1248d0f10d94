"""HTML and SVG elements as text; whatever is not markup is escaped."""

import html
import math


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *content: str, **attributes: object) -> Markup:
    """Make an element.

    Args:
        tag: Its name.
        *content: Elements, and texts to escape.
        **attributes: ``class_`` is written ``class``, ``stroke_width`` ``stroke-width``; those that
            are None are left out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(_text(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{written}>{joined(*content)}</{tag}>")


def joined(*content: str) -> Markup:
    """Put elements, and texts to escape, one after the other."""
    return Markup(
        "".join(part if isinstance(part, Markup) else html.escape(part) for part in content)
    )


def number(value: float | None, digits: int = 4) -> str:
    """Write a number for readers; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "\u2212")


def signed(value: float, digits: int = 4) -> str:
    """Write a difference, with its sign."""
    return number(value, digits) if value < 0 else f"+{number(value, digits)}"


def count(value: float | None) -> str:
    """Write a count with its thousands set apart."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Write a duration in the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {seconds % 60:.0f} s"
    return f"{int(seconds // 3600)} h {seconds % 3600 / 60:.0f} min"


def _text(value: object) -> str:
    """Write coordinates to a tenth of a pixel: more cannot be seen, and takes space."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
