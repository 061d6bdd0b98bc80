"""Negative-aware tuning: the published loss, its optimum in closed form, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.base import kinds
from difftilt.objectives.ends import EndScores
from difftilt.objectives.negative_aware import NegativeAware, negative_aware
from difftilt.transitions.gaussian import GaussianTilt

ROWS, DIMENSION = 7, 3


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores_of(delta: Tensor, eps: Tensor, log_r: Tensor) -> EndScores:
    """Rows of one set whose steps land at ``eps`` and are shifted by ``delta``."""
    tilt = GaussianTilt(delta)
    zeros = torch.zeros(len(eps))
    ratio, divergence = tilt.log_ratio(eps)[None], tilt.divergence()
    return EndScores(log_r, log_r, zeros, zeros.long(), log_ratio=ratio, divergence=divergence)


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_it_is_the_published_loss_up_to_a_constant(strength: float):
    delta, eps, log_r = randn(ROWS, DIMENSION), randn(ROWS, DIMENSION, seed=1), randn(ROWS, seed=2)
    others = (log_r.sum() - log_r) / (ROWS - 1)
    rho = (1 + ((log_r - others) / 1.5).clamp(-1, 1)) / 2
    good, bad = ((s * strength * delta - eps).square().sum(1) / 2 for s in (1, -1))
    published = rho * good + (1 - rho) * bad - eps.square().sum(1) / 2
    found = NegativeAware(strength, 1.5).losses(scores_of(delta, eps, log_r))
    assert torch.allclose(found, published)


def test_its_optimum_is_a_covariance_and_no_slope_of_log_h():
    """One state, 2,000 ends with ``log r = ε``: unclipped δ is ``var / (b scale)``, not 1."""
    eps = randn(2000, 1)
    delta = (eps.var() / (0.5 * 100)).expand(2000, 1).clone().requires_grad_()
    scores = scores_of(delta, eps, eps[:, 0])
    (slope,) = torch.autograd.grad(negative_aware(scores, 0.5, 100.0).mean(), delta)
    assert abs(float(slope.sum())) < 1e-12
    assert abs(float(delta.detach()[0]) - 1) > 0.9


def test_an_end_of_zero_reward_is_wholly_bad():
    delta, eps = randn(3, 1), randn(3, 1, seed=1)
    log_r = torch.tensor([-math.inf, 0.0, 0.0], dtype=torch.float64)
    found = negative_aware(scores_of(delta, eps, log_r))
    expected = 0.5 * (delta + eps).square() - 0.5 * eps.square()
    assert torch.allclose(found[0], expected[0, 0])


def test_it_is_no_sampler_of_the_posterior_and_is_known_by_name():
    assert kinds()["NegativeAware"] is NegativeAware
    assert not NegativeAware().consistent
    assert NegativeAware().behaviours == {"prior", "data"}


@pytest.mark.parametrize("options", [{"strength": 0}, {"scale": -1}, {"states": "own"}])
def test_bad_options_are_named(options, unchecked):
    with pytest.raises(InputError, match=next(iter(options))):
        NegativeAware(**options)
