import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from difftilt.report.drawing import VARIABLES
from difftilt.report.figures import (
    CURVES,
    Curve,
    Interval,
    _running_mean,
    curve_figure,
    curve_values,
    interval_figure,
    phase_spans,
    reward_histogram,
    reward_range,
)


def _texts(svg: str) -> list[str]:
    """Texts of a figure, which must be well-formed, in the page's colours, and load nothing."""
    assert "http" not in svg
    assert not [colour for colour in VARIABLES if colour in svg]
    declared = svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1)
    root = ElementTree.fromstring(declared)
    assert root.get("aria-label")
    return ["".join(each.itertext()).strip() for each in root.iter("text")]


def test_histogram_names_its_samplers_and_describes_itself():
    log_r = {"prior": np.linspace(-9, -3, 50), "posterior": np.linspace(-1, 0, 50)}
    ends = reward_range(log_r)
    assert ends is not None and ends[1] == pytest.approx(0.18, abs=0.01)
    svg = reward_histogram(log_r, ends)
    assert {"prior", "posterior", "log r, nats"} <= set(_texts(svg))
    assert "prior, median -6" in svg


def test_range_ignores_infinite_and_outlying_rewards():
    values = np.concatenate([[-np.inf, -1e9], np.linspace(-2, 0, 998)])
    ends = reward_range({"prior": values})
    assert ends is not None and -2.2 < ends[0] < -1.9


def test_range_needs_a_finite_reward():
    assert reward_range({"prior": np.full(3, -np.inf), "posterior": np.zeros(0)}) is None


def test_histogram_of_equal_rewards():
    log_r = {"prior": np.full(9, -1.5)}
    ends = reward_range(log_r)
    assert ends is not None and ends[0] < -1.5 < ends[1]
    assert _texts(reward_histogram(log_r, ends))


def test_intervals_stand_in_order_and_to_scale():
    rows = [Interval("first", 1.0, 0.5, 1.5), Interval("second", 3.0, None, None)]
    svg = interval_figure(rows, "first", "two intervals")
    assert {"first", "second", "nats"} <= set(_texts(svg))
    path = r'd="M ([\d.]+) ([\d.]+)\s+L ([\d.]+) ([\d.]+)\s*"[^>]*var\(--posterior\)'
    bars = re.findall(path, svg)
    (left, height, right, _), (point, lower, end, _) = [map(float, bar) for bar in bars]
    assert height < lower, "the first row is on top"
    assert point == end, "an end that is not known is the value"
    assert (point - left) / (right - left) == pytest.approx(2.5, abs=1e-3)
    assert "var(--shade)" in svg, "the quoted interval is a band"


METRICS = [
    {
        "step": step,
        "phase": "warm start" if step < 40 else "balance",
        "loss": math.exp(-step / 10),
        "log_z": None if step < 40 else -1.0,
    }
    for step in range(1, 101)
]


def test_curves_show_phases_and_values():
    svg = curve_figure(CURVES[0], METRICS)
    assert svg is not None
    texts = _texts(svg)
    assert {"Loss", "warm start", "balance"} <= set(texts)
    assert curve_figure(Curve("log_z", "log Z"), METRICS) is not None


def test_a_number_that_was_never_logged_has_no_curve():
    assert curve_figure(Curve("ess", "ESS"), METRICS) is None


def test_one_update_is_a_curve():
    assert curve_figure(CURVES[0], METRICS[:1]) is not None


def test_values_that_were_not_logged_are_nan():
    values = curve_values([{"a": 1}, {"a": None}, {}, {"a": "x"}, {"a": 2.5}], "a")
    assert np.array_equal(values, [1, np.nan, np.nan, np.nan, 2.5], equal_nan=True)


def test_running_mean_keeps_a_constant_and_a_line():
    assert np.allclose(_running_mean(np.full(200, 3.0)), 3.0)
    line = np.arange(400.0)
    assert np.allclose(_running_mean(line)[20:-20], line[20:-20])


def test_phases_touch_each_other():
    spans = phase_spans(np.array([1.0, 2, 3, 4, 5]), ["a", "a", "b", "b", "a"])
    assert spans == [("a", 1.0, 2.0), ("b", 2.0, 4.0), ("a", 4.0, 5.0)]


def test_figures_are_the_same_each_time():
    assert curve_figure(CURVES[0], METRICS) == curve_figure(CURVES[0], METRICS)
