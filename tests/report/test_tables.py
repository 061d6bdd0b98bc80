import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difftilt.report import Column, Spread, html_table, render_table
from difftilt.report.tables import format_number, format_spread


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0125, "0.0125"),
        (0.99951, "1.00"),
        (-12.345, "-12.3"),
        (1234.5, "1,234"),
        (12345, "12,345"),
        (0.000012345, "1.23e-05"),
        (1.5e9, "1.50e+09"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
    ],
)
def test_numbers_have_three_significant_digits(value, text):
    assert format_number(value) == text


@given(st.floats(1e-12, 1e12), st.integers(2, 8))
def test_numbers_are_near_what_they_show(value, digits):
    shown = float(format_number(value, digits).replace(",", ""))
    assert abs(shown - value) <= 0.5001 * 10 ** (1 - digits) * value


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (0.12512, 0.004, "0.125 ± 0.004"),
        (0.12512, 0.0014, "0.1251 ± 0.0014"),
        (-3.14159, 0.96, "-3.1 ± 1.0"),
        (1234.4, 25.0, "1,234 ± 25"),
        (0.5, 0.0, "0.500 ± 0"),
        (0.5, math.nan, "0.500 ± nan"),
    ],
)
def test_digits_follow_the_spread(value, spread, text):
    assert format_spread(value, spread) == text


ROWS = [
    {"method": "rtb", "ess": Spread(0.911, 0.004), "log_z_error": 0.0021, "calls": 120_000},
    {"method": "smc", "ess": None, "log_z_error": -12.5, "calls": 40},
]


def test_text_table_is_aligned_at_the_point():
    columns = ["method", Column("ess", "ESS"), Column("log_z_error", "error"), "calls", "gone"]
    assert render_table(columns, ROWS).splitlines() == [
        "method            ESS      error    calls  gone",
        "------  -------------  ---------  -------  ----",
        "rtb     0.911 ± 0.004    0.00210  120,000  –",
        "smc     –              -12.5           40  –",
    ]


def test_text_table_without_rows_is_a_heading():
    assert render_table(["a", "b"], []) == "a  b\n-  -"


def test_text_table_keeps_text_beside_numbers():
    assert render_table(["a"], [{"a": "x"}, {"a": 0.5}, {"a": True}]).splitlines()[2:] == [
        "x",
        "0.500",
        "yes",
    ]


def test_html_table_shows_the_same_cells_escaped():
    table = html_table(["method", "log_z_error"], [*ROWS, {"method": "<b>&"}], caption='A "title"')
    assert '<th scope="row">rtb</th>' in table
    assert "0.00210" in table and "−12.5" in table
    assert "<b>" not in table and "&lt;b&gt;&amp;" in table
    assert "<figcaption>A &quot;title&quot;</figcaption>" in table
