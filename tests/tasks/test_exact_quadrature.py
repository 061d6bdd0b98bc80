"""Quadrature against closed forms, symmetry, the published constants, and finer grids."""

import math
from functools import cache

import pytest
import torch

from difftilt.schedules import quantile_log_snr
from difftilt.tasks.exact.affine import AffineChain, TiltedAffineChain, log_likelihood
from difftilt.tasks.exact.denoisers import GaussianDenoiser
from difftilt.tasks.exact.grid25 import (
    gmm9of25,
    line25,
    log_reward_9of25,
    log_reward_corner,
    prior25,
    rare_corner,
    reward_9of25,
    reward_corner,
)
from difftilt.tasks.exact.line import Line, PlaneReward
from difftilt.tasks.exact.plane import data_law
from difftilt.tasks.exact.toys import plane_truth, ring8, toy_problem
from difftilt.tasks.exact.vectors import vector_chain


@cache
def fine_line() -> Line:
    return line25(prior25(), spacing=0.007, data_spacing=0.0011)


def test_nine_of_25_has_the_published_constants():
    truth = gmm9of25().truth
    assert truth.log_z == pytest.approx(0.12474, abs=5e-5)
    assert truth.kl_to_prior == pytest.approx(1.062, abs=5e-4)
    assert truth.prior_ess == pytest.approx(0.3037, abs=5e-5)
    assert truth.floors["prior_variance"] == pytest.approx(0.2249, abs=5e-5)
    assert truth.floors["diagonal_variance"] == pytest.approx(0.0790, abs=5e-5)
    assert truth.floors["initial"] == pytest.approx(1.9e-6, abs=5e-8)


def test_rare_corner_has_the_published_constants():
    truth = rare_corner().truth
    assert truth.log_z == pytest.approx(-9.4071, abs=2e-4)
    assert truth.prior_ess == pytest.approx(7.82e-4, abs=2e-6)


def test_fifty_steps_have_the_published_evidence():
    reward = reward_9of25(line25(prior25(50)))
    assert math.log(reward.z) == pytest.approx(0.04851, abs=5e-5)
    assert reward.kl_to_prior() == pytest.approx(1.120, abs=1e-3)
    assert reward.prior_ess() == pytest.approx(0.2865, abs=1e-4)


def test_nine_of_25_does_not_change_on_a_finer_grid():
    reward, truth = reward_9of25(fine_line()), gmm9of25().truth
    assert math.log(reward.z) == pytest.approx(truth.log_z, abs=3e-5)
    mean, covariance = reward.moments()
    assert torch.allclose(mean, truth.mean, atol=3e-5)
    assert torch.allclose(covariance, truth.covariance, atol=3e-5)


def test_rare_corner_does_not_change_on_a_finer_grid():
    reward = reward_corner(fine_line())
    assert math.log(reward.z) == pytest.approx(rare_corner().truth.log_z, abs=2e-4)


@pytest.mark.parametrize(
    ("problem_reward", "log_reward"),
    [(reward_9of25, log_reward_9of25), (reward_corner, log_reward_corner)],
)
def test_the_grid_s_reward_is_the_problem_s(problem_reward, log_reward, generator):
    reward = problem_reward(line25(prior25()))
    rows = torch.randint(1200, 1800, (100, 2), generator=generator)
    x, y = rows.unbind(1)
    on_grid = ((reward.factors[x] @ reward.coupling) * reward.factors[y]).sum(1)
    direct = log_reward(reward.line.x[rows])
    assert torch.allclose(on_grid.log(), direct, atol=1e-9)


def test_line_agrees_with_the_affine_recursion_to_the_floors():
    mean, variance, y = (torch.tensor(v, dtype=torch.float64) for v in ([0.3], [[0.6]], 0.9))
    chain = vector_chain(
        GaussianDenoiser(mean, variance), quantile_log_snr(12), 1, dtype=torch.float64
    )
    line = Line(chain.denoiser, chain.diffusion, 0.02, 0.01, data_reach=6.0)
    factor = torch.exp(-0.5 * ((y - line.x) / 0.5) ** 2) / (0.5 * math.sqrt(2 * math.pi))
    reward = PlaneReward(line, factor[:, None], torch.ones(1, 1, dtype=torch.float64))
    both = AffineChain(mean.expand(2), 0.6 * torch.eye(2, dtype=torch.float64), chain.diffusion)
    identity = torch.eye(2, dtype=torch.float64)
    tilted = TiltedAffineChain(both, log_likelihood(y.expand(2), identity, 0.5))
    assert math.log(reward.z) == pytest.approx(tilted.log_z, abs=1e-8)
    for name, floor in tilted.floors().items():
        assert reward.floors()[name] == pytest.approx(floor, abs=1e-8)
    expected_mean, expected_covariance = tilted.posterior()
    found_mean, found_covariance = reward.moments()
    assert torch.allclose(found_mean, expected_mean, atol=1e-8)
    assert torch.allclose(found_covariance, expected_covariance, atol=1e-8)


@pytest.mark.parametrize("alpha", [3.0, 20.0])
def test_plane_quadrature_finds_the_ring_s_symmetric_answer(alpha: float):
    exact = ring8(alpha)
    assert exact.truth.label is not None
    found = plane_truth(exact.chain, exact.log_reward, exact.truth.label, 8)
    assert found.log_z == pytest.approx(exact.truth.log_z, abs=2e-6)
    assert torch.allclose(
        found.label_probabilities, exact.truth.label_probabilities, rtol=0, atol=2e-6
    )
    assert found.kl_to_prior == pytest.approx(exact.truth.kl_to_prior, abs=1e-5)
    assert found.prior_ess == pytest.approx(exact.truth.prior_ess, abs=1e-5)


def test_ring_has_the_published_constants():
    evidences = [ring8(alpha).truth.log_z for alpha in (3.0, 10.0, 20.0)]
    assert evidences == pytest.approx([-1.058470, -1.805475, -2.020294], abs=1e-6)


def test_plane_and_line_quadrature_agree_on_25_modes():
    prior = data_law(prior25())
    log_r = log_reward_9of25(prior.x)
    assert float(prior.expectation(log_r.exp()).log()) == pytest.approx(
        gmm9of25().truth.log_z, abs=1e-4
    )


def test_the_finest_toy_does_not_change_on_a_finer_grid():
    problem = toy_problem("rings")
    truth = problem.truth
    assert truth.label is not None
    finer = plane_truth(problem.chain, problem.log_reward, truth.label, 4, 0.75)
    assert finer.log_z == pytest.approx(truth.log_z, abs=5e-5)
    assert torch.allclose(finer.label_probabilities, truth.label_probabilities, rtol=0, atol=2e-5)
    assert torch.allclose(finer.mean, truth.mean, rtol=0, atol=2e-5)
