"""Closed-form denoisers against Bayes' rule by brute force, and at one level per sample."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from difftilt.denoisers import Denoiser, Level
from difftilt.tasks.exact.denoisers import (
    GaussianDenoiser,
    MixtureDenoiser,
    ProductMixtureDenoiser,
)

MEANS = torch.tensor([-1.2, 0.1, 0.9], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.3, 0.4], [0.4, 0.5]], dtype=torch.float64)


def posterior_mean(log_prior, x_t: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """E[x_0 | x_t] on a grid of x_0 in the plane."""
    axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    distance = (x_t[:, None] - alpha * grid).square().sum(2)
    share = torch.softmax(log_prior(grid) - distance / (2 * sigma**2), 1)
    return share @ grid


def mixture_log_prior(means: torch.Tensor, weights: torch.Tensor, variance: float):
    def log_prior(x: torch.Tensor) -> torch.Tensor:
        distance = (x[:, None] - means).square().sum(2)
        return torch.logsumexp(weights.log() - distance / (2 * variance), 1)

    return log_prior


PLANE = torch.cartesian_prod(MEANS, MEANS)
PLANE_WEIGHTS = torch.cartesian_prod(WEIGHTS, WEIGHTS).prod(1)
CASES = {
    "gaussian": (
        GaussianDenoiser(MEANS[:2], COVARIANCE),
        MultivariateNormal(MEANS[:2], COVARIANCE).log_prob,
    ),
    "product": (
        ProductMixtureDenoiser(MEANS, WEIGHTS, 0.05),
        mixture_log_prior(PLANE, PLANE_WEIGHTS, 0.05),
    ),
    "mixture": (
        MixtureDenoiser(PLANE[:5], PLANE_WEIGHTS[:5], 0.1),
        mixture_log_prior(PLANE[:5], PLANE_WEIGHTS[:5], 0.1),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("alpha", "sigma"), [(0.95, 0.3), (0.4, 0.9), (1.0, 2.0)])
def test_denoisers_are_posterior_means(name: str, alpha: float, sigma: float, generator):
    denoiser, log_prior = CASES[name]
    x_t = 1.5 * torch.randn(12, 2, dtype=torch.float64, generator=generator)
    expected = posterior_mean(log_prior, x_t, alpha, sigma)
    assert torch.allclose(denoiser(x_t, Level(0.0, alpha, sigma)), expected, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_one_level_per_sample_equals_one_at_a_time(name: str, generator):
    denoiser: Denoiser = CASES[name][0]
    x_t = torch.randn(6, 2, dtype=torch.float64, generator=generator)
    alpha = torch.linspace(0.2, 0.99, 6, dtype=torch.float64)[:, None]
    sigma = (1 - alpha**2).sqrt()
    together = denoiser(x_t, Level(0.0, alpha, sigma))
    for i in range(6):
        alone = denoiser(x_t[i : i + 1], Level(0.0, float(alpha[i]), float(sigma[i])))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-12)


def test_far_from_every_mode_the_mixture_stays_finite():
    x_t = torch.tensor([[1e3, -1e3], [0.0, 50.0]])
    denoiser = MixtureDenoiser(PLANE.float(), PLANE_WEIGHTS.float(), 0.01)
    assert torch.isfinite(denoiser(x_t, Level(0.0, 0.999, 0.02))).all()
