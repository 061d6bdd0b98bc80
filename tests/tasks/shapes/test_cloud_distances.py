"""Distances of clouds by hand and by naive references; what sets of clouds show by construction."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from difftilt.errors import InputError
from difftilt.tasks.shapes.distances import (
    chamfer,
    cloud_distances,
    compare_sets,
    coverage,
    earth_movers,
    minimum_matching,
    nearest_neighbour_accuracy,
    occupancy_divergence,
)

LINE = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0]]])


def test_chamfer_by_hand():
    """Two points against one at 3: squares 9 and 4 one way, 4 the other."""
    other = torch.tensor([[[3.0, 0, 0]]])
    assert float(chamfer(LINE, other)) == pytest.approx((9 + 4) / 2 + 4)
    assert float(chamfer(LINE, LINE.flip(1))) == 0


def test_chamfer_is_that_of_two_loops(generator):
    a = torch.randn(3, 11, 3, generator=generator)
    b = torch.randn(3, 7, 3, generator=generator)
    for k in range(3):
        one = sum(min(float((p - q).square().sum()) for q in b[k]) for p in a[k]) / 11
        two = sum(min(float((p - q).square().sum()) for p in a[k]) for q in b[k]) / 7
        assert float(chamfer(a, b)[k]) == pytest.approx(one + two, rel=1e-5)


def test_transport_by_hand():
    """A translation costs its length; of unequal sizes the masses are split."""
    moved = LINE + torch.tensor([0.0, 3.0, 4.0])
    assert float(earth_movers(LINE, moved)) == pytest.approx(5.0, rel=1e-6)
    middle = torch.tensor([[[0.5, 0, 0]]])
    assert float(earth_movers(LINE, middle)) == pytest.approx(0.5, rel=1e-6)


def test_transport_of_equal_sizes_is_the_best_assignment(generator):
    a = torch.randn(4, 40, 3, generator=generator)
    b = torch.randn(4, 40, 3, generator=generator) + 0.3
    costs = torch.cdist(a.double(), b.double()).numpy()
    for k, found in enumerate(earth_movers(a.double(), b.double())):
        rows, columns = linear_sum_assignment(costs[k])
        assert float(found) == pytest.approx(costs[k][rows, columns].mean(), rel=1e-9)


@pytest.mark.parametrize("distance", [chamfer, earth_movers])
def test_order_of_points_and_rigid_motions_do_not_matter(distance, generator):
    a, b = torch.randn(2, 3, 20, 3, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    shuffled = a[:, torch.randperm(20, generator=generator)]
    moved = distance(shuffled @ turn + 1, b @ turn + 1)
    assert torch.allclose(moved, distance(a, b), rtol=1e-9)


def test_all_pairs_are_the_pairs(generator):
    a, b = torch.randn(5, 6, 3, generator=generator), torch.randn(4, 9, 3, generator=generator)
    found = cloud_distances(a, b)
    assert found.shape == (5, 4)
    assert torch.equal(found[3, 2], chamfer(a[3:4], b[2:3])[0])


def test_matching_coverage_and_neighbours_by_hand():
    """Samples at 0, 1 and 2 on a line, references at 0.1 and 9."""
    s, r = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.1, 9.0])
    across = (s[:, None] - r).abs()
    own, theirs = (s[:, None] - s).abs(), (r[:, None] - r).abs()
    assert minimum_matching(across) == pytest.approx((0.1 + 7) / 2, rel=1e-6)
    assert coverage(across) == 0.5
    # Right is 2, whose nearest is 1. Wrong are 0 and 1 (to 0.1), 0.1 (to 0) and 9 (to 2).
    assert nearest_neighbour_accuracy(own, across, theirs) == pytest.approx(1 / 5)


def test_one_set_twice_is_covered_and_never_told_apart(generator):
    clouds = torch.randn(12, 16, 3, generator=generator)
    found = compare_sets(clouds, clouds)
    assert found.mmd == 0 and found.coverage == 1 and found.nearest <= 0.5


def test_a_collapsed_sampler_covers_one_reference(generator):
    clouds = torch.randn(10, 16, 3, generator=generator)
    collapsed = clouds[:1] + 1e-3 * torch.randn(10, 16, 3, generator=generator)
    assert compare_sets(collapsed, clouds).coverage == pytest.approx(0.1)


@pytest.mark.parametrize("shift", [0.0, 4.0])
def test_neighbours_tell_two_laws_apart_and_one_law_not(shift, generator):
    """100 + 100 clouds of one point: 1-NNA has mean 1/2 and standard deviation below 0.06 under
    one law (false alarm below 1e-6 at 5 of them); 4 standard deviations apart it is above 0.9."""
    a, b = torch.randn(2, 100, 1, 3, generator=generator)
    b[..., 0] += shift
    found = compare_sets(a, b).nearest
    assert found > 0.9 if shift else abs(found - 0.5) < 0.3


def test_divergence_by_hand():
    """Points in one of two cubes: none shared is log 2; half shared, by the definition."""
    left, right = torch.full((1, 4, 3), -1.0), torch.full((1, 4, 3), 1.0)
    assert occupancy_divergence(left, right, 2) == pytest.approx(math.log(2))
    assert occupancy_divergence(left, left, 2) == 0
    both = torch.cat([left, right], 1)
    p, q = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    m = (p + q) / 2
    expected = (math.log(1 / m[0]) + sum(q * np.log(q / m))) / 2
    assert occupancy_divergence(left, both, 2) == pytest.approx(expected)


def test_what_is_no_cloud_is_refused():
    flat = torch.zeros(4, 3)
    for wrong in (lambda: chamfer(flat, flat), lambda: occupancy_divergence(flat, flat)):
        with pytest.raises(InputError, match=r"clouds of points are \(B, P, 3\)"):
            wrong()
    with pytest.raises(InputError, match="pairs of clouds"):
        chamfer(LINE, LINE.expand(2, -1, -1))
    with pytest.raises(InputError, match="choose chamfer or emd"):
        cloud_distances(LINE, LINE, "hausdorff")
    with pytest.raises(InputError, match="from 2 of each on"):
        compare_sets(LINE, LINE)
    with pytest.raises(InputError, match="cells >= 1"):
        occupancy_divergence(LINE, LINE, 0)
