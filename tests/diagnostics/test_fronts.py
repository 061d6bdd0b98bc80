"""The front of two figures, and what lies below it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftilt.benches.fronts import below_front
from difftilt.diagnostics.distances import energy_distance
from difftilt.diagnostics.features import diversity
from difftilt.diagnostics.fronts import front_height
from difftilt.report.tables import Spread

POINTS = st.lists(
    st.tuples(st.floats(-5, 5, width=32), st.floats(0, 2, width=32)), min_size=1, max_size=6
)


def test_a_front_is_the_upper_hull():
    points = [(0.0, 1.0), (1.0, 0.9), (2.0, 0.2)]
    assert front_height(points, -3.0) == 1.0
    assert front_height(points, 0.5) == pytest.approx(0.95)
    assert front_height(points, 1.5) == pytest.approx(0.55)
    assert front_height(points, 2.0) == 0.2
    assert front_height(points, 2.1) is None
    assert front_height([], 0.0) is None


@given(POINTS, st.floats(-6, 6, width=32), st.floats(0, 1))
def test_a_front_falls_is_concave_and_covers_its_points(points, x, share):
    for there, value in points:
        assert front_height(points, there) >= value - 1e-9
    largest = max(there for there, _ in points)
    if x < largest:
        ahead = x + share * (largest - x)
        a, b = front_height(points, x), front_height(points, largest)
        middle = front_height(points, min(ahead, largest))
        assert a >= middle - 1e-6 >= b - 2e-6
        assert middle >= (1 - share) * a + share * b - 1e-6


def test_a_mixture_of_two_samplers_lies_on_or_above_their_line():
    torch.manual_seed(0)
    a, b = torch.randn(60, 3), 0.3 * torch.randn(60, 3) + torch.tensor([0.4, 0.0, 0.0])
    # Pairs of equal draws count as pairs here, as in a law's own mean distance.
    within = 59 / 60
    da, db = float(diversity(a)) * within, float(diversity(b)) * within
    mixed = float(diversity(torch.cat([a, b]))) * 119 / 120
    assert energy_distance(a, b) > 0
    assert mixed >= (da + db) / 2


def test_what_lies_below_a_front_is_told_seed_by_seed():
    def row(method: str, seed: int, log_r: float, diversity: float) -> dict[str, object]:
        names = {"problem": "one", "method": method, "seed": seed}
        return {**names, "log_r": log_r, "diversity": diversity}

    rows = [
        row("rtb", 0, -1.0, 1.0),
        row("prior", 0, -2.0, 1.1),
        row("ddpo", 0, -1.5, 1.0),
        row("rtb", 1, -1.0, 1.0),
        row("prior", 1, -2.0, 1.2),
        row("ddpo", 1, -1.5, 1.2),
        row("best", 0, -0.5, 0.9),
    ]
    ddpo, best = below_front(rows, ("rtb", "prior"), "log_r", "diversity")
    assert isinstance(ddpo["below"], Spread)
    assert ddpo["below"].value == pytest.approx(0.5 * (0.05 - 0.1))
    assert ddpo["least"] == pytest.approx(-0.1)
    assert ddpo["beyond"] == 0
    assert best["below"] is None and best["beyond"] == 1
