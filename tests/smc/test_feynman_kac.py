"""The particle filter on a linear Gaussian chain, whose log Z and posterior are closed forms."""

import math

import pytest
import torch

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.noise import GeneratorNoise
from difftilt.smc.feynman_kac import Particles, particle_filter
from difftilt.smc.potentials import Twist, TwistedChain
from toys import Likelihood, gaussian_chain

REWARD = Likelihood()


def filtered(chain: Chain, particles: int, threshold: float, seed: int) -> Particles:
    generator = torch.Generator().manual_seed(seed)
    noise = GeneratorNoise(generator)
    model = TwistedChain(chain, REWARD, 1.0, noise, Twist())
    return particle_filter(model, particles, threshold, generator)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_the_estimate_of_z_is_unbiased(threshold: float):
    """Mean of Z over 400 filters of 32 particles, 5 standard errors."""
    chain = gaussian_chain()
    ratios = torch.tensor(
        [filtered(chain, 32, threshold, seed).log_z for seed in range(400)], dtype=torch.float64
    )
    ratios = (ratios - REWARD.log_z(chain)).exp()
    assert abs(float(ratios.mean()) - 1) < 5 * float(ratios.std()) / math.sqrt(400)
    assert 0 < float(ratios.std()) < 1


def test_weighted_particles_have_the_posterior_mean():
    """One filter of 20,000 particles; 5 standard errors, the variance doubled for resampling."""
    chain = gaussian_chain()
    particles = filtered(chain, 20_000, 0.5, 0)
    weights = particles.log_w.double().softmax(0)
    mean, variance = REWARD.posterior(chain)
    found = float(weights @ particles.state[0][:, 0].double())
    effective = 1 / float((weights**2).sum())
    assert abs(found - mean) < 5 * math.sqrt(2 * variance / effective)


def test_without_resampling_it_is_importance_sampling():
    """The twists cancel: a weight is the reward, whatever the way there."""
    chain = gaussian_chain()
    particles = filtered(chain, 50, 0.0, 3)
    assert particles.resampled == 0
    log_r = REWARD(particles.state[0], None).double()
    torch.testing.assert_close(particles.log_w, log_r, atol=1e-4, rtol=1e-4)
    log_z = float(torch.logsumexp(log_r, 0)) - math.log(50)
    assert particles.log_z == pytest.approx(log_z, abs=1e-4)


def test_one_particle_is_a_rollout():
    chain = gaussian_chain()
    particles = filtered(chain, 1, 1.0, 5)
    path = rollout(chain, 1, GeneratorNoise(torch.Generator().manual_seed(5)))
    assert torch.equal(particles.state[0], path.x_0)
    assert particles.resampled == 0
    assert particles.log_z == pytest.approx(float(REWARD(path.x_0, None)), abs=1e-4)


def test_uneven_weights_are_resampled():
    chain = gaussian_chain()
    assert filtered(chain, 64, 1.0, 0).resampled == chain.steps
