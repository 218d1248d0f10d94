"""Elements as text, whatever is not markup escaped, and a small plotting surface.

The surface has two linear scales, marks in SVG, and bands that tell their values. Marks take
their color from a class ``c-<name>`` of the page's style sheet, so that one drawing serves light
and dark.
"""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


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


WIDTH = 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 22, 36

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float = 0.0
    end: float = 1.0

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return the fewest round values within the scale, four or more."""
        power = 10.0 ** math.ceil(math.log10(self.high - self.low))
        while True:
            for factor in (1.0, 0.5, 0.2):
                step = factor * power
                first = math.ceil(self.low / step - 1e-9)
                last = math.floor(self.high / step + 1e-9)
                if last - first >= 3:
                    return [round(at * step, 12) for at in range(first, last + 1)]
            power /= 10


def extent(*values: Iterable[float], include: Sequence[float] = ()) -> tuple[float, float]:
    """Return bounds a little beyond the finite values; never of width 0.

    Args:
        *values: Series that must fit.
        include: Values the bounds must reach and, at the end, not exceed for their sake.
    """
    found = [v for series in values for v in series if math.isfinite(v)]
    found += include
    if not found:
        return 0.0, 1.0
    low, high = min(found), max(found)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return (
        low if low in include else low - margin,
        high if high in include else high + margin,
    )


def root_ticks(highest: float) -> list[tuple[float, str]]:
    """Return ticks of shares that are drawn as their square roots.

    On such a scale a small hump beside a tall peak can still be seen.

    Args:
        highest: Highest root on the scale.
    """
    shares = (0.0, 0.01, 0.04, 0.16, 0.36, 0.64, 1.0)
    return [(math.sqrt(s), f"{s:.0%}") for s in shares if math.sqrt(s) <= highest]


class Plot:
    """An x and a y axis with marks on them.

    Args:
        x: Lowest and highest x.
        y: Lowest and highest y.
        x_label: What x is, written below the axis.
        y_label: What y is, written above the axis.
        height: Height in pixels of a drawing that is 380 wide.
        x_names: Names at whole x from 0 on, in place of numbers.
        y_names: Names at whole y from 0 on, in place of numbers.
        left: Room for what is written at the y axis.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        x_label: str = "",
        y_label: str = "",
        height: float = 236,
        x_names: Sequence[str] | None = None,
        y_names: Sequence[str] | None = None,
        left: float = _LEFT,
    ) -> None:
        self.height = height
        self.x = Scale(*x, left, WIDTH - _RIGHT)
        self.y = Scale(*y, height - _BOTTOM, _TOP)
        self._left = left
        self._labels = (x_label, y_label)
        self._names = (x_names, y_names)
        self._y_ticks: Sequence[tuple[float, str]] | None = None
        self._marks: list[Markup] = []
        self._bands: list[Markup] = []

    def ticks_at(self, ticks: Sequence[tuple[float, str]]) -> None:
        """Write these texts at these y, in place of round numbers."""
        self._y_ticks = ticks

    def line(self, points: Iterable[Point], color: str, style: str = "line") -> None:
        """Draw a line through points; one that is not finite interrupts it.

        Args:
            points: x and y of each.
            color: Name of its color.
            style: "line", "line dashed" or "line thin".
        """
        path, pen = [], "M"
        for x, y in points:
            if not (math.isfinite(x) and math.isfinite(y)):
                pen = "M"
                continue
            path.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
            pen = "L"
        self._add("path", d="".join(path), class_=f"{style} c-{color}")

    def area(self, points: Sequence[Point], color: str, base: float | None = None) -> None:
        """Fill what lies between points and a base line, by default the x axis."""
        base = self.y.low if base is None else base
        outline = [(points[0][0], base), *points, (points[-1][0], base)]
        path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in outline)
        self._add("path", d=f"M{path}Z", class_=f"area c-{color}")

    def steps(self, edges: Sequence[float], heights: Sequence[float], color: str) -> None:
        """Draw a histogram as a filled outline."""
        corners = [
            (edge, height)
            for left, right, height in zip(edges, edges[1:], heights, strict=False)
            for edge in (left, right)
        ]
        self.area(corners, color)
        self.line(corners, color)

    def bar(self, x: Point, y: Point, color: str) -> None:
        """Draw a bar from x[0] to x[1], y[0] to y[1], with rounded corners."""
        left, right = sorted(map(self.x, x))
        top, bottom = sorted(map(self.y, y))
        self._add(
            "rect",
            x=left,
            y=top,
            width=max(right - left, 0.5),
            height=max(bottom - top, 0.5),
            rx=min(2.0, (bottom - top) / 2),
            class_=f"bar c-{color}",
        )

    def dots(self, points: Iterable[Point], color: str, radius: float = 3.0) -> None:
        """Draw a dot at each point."""
        for x, y in points:
            if math.isfinite(x) and math.isfinite(y):
                self._add(
                    "circle", cx=self.x(x), cy=self.y(y), r=float(radius), class_=f"dot c-{color}"
                )

    def mixed_dot(self, x: float, y: float, radius: float, share: float, tip: str) -> None:
        """Draw a dot whose color lies between those of simple (0) and complex (1)."""
        self._add(
            "circle",
            cx=self.x(x),
            cy=self.y(y),
            r=float(radius),
            class_="mix",
            style=f"--m:{share:.0%}",
            data_tip=tip,
        )

    def whisker(self, a: Point, b: Point, color: str) -> None:
        """Draw the thick line of an interval between two points."""
        self._segment(a, b, f"whisker c-{color}")

    def rule(self, a: Point, b: Point, style: str = "rule") -> None:
        """Draw a thin line of reference between two points."""
        self._segment(a, b, style)

    def note(self, x: float, y: float, text: str, anchor: str = "start") -> None:
        """Write a word at a point."""
        self._add("text", text, x=self.x(x), y=self.y(y), class_="note", text_anchor=anchor)

    def tell(self, tips: Iterable[tuple[float, Sequence[str]]]) -> None:
        """Divide the plot into upright bands around ascending x that tell their values in lines."""
        tips = list(tips)
        places = np.array([self.x(x) for x, _ in tips])
        middles = (places[1:] + places[:-1]) / 2
        edges = [self._left, *middles.tolist(), WIDTH - _RIGHT]
        top, bottom = _TOP, self.height - _BOTTOM
        for (_, lines), place, left, right in zip(tips, places, edges, edges[1:], strict=False):
            band = element("rect", x=left, y=top, width=max(right - left, 0.0), height=bottom - top)
            hairline = element("path", d=f"M{place:.1f} {top}V{bottom:g}")
            tip = "\n".join(lines)
            self._bands.append(element("g", band, hairline, class_="band", data_tip=tip))

    def tell_rows(self, tips: Iterable[Sequence[str]]) -> None:
        """Divide the plot into bands around y = 0, 1, … that tell their values in lines."""
        size = abs(self.y(1) - self.y(0))
        for at, lines in enumerate(tips):
            band = element("rect", x=0, y=self.y(at) - size / 2, width=WIDTH, height=size)
            self._bands.append(element("g", band, class_="band", data_tip="\n".join(lines)))

    def render(self, label: str) -> Markup:
        """Return the drawing; ``label`` says what it shows to those who do not see it."""
        return element(
            "svg",
            *self._axes(),
            *self._marks,
            *self._bands,
            viewBox=f"0 0 {WIDTH} {self.height:g}",
            role="img",
            aria_label=label,
        )

    def _add(self, tag: str, *content: str, **attributes: object) -> None:
        self._marks.append(element(tag, *content, **attributes))

    def _segment(self, a: Point, b: Point, style: str) -> None:
        self._add(
            "path",
            d=f"M{self.x(a[0]):.1f} {self.y(a[1]):.1f}L{self.x(b[0]):.1f} {self.y(b[1]):.1f}",
            class_=style,
        )

    def _axes(self) -> Iterable[Markup]:
        bottom = self.height - _BOTTOM
        x_names, y_names = self._names
        for at, name in self._y_ticks or _marked(self.y, y_names):
            y = self.y(at)
            if y_names is None:
                line = f"M{self._left:g} {y:.1f}H{WIDTH - _RIGHT}"
                yield element("path", d=line, class_="grid")
            yield element("text", name, x=self._left - 7, y=y + 3.8, class_="tick end")
        for at, name in _marked(self.x, x_names):
            x = self.x(at)
            if y_names is not None and x_names is None:
                yield element("path", d=f"M{x:.1f} {_TOP}V{bottom:g}", class_="grid")
            yield element("text", name, x=x, y=bottom + 15, class_="tick middle")
        yield element("path", d=f"M{self._left:g} {bottom:g}H{WIDTH - _RIGHT}", class_="axis")
        x_label, y_label = self._labels
        if x_label:
            yield element("text", x_label, x=WIDTH - _RIGHT, y=self.height - 5, class_="label end")
        if y_label:
            yield element("text", y_label, x=0, y=10, class_="label")


def _marked(scale: Scale, names: Sequence[str] | None) -> list[tuple[float, str]]:
    if names is not None:
        return list(enumerate(names))
    ticks = scale.ticks()
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return [(tick, _tick(tick, digits)) for tick in ticks]


def _tick(value: float, digits: int) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.{digits}f}".replace("-", "\u2212")
