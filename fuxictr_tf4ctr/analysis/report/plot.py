"""Elements as text, whatever is not markup escaped, and a small plotting surface.

The surface has two linear scales, marks in SVG, and bands that tell their values. Marks take
their color from a class ``c-<name>`` of the page's style sheet, so that one drawing serves light
and dark.
"""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def shortened(text: str, room: int) -> str:
    """Cut a text to so many letters, the last of them an ellipsis where it is cut."""
    return text if len(text) <= room else f"{text[: max(room - 1, 1)]}…"


def _text(value: object) -> str:
    """Write coordinates to a tenth of a pixel: more cannot be seen, and takes space."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


WIDTH = 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 22, 36

Point = tuple[float, float]
Tip = tuple[float, Sequence[str]]
"""A place on the x axis, and what is told there in lines."""


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


def steps(edges: Sequence[float], heights: Sequence[float]) -> list[Point]:
    """Return the outline of a histogram."""
    bars = zip(edges, edges[1:], heights, strict=False)
    return [(edge, height) for left, right, height in bars for edge in (left, right)]


@dataclass(frozen=True)
class Axis:
    """One side of a plot.

    Attributes:
        low: What it begins with.
        high: What it ends with.
        label: What it is, written at its end.
        names: Names at whole places from 0 on, in place of numbers.
        ticks: Places and what is written there, in place of round numbers.
    """

    low: float
    high: float
    label: str = ""
    names: Sequence[str] | None = None
    ticks: Sequence[tuple[float, str]] = ()

    @classmethod
    def of(cls, names: Sequence[str], label: str = "", margin: float = 0.5) -> "Axis":
        """Make an axis of names, with a margin before the first and after the last."""
        return cls(-margin, len(names) - 1 + margin, label, names)

    @classmethod
    def root(cls, highest: float, label: str) -> "Axis":
        """Make an axis from 0 on for square roots of shares, which are written.

        On such a scale a small hump beside a tall peak can still be seen.

        Args:
            highest: The highest root.
            label: What the shares are.
        """
        high = extent([highest], include=[0.0])[1]
        shares = (0.0, 0.01, 0.04, 0.16, 0.36, 0.64, 1.0)
        ticks = [(math.sqrt(s), f"{s:.0%}") for s in shares if math.sqrt(s) <= high]
        return cls(0.0, high, label, ticks=ticks)

    def written(self) -> Iterable[tuple[float, str]]:
        """Return where something is written along it, and what."""
        if self.names is not None:
            return enumerate(self.names)
        if self.ticks:
            return self.ticks
        places = Scale(self.low, self.high).ticks()
        digits = max(0, -math.floor(math.log10(places[1] - places[0]) + 1e-9))
        large = [f"{at / 1000:g}k" if abs(at) >= 10_000 else number(at, digits) for at in places]
        return zip(places, large, strict=True)


class Plot:
    """An x and a y axis with marks on them.

    Args:
        x: The axis from left to right.
        y: The axis from the bottom up.
        height: Height in pixels of a drawing that is 380 wide.
        left: Room for what is written at the y axis.
    """

    def __init__(self, x: Axis, y: Axis, height: float = 236, left: float = _LEFT) -> None:
        self.height = height
        self.x = Scale(x.low, x.high, left, WIDTH - _RIGHT)
        self.y = Scale(y.low, y.high, height - _BOTTOM, _TOP)
        self._left = left
        self._axes = x, y
        self._marks: list[Markup] = []
        self._bands: list[Markup] = []

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
            path.append(f"{pen}{self._at(x, y)}")
            pen = "L"
        self._add("path", d="".join(path), class_=f"{style} c-{color}")

    def dotted(self, points: Iterable[Point], color: str, style: str = "line") -> None:
        """Draw a line with a dot at each of its points."""
        points = list(points)
        self.line(points, color, style)
        self.dots(points, color)

    def area(self, points: Sequence[Point], color: str) -> None:
        """Fill what lies between points and the x axis."""
        base = self.y.low
        outline = [(points[0][0], base), *points, (points[-1][0], base)]
        path = "L".join(self._at(x, y) for x, y in outline)
        self._add("path", d=f"M{path}Z", class_=f"area c-{color}")

    def steps(self, edges: Sequence[float], heights: Sequence[float], color: str) -> None:
        """Draw a histogram as a filled outline."""
        corners = steps(edges, heights)
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
                self._add("circle", cx=self.x(x), cy=self.y(y), r=radius, class_=f"dot c-{color}")

    def mixed_dot(self, point: Point, radius: float, share: float, tip: str) -> None:
        """Draw a dot whose color lies between those of simple (0) and complex (1)."""
        x, y = self.x(point[0]), self.y(point[1])
        mix = f"--m:{share:.0%}"
        self._add("circle", cx=x, cy=y, r=radius, class_="mix", style=mix, data_tip=tip)

    def whisker(self, a: Point, b: Point, color: str) -> None:
        """Draw the thick line of an interval between two points."""
        self.rule(a, b, f"whisker c-{color}")

    def rule(self, a: Point, b: Point, style: str = "rule") -> None:
        """Draw a thin line of reference between two points."""
        self._add("path", d=f"M{self._at(*a)}L{self._at(*b)}", class_=style)

    def note(self, x: float, y: float, text: str, anchor: str = "start") -> None:
        """Write a word at a point."""
        self._add("text", text, x=self.x(x), y=self.y(y), class_="note", text_anchor=anchor)

    def tell(self, tips: Iterable[Tip]) -> None:
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

    def tell_series(
        self,
        heads: Iterable[tuple[float, str]],
        series: Mapping[str, Sequence[float]],
        write: Callable[[float], str],
    ) -> None:
        """Tell what each of several series is at each x.

        Args:
            heads: The x, and the first line there.
            series: What a series is called -> its values at these x.
            write: Writes a value.
        """
        self.tell(
            (x, [head, *(f"{name} {write(values[at])}" for name, values in series.items())])
            for at, (x, head) in enumerate(heads)
        )

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
            *self._ground(),
            *self._marks,
            *self._bands,
            viewBox=f"0 0 {WIDTH} {self.height:g}",
            role="img",
            aria_label=label,
        )

    def _add(self, tag: str, *content: str, **attributes: object) -> None:
        self._marks.append(element(tag, *content, **attributes))

    def _at(self, x: float, y: float) -> str:
        return f"{self.x(x):.1f} {self.y(y):.1f}"

    def _ground(self) -> Iterable[Markup]:
        bottom, right = self.height - _BOTTOM, WIDTH - _RIGHT
        along, upwards = self._axes
        for at, name in upwards.written():
            y = self.y(at)
            if upwards.names is None:
                yield element("path", d=f"M{self._left:g} {y:.1f}H{right}", class_="grid")
            yield element("text", name, x=self._left - 7, y=y + 3.8, class_="tick end")
        for at, name in along.written():
            x = self.x(at)
            if upwards.names is not None and along.names is None:
                yield element("path", d=f"M{x:.1f} {_TOP}V{bottom:g}", class_="grid")
            yield element("text", name, x=x, y=bottom + 15, class_="tick middle")
        yield element("path", d=f"M{self._left:g} {bottom:g}H{right}", class_="axis")
        if along.label:
            yield element("text", along.label, x=right, y=self.height - 5, class_="label end")
        if upwards.label:
            yield element("text", upwards.label, x=0, y=10, class_="label")
