"""Surfaces drawn uniformly, furniture that is what it is called, and measures of known clouds."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from difftilt.errors import InputError
from difftilt.tasks.shapes.furniture import SHAPE_CLASSES, furniture, normalised
from difftilt.tasks.shapes.judges import cloud_features, judged, load_judge
from difftilt.tasks.shapes.parts import Bar, Box, Revolved, disc, surface
from difftilt.tasks.shapes.rewards import (
    asymmetry,
    box_volume,
    flatness,
    hull_volume,
    wanted_shape,
)
from difftilt.tasks.shapes.targets import shape_target, shape_targets

DRAWS = 4000
FALSE_ALARM = 1e-4


def test_a_box_gives_each_face_its_area():
    """A chi-square test of six faces; false alarm 1e-4."""
    box = Box((1, 2, 3), (1, 2, 4))
    points = box.sample(DRAWS, np.random.default_rng(0)) - (1, 2, 3)
    sides = np.stack([points / (0.5, 1, 2), -points / (0.5, 1, 2)], 1).reshape(DRAWS, 6)
    face = sides.argmax(1)
    assert np.abs(sides.max(1) - 1).max() < 1e-9, "every point is on the surface"
    areas = np.tile([8, 4, 2], 2) / 28
    assert box.area == 28
    assert chisquare(np.bincount(face, minlength=6), DRAWS * areas).pvalue > FALSE_ALARM


@pytest.mark.parametrize("ends", [(1.0, 1.0), (1.0, 0.25), (0.0, 1.0)])
def test_a_cone_is_drawn_uniformly(ends):
    """The share s along the slant has the CDF of its mantle's area; Kolmogorov-Smirnov, 1e-4."""
    first, last = ends
    bar = Bar((0, 0, 0), (0, 0, 2), first, last)
    points = bar.sample(DRAWS, np.random.default_rng(1))
    s = points[:, 2] / 2
    radius = np.hypot(points[:, 0], points[:, 1])
    assert np.allclose(radius, first + s * (last - first), atol=1e-9)
    total = (first + last) / 2
    law = kstest(s, lambda t: (first * t + (last - first) * t**2 / 2) / total)
    assert law.pvalue > FALSE_ALARM
    assert bar.area == pytest.approx(math.pi * (first + last) * math.hypot(2, last - first))
    turned = Revolved(((first, 0.0), (last, 2.0)))
    assert turned.area == pytest.approx(bar.area)


def test_a_disc_and_a_tilted_box_and_parts_by_area():
    plate = disc(1.0, 0.5, 0.5)
    assert plate.area == pytest.approx(2 * math.pi + math.pi)
    leaning = Box((0, 0, 1), (1, 1, 1), tilt=math.pi / 2, hinge=(0.0, 0.5))
    points = leaning.sample(500, np.random.default_rng(2))
    # What stood on the hinge now lies behind it.
    assert points[:, 1].min() == pytest.approx(0, abs=1e-9)
    assert points[:, 1].max() == pytest.approx(1, abs=1e-9)
    assert np.abs(points[:, 2] - 0.5).max() == pytest.approx(0.5)
    small, large = Box((0, 0, 0), (1, 1, 1)), Box((9, 0, 0), (3, 3, 3))
    drawn = surface([small, large], DRAWS, np.random.default_rng(3))
    share = (drawn[:, 0] > 4).mean()
    assert abs(share - 0.9) < 5 * math.sqrt(0.09 / DRAWS)


def test_furniture_is_repeatable_normalised_and_of_the_asked_class():
    clouds, labels = furniture(40, 64, seed=7)
    again, _ = furniture(40, 64, seed=7)
    assert clouds.shape == (40, 64, 3) and np.array_equal(clouds, again)
    assert len(set(labels)) == len(SHAPE_CLASSES)
    assert np.abs(clouds.mean(1)).max() < 1e-5
    assert np.allclose(np.square(clouds).mean((1, 2)), 1, atol=1e-5)
    assert set(furniture(5, 16, only="lamp")[1]) == {SHAPE_CLASSES.index("lamp")}
    with pytest.raises(InputError, match="no class is called 'hat'"):
        furniture(1, 16, only="hat")
    with pytest.raises(InputError, match="count and points"):
        furniture(0, 16)


def test_both_judges_know_new_furniture():
    """Shapes of a seed that no training used: at least 95 % right (5 standard errors of 0.99)."""
    clouds, labels = furniture(300, 256, seed=12_345)
    x, y = torch.from_numpy(clouds), torch.from_numpy(labels)
    for name in ("reward", "heldout"):
        judge = load_judge(name)
        logits = judged(judge, x)
        assert float((logits.argmax(1) == y).double().mean()) > 0.95
        shuffled = x[:, torch.randperm(256, generator=torch.Generator().manual_seed(0))]
        assert torch.allclose(judged(judge, shuffled), logits, atol=1e-3)
        assert cloud_features(judge, x[:3]).shape[0] == 3
    with pytest.raises(InputError, match="no classifier is called"):
        load_judge("third")


def test_statistics_of_a_box():
    """Points of a box of 1 x 2 x 4 about the origin, its corners among them."""
    corners = torch.cartesian_prod(*[torch.tensor([-h, h]) for h in (0.5, 1.0, 2.0)])
    cloud = corners.repeat(4, 1)[None].double()
    assert float(hull_volume(cloud)) == pytest.approx(8)
    assert float(box_volume(cloud)) == pytest.approx(8)
    assert float(flatness(cloud)) == pytest.approx(2)
    assert float(asymmetry(cloud)) == 0
    moved = cloud + torch.tensor([0.25, 0, 0])
    assert float(asymmetry(moved)) == pytest.approx(2 * 0.5**2), "both ways, half a unit apart"
    flat = torch.zeros(1, 5, 3)
    assert float(hull_volume(flat)) == 0


@pytest.mark.parametrize("name", ["symmetry", "flatness", "volume"])
def test_wanted_measures_are_bounded_and_have_a_slope(name, generator):
    x = torch.randn(4, 32, 3, generator=generator).requires_grad_()
    reward = wanted_shape(name, 0.5, 0.1)
    log_r = reward(x)
    assert reward.bound == 0 and bool((log_r <= 0).all())
    (slope,) = torch.autograd.grad(log_r.sum(), x)
    assert bool((slope.abs().flatten(1).sum(1) > 0).all())


def test_wrong_measures_and_targets_are_named():
    with pytest.raises(InputError, match="no statistic of shapes is called 'weight'"):
        wanted_shape("weight", 1.0, 1.0)
    with pytest.raises(InputError, match="width of a statistic"):
        wanted_shape("hull", 1.0, 0.0)
    with pytest.raises(InputError, match="unknown target 'hat'"):
        shape_target("hat")


def test_a_target_rewards_what_its_judge_counts():
    """The mean log r of what hits is above that of what misses, of new furniture."""
    x = torch.from_numpy(furniture(120, 256, seed=99)[0])
    for name in ("chair", "seat", "flat", "slender"):
        target = shape_targets()[name]
        hits, log_r = target.hits(x) > 0, target.reward()(x)
        assert 0 < int(hits.sum()) < len(x)
        assert float(log_r[hits].mean()) > float(log_r[~hits].mean()) + 1


def test_normalising_twice_changes_nothing():
    points = np.random.default_rng(4).normal(3, 2, (50, 3))
    once = normalised(points)
    assert np.allclose(normalised(once), once)
