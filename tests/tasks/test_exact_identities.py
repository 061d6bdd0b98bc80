"""Identities that hold of every kernel, trained or not: they need no answer and no training."""

import math
from functools import cache

import pytest
import torch

from difftilt.chains.chain import Chain, InitialTilt, Path
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.kernels.networks import VectorKernel
from difftilt.models.mlp import Size
from difftilt.noise import GeneratorNoise
from difftilt.tasks.exact.grid25 import CUTS, SCALE, cell25, gmm9of25, line25, prior25
from difftilt.transitions.gaussian import MixtureTilt

STANDARD_ERRORS = 5  # two-sided false alarm 6e-7 for each of some 1,500 statistics: 1e-3 in all
DRAWS = 20_000
KINDS = {
    "shift": {},
    "learned_variance": {"learned_variance": True},
    "mixture": {"components": 4},
}


def random_posterior(kind: str) -> Chain:
    """A kernel whose last layer is random: Λ has a standard deviation of about one half."""
    prior = prior25()
    kernel = VectorKernel((2,), prior.steps, size=Size(width=24, depth=2), **KINDS[kind])
    torch.nn.init.normal_(kernel.network.last.weight, std=0.1)
    initial = InitialTilt((2,))
    torch.nn.init.normal_(initial.delta, std=0.1)
    torch.nn.init.normal_(initial.log_scale, std=0.05)
    return prior.tilted(kernel, initial)


@cache
def sampled(kind: str) -> tuple[Chain, Path]:
    torch.manual_seed(1)
    chain = random_posterior(kind)
    noise = GeneratorNoise(torch.Generator().manual_seed(2))
    return chain, rollout(chain, DRAWS, noise)


def prior_cells() -> torch.Tensor:
    """Mass of the 25 cells under the chain's own p(x_0), by quadrature."""
    line = line25(prior25())
    edges = [-math.inf, *(cut / SCALE for cut in CUTS), math.inf]
    mass = [line.overlap(*edges[i : i + 2]) @ line.marginals[0] for i in range(5)]
    column = torch.stack(mass)
    return torch.outer(column, column).flatten()


def scores(values: torch.Tensor, expected: torch.Tensor | float) -> torch.Tensor:
    """Standard errors between the mean over the first axis and what is expected."""
    values = values.double()
    return (values.mean(0) - expected) / (values.std(0) / math.sqrt(len(values)))


@pytest.mark.parametrize("kind", KINDS)
def test_reweighted_samples_are_the_prior_s(kind: str):
    """``E_q[exp(-Λ) f(x_0)] = E_p[f(x_0)]``."""
    _, path = sampled(kind)
    assert path.log_ratio is not None
    assert path.log_ratio.std() > 0.2
    w = torch.exp(-path.log_ratio.double())
    assert scores(w, 1.0).abs() < STANDARD_ERRORS
    cells = torch.nn.functional.one_hot(cell25(path.x_0), 25)
    assert scores(w[:, None] * cells, prior_cells()).abs().max() < STANDARD_ERRORS
    assert scores(w[:, None] * path.x_0, 0.0).abs().max() < STANDARD_ERRORS


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_samples_are_the_posterior_s(kind: str):
    """``E_q[w f(x_0)] = Z E_π[f(x_0)]`` with w = r exp(-Λ)."""
    _, path = sampled(kind)
    problem = gmm9of25()
    truth = problem.truth
    assert path.log_ratio is not None
    assert truth.label_probabilities is not None
    w = torch.exp((problem.log_reward(path.x_0) - path.log_ratio).double() - truth.log_z)
    assert scores(w, 1.0).abs() < STANDARD_ERRORS
    live = truth.label_probabilities > 0.01
    cells = torch.nn.functional.one_hot(cell25(path.x_0), 25)[:, live]
    expected = truth.label_probabilities[live]
    assert scores(w[:, None] * cells, expected).abs().max() < STANDARD_ERRORS


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_has_the_moments_of_a_density_ratio(kind: str):
    """``E_q[exp(-l_n) (1, ε, ε²)] = (1, 0, 1)``, ε from the *stored* states."""
    chain, path = sampled(kind)
    for n in range(1, chain.steps + 1):
        x = path.states[n]
        prediction = chain.predict(x, n)
        eps = chain.law(prediction, x, n).standardise(path.states[n - 1])
        with torch.no_grad():
            tilt = chain.tilt(x, n, prediction)
        assert tilt is not None
        w = torch.exp(-tilt.log_ratio(eps).detach().double())
        assert scores(w, 1.0).abs() < STANDARD_ERRORS
        assert scores(w[:, None] * eps, 0.0).abs().max() < STANDARD_ERRORS
        assert scores(w[:, None] * eps**2, 1.0).abs().max() < STANDARD_ERRORS
        assert scores(w * eps[:, 0] * eps[:, 1], 0.0).abs() < STANDARD_ERRORS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widen", [1.0, 1.5])
def test_ratio_of_a_rollout_is_that_of_its_stored_states(kind: str, widen: float, generator):
    """Exploration changes the paths, not what their Λ means."""
    chain, _ = sampled(kind)
    path = rollout(chain, 256, GeneratorNoise(generator), widen=widen)
    with torch.no_grad():
        stored = log_ratio(chain, path, chunk=1000)
        without_predictions = log_ratio(chain, Path(path.states), chunk=1000)
    assert path.log_ratio is not None
    assert torch.allclose(stored, path.log_ratio, atol=2e-3)
    assert torch.allclose(without_predictions, path.log_ratio, atol=2e-3)


@pytest.mark.parametrize("widen", [1.0, 1.5])
def test_mixture_steps_rank_uniformly_in_their_widened_law(widen: float, generator):
    chain, _ = sampled("mixture")
    path = rollout(chain, 4_000, GeneratorNoise(generator), widen=widen)
    for n in range(1, chain.steps + 1):
        x = path.states[n]
        prediction = chain.predict(x, n)
        eps = chain.law(prediction, x, n).standardise(path.states[n - 1])
        with torch.no_grad():
            tilt = chain.tilt(x, n, prediction)
        assert isinstance(tilt, MixtureTilt)
        z = (eps.T - tilt.delta) * torch.exp(-tilt.log_scale) / widen
        share = torch.softmax(tilt.logits, 0)[:, None]
        rank = (share * torch.special.ndtr(z)).sum(0).T
        assert scores(rank, 0.5).abs().max() < STANDARD_ERRORS
        assert scores((rank - 0.5) ** 2, 1 / 12).abs().max() < STANDARD_ERRORS


def test_a_widened_prior_has_wider_increments(generator):
    chain = prior25()
    path = rollout(chain, 20_000, GeneratorNoise(generator), widen=1.5)
    for n in (1, 10, 20):
        x = path.states[n]
        eps = chain.law(chain.predict(x, n), x, n).standardise(path.states[n - 1])
        assert scores((eps / 1.5) ** 2, 1.0).abs().max() < STANDARD_ERRORS
    assert path.log_ratio is not None
    assert path.log_ratio.abs().max() == 0
