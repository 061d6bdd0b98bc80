"""The latent chain's levels are all exactly N(0, I), for every number of steps."""

import pytest
import torch

from difftilt.adapters.generators import latent_chain
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.denoisers import Level
from difftilt.diffusions.latent import StandardNormalDenoiser, latent_diffusion
from difftilt.errors import InputError
from difftilt.kernels.networks import VectorKernel
from difftilt.noise import GeneratorNoise
from difftilt.schedules import (
    NoiseLevels,
    RectifiedFlow,
    VariancePreserving,
    levels_from_log_snr,
    quantile_log_snr,
)

STEPS = [1, 2, 7, 100]


@pytest.mark.parametrize("steps", STEPS)
def test_a_step_is_the_stationary_one(steps: int):
    """``z_{n-1} = ρ z_n + sqrt(1 - ρ²) ε`` by table arithmetic, so that variance 1 stays 1."""
    levels = VariancePreserving().levels(steps)
    tables = latent_diffusion(levels).tables
    gain = (tables.clipped * levels.alpha + tables.state)[1:]
    ratio = levels.alpha[1:] / levels.alpha[:-1]
    assert torch.allclose(gain, ratio, rtol=0, atol=1e-12)
    assert torch.allclose(gain**2 + tables.std[1:] ** 2, torch.ones(steps).double(), atol=1e-12)


@pytest.mark.parametrize("steps", STEPS)
def test_every_step_has_a_density(steps: int):
    assert latent_chain((2,), steps).density_steps == list(range(1, steps + 1))


@pytest.mark.parametrize("steps", [1, 7])
def test_paths_are_stationary_and_forget(generator: torch.Generator, steps: int):
    """Moments of every level, and the correlation of z_n with z_0, which is alpha_n.

    Within 5 standard errors: false alarm rate below 3e-5.
    """
    count = 20_000
    chain = latent_chain((3,), steps)
    path = rollout(chain, count, GeneratorNoise(generator))
    alpha = chain.diffusion.levels.alpha.float()[:, None]
    assert float(path.states.mean(1).abs().max()) < 5 / count**0.5
    assert float(((path.states**2).mean(1) - 1).abs().max()) < 5 * (2 / count) ** 0.5
    correlation = (path.states * path.x_0).mean(1)
    assert bool(((correlation - alpha).abs() < 5 * ((1 + alpha**2) / count) ** 0.5).all())


def test_the_denoiser_is_the_conditional_mean():
    x = torch.randn(4, 3)
    for alpha, sigma in ((0.6, 0.8), (1.0, 3.0), (0.3, 0.7)):
        expected = alpha / (alpha**2 + sigma**2) * x
        assert torch.allclose(StandardNormalDenoiser()(x, Level(1.0, alpha, sigma)), expected)


def test_a_latent_chain_can_be_tilted():
    chain = latent_chain((2, 2), 5)
    posterior = chain.tilted(VectorKernel((2, 2), 5))
    path = rollout(posterior, 3)
    assert torch.equal(path.log_ratio, torch.zeros(3))
    assert torch.equal(log_ratio(posterior, path), torch.zeros(3))


def test_other_levels_may_be_given():
    levels = levels_from_log_snr(quantile_log_snr(6))
    assert latent_chain((2,), 6, levels).diffusion.levels is levels
    with pytest.raises(InputError, match="levels given have 6 steps, not steps=5"):
        latent_chain((2,), 5, levels)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="have to preserve the variance"):
        latent_chain((2,), 6, RectifiedFlow().levels(6))
    with pytest.raises(InputError, match="at least 1 step"):
        latent_chain((2,), 0)
    with pytest.raises(InputError, match="event_shape needs positive sizes"):
        latent_chain((2, 0), 5)
    angle = torch.tensor([0.1, 0.5, 1.0]).double()
    with pytest.raises(InputError, match="level 0 of a latent chain is data"):
        latent_diffusion(NoiseLevels(angle, angle.cos(), angle.sin()))
