"""The vision table at smoke size: every kind of method gives a row beside rejection truth."""

import math

import pytest
import torch

from difftilt.errors import InputError
from difftilt.recipes.images.bench import (
    ImageBench,
    ImageRun,
    build_target,
    image_row,
    image_targets,
    prior_draws,
    truth_of,
)
from difftilt.recipes.images.methods import default_image_methods, image_methods

DRAWS = 96


@pytest.fixture(scope="module")
def truth():
    return truth_of("even", DRAWS)


def test_truth_is_the_prior_accepted_by_its_reward(truth):
    """Log Z by the accepted share and by the mean reward agree within 5 standard errors."""
    share = len(truth.members) / DRAWS
    error = math.sqrt(share * (1 - share) / DRAWS) / share
    assert abs(math.log(share) - truth.log_z) < 5 * math.hypot(error, truth.standard_error)
    log_r = build_target("even").log_reward(truth.members, None)
    assert float(log_r.exp().mean()) > 0.5


@pytest.mark.parametrize("method", ["importance", "lgdmc", "svdd_argmax", "fk_steering", "dpok"])
def test_each_kind_of_method_has_a_row(method: str, truth):
    row = image_row(ImageRun("even", method, 0, 400, 16), truth)
    assert row["method"] == method and row["problem"] == "even"
    for key in ("log_r", "frechet", "diversity", "seconds"):
        assert math.isfinite(row[key])
    assert 0.2 < row["diversity"] < 2
    if method == "svdd_argmax":
        assert row["ess"] is None and row["log_z_error"] is None
    else:
        assert 0 < row["ess"] <= 1


@pytest.mark.parametrize("name", ["bright", "faint", "top_heavy"])
def test_a_style_is_a_target_with_a_truth_by_rejection(name: str, truth):
    """Members are nearer the wanted value than the prior, whose share of them is in (0, 1/2)."""
    found, reward = truth_of(name, DRAWS), build_target(name).log_reward
    assert 2 <= len(found.members) < DRAWS / 2
    near = reward(found.members, None).mean() - reward(prior_draws(DRAWS), None).mean()
    assert float(near) > 1 and build_target(name).log_bound == 0


def test_a_union_adds_the_probabilities_of_its_classes():
    x = build_target("bag").prior.sample(8)
    union = build_target("footwear").log_reward(x, None).exp()
    single = [build_target(name).log_reward(x, None).exp() for name in FOOTWEAR]
    assert torch.allclose(union, sum(single, torch.zeros(8)), atol=1e-5)


FOOTWEAR = ("sandal", "sneaker", "ankle_boot")


def test_every_kind_of_the_field_is_there_and_an_evening_runs_the_most_known():
    field = {"rtb", "reward_weighted", "weighted_likelihood", "cep", "rgdm", "rgdm_paper"}
    field |= {"ddpo", "ppo_kl", "dpok", "kl_control", "adjoint_matching", "align_prop", "draft"}
    field |= {"dps", "lgdmc", "tds", "svdd", "svdd_argmax", "fk_steering", "best_of_n"}
    assert field | {"importance", "importance_resampling"} <= set(image_methods())
    assert set(default_image_methods()) < set(image_methods())


def test_the_prior_is_drawn_once_for_all_targets(truth):
    draws = prior_draws(DRAWS)
    assert prior_draws(DRAWS) is draws
    for name in ("even", "bag"):
        members = truth_of(name, DRAWS).members
        assert 0 < len(members) < DRAWS
        assert all(any(torch.equal(x, y) for y in draws) for x in members)


def test_names_are_checked_before_anything_runs():
    assert "rtb" in image_methods() and "bag" in image_targets()
    with pytest.raises(InputError, match="unknown target 'hat'; choose one of"):
        ImageBench(["hat"], ["rtb"], [0], 100, 8)
    with pytest.raises(InputError, match="unknown method 'nope'"):
        ImageBench(["bag"], ["nope"], [0], 100, 8)
