"""Scales, marks and elements."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuxictr_tf4ctr.analysis.report.plot import (
    Axis,
    Markup,
    Plot,
    Scale,
    count,
    duration,
    element,
    extent,
    number,
    signed,
)

FINITE = st.floats(-1e6, 1e6)


@given(FINITE, st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_within(low, width):
    scale = Scale(low, low + width)
    if scale.high - scale.low < 1e-6 * abs(low):
        return  # the scale's ends are hardly two numbers
    ticks = scale.ticks()
    assert 4 <= len(ticks) <= 12
    slack = 1e-6 * width
    assert scale.low - slack <= ticks[0] and ticks[-1] <= scale.high + slack
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(mantissa - nice) for nice in (1, 2, 5)) < 1e-3


@given(st.lists(FINITE | st.just(float("nan"))))
def test_an_extent_holds_all_values_and_has_a_width(values):
    low, high = extent(values)
    assert low < high
    assert all(low <= v <= high for v in values if math.isfinite(v))


def test_values_land_where_the_scale_says():
    plot = Plot(Axis(0, 10), Axis(0, 1))
    assert (plot.x(0), plot.x(10)) == (44, 370)
    assert plot.y(1) < plot.y(0)  # pixels count downwards
    plot.line([(0, 0), (5, float("nan")), (10, 1)], "run1")
    path = re.search(r'd="(M[^"]*)" class="line', plot.render("x"))[1]
    assert path.count("M") == 2  # what is not finite interrupts the line


def test_bands_cover_the_plot_without_gaps():
    plot = Plot(Axis(0, 1), Axis(0, 1))
    plot.tell([(x, [f"at {x}"]) for x in np.linspace(0, 1, 5)])
    found = re.findall(r'<rect x="([\d.]+)" y="22" width="([\d.]+)"', plot.render("x"))
    edges = [(float(x), float(x) + float(width)) for x, width in found]
    assert edges[0][0] == 44 and edges[-1][1] == pytest.approx(370, abs=0.2)
    for (_, end), (start, _) in itertools.pairwise(edges):
        assert end == pytest.approx(start, abs=0.2)


def test_all_that_is_not_markup_is_escaped():
    made = element("p", "<b>", element("i", "&"), title='"quoted"', class_="a", data_tip="x\ny")
    assert made == (
        '<p title="&quot;quoted&quot;" class="a" data-tip="x\ny">&lt;b&gt;<i>&amp;</i></p>'
    )
    assert isinstance(made, Markup)


def test_numbers_are_written_for_readers():
    assert number(0.12345) == "0.1235" or number(0.12345) == "0.1234"
    assert number(-1.5, 1) == "\u22121.5" and number(float("nan")) == "–" == number(None)
    assert signed(0.5, 1) == "+0.5" and signed(-0.5, 1) == "\u22120.5"
    assert count(1234567) == "1,234,567"
    assert [duration(s) for s in (5, 65, 7260)] == ["5.0 s", "1 min 5 s", "2 h 1 min"]
