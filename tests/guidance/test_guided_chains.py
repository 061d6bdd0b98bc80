"""Guided samplers as chains: their density, their training, their certificate and correction."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import difftilt
import small_chains
from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import backward, log_ratio, step_scores
from difftilt.diagnostics.evidence import effective_sample_size
from difftilt.guidance.base import Guidance
from difftilt.guidance.learned import (
    ClassifierGuidance,
    OracleGuidance,
    ValueGuidance,
)
from difftilt.guidance.pseudoinverse import PiGDM
from difftilt.guidance.reconstruction import DPS, LGDMC
from difftilt.models.mlp import Size
from difftilt.posteriors import Prior
from difftilt.rewards.wrappers import GaussianLikelihood
from difftilt.tasks.exact.grid25 import (
    CENTRES,
    SCALE,
    VARIANCE,
    WEIGHTS,
    log_reward_9of25,
    prior25,
)
from difftilt.transitions.gaussian import GaussianTilt
from difftilt.values.functions import VectorValue
from difftilt.values.kernel import ValueKernel
from toys import Likelihood, gaussian_chain

STANDARD_ERRORS = 5  # two-sided false alarm 6e-7 each


def log_reward(x_0: Tensor) -> Tensor:
    return -0.5 * (x_0 - 0.3).square().sum(1)


def value() -> VectorValue:
    made = VectorValue((small_chains.DIMENSION,), small_chains.STEPS, Size(16)).double()
    small_chains.moved(made, 0.25)
    return made


METHODS: dict[str, Callable[[], Guidance]] = {
    "dps": lambda: DPS(0.7),
    "normalised": lambda: DPS(0.05, normalised=True),
    "lgdmc": lambda: LGDMC(4),
    "pigdm": lambda: PiGDM(GaussianLikelihood(torch.ones(1).double(), lambda x: x[:, :1], 1.0)),
    "classifier": lambda: ClassifierGuidance(lambda x, time: x * time[:, None], 1),
    "value": lambda: ValueGuidance(value()),
    "oracle": lambda: OracleGuidance(lambda x, n: 0.3 * torch.sin(x).sum(1)),
}


def guided(name: str) -> Chain:
    chain = small_chains.prior()
    reward = difftilt.Bounded(log_reward, 0.0)
    return chain.tilted(METHODS[name]().kernel(chain, reward, 0.8))


@pytest.mark.parametrize("name", METHODS)
def test_the_density_is_the_samplers_own(name: str):
    """``E_q[p/q] = 1``, and the ratio of stored states is the one of the rollout."""
    chain = guided(name)
    path = rollout(chain, 4_000, small_chains.noise())
    assert path.log_ratio is not None
    for chunk in (None, 1_500):
        with torch.no_grad():
            again = log_ratio(chain, path, chunk)
        torch.testing.assert_close(again, path.log_ratio, rtol=1e-9, atol=1e-9)
    inverse = torch.exp(-path.log_ratio)
    error = float(inverse.std()) / math.sqrt(4_000)
    assert 0.001 < error < 0.1
    assert abs(float(inverse.mean()) - 1) < STANDARD_ERRORS * error


@pytest.mark.parametrize("name", [n for n in METHODS if n != "value"])
def test_what_has_nothing_to_learn_keeps_no_graph(name: str):
    chain = guided(name)
    for parameter in chain.denoiser.parameters():
        parameter.requires_grad_(True)
    assert chain.kernel is not None
    assert not list(chain.kernel.parameters())
    x = torch.ones(3, 2).double().requires_grad_(True)
    tilt = chain.tilt(x, 2, chain.predict(x, 2))
    assert isinstance(tilt, GaussianTilt)
    assert not tilt.delta.requires_grad
    assert all(p.grad is None for p in chain.denoiser.parameters())


def test_a_value_is_trained_through_its_drift():
    """The chunked gradient is the whole one, and that a central difference of the log-ratio."""
    chain = guided("value")
    kernel = chain.kernel
    assert isinstance(kernel, ValueKernel)
    assert all(key.startswith("value.") for key in kernel.state_dict())
    assert not kernel.value.training
    path = rollout(chain, 7, small_chains.noise())
    coefficients = torch.linspace(-1, 1, 7).double()
    backward(chain, path, coefficients, chunk=10)
    weight = kernel.value.get_parameter("network.first.weight")
    assert weight.grad is not None
    chunked = weight.grad.clone()
    whole = (step_scores(chain, path).log_ratio.sum(0) * coefficients).sum()
    (direct,) = torch.autograd.grad(whole, weight)
    torch.testing.assert_close(chunked, direct)
    direction = torch.ones_like(weight) * torch.linspace(-1, 1, weight.shape[1]).double()

    def moved(step: float) -> float:
        with torch.no_grad():
            weight.add_(step * direction)
            found = float((log_ratio(chain, path) * coefficients).sum())
            weight.sub_(step * direction)
        return found

    difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert float((direct * direction).sum()) == pytest.approx(difference, rel=1e-5)
    assert all(p.grad is None for p in chain.denoiser.parameters())


def log_mixture(x: Tensor, weights: dict, alpha: float, sigma: float) -> Tensor:
    """Log-density of the noised mixture, but for a constant that all mixtures share."""
    means = alpha * torch.tensor(list(weights), dtype=x.dtype) / SCALE
    shares = torch.tensor(list(weights.values()), dtype=x.dtype)
    spread = alpha**2 * VARIANCE / SCALE**2 + sigma**2
    away = (x[:, None] - means).square().sum(2)
    return torch.logsumexp((shares / shares.sum()).log() - 0.5 * away / spread, 1)


def oracle(chain: Chain) -> OracleGuidance:
    """``h_n = p_9 / p_25`` of the noised mixtures: exact for the ideal prior of ``gmm9of25``."""
    every = {(a, b): 1 for a in CENTRES for b in CENTRES}

    def log_h(x: Tensor, n: int | Tensor) -> Tensor:
        assert isinstance(n, int)
        alpha, sigma = (float(table[n]) for table in (levels.alpha, levels.sigma))
        return log_mixture(x, WEIGHTS, alpha, sigma) - log_mixture(x, every, alpha, sigma)

    levels = chain.diffusion.levels
    return OracleGuidance(log_h)


def test_the_true_slope_guides_far_better_than_the_reconstructions():
    """Nine of 25 modes, 4,000 paths: a good share of the weights survives, or almost none."""
    chain, found = prior25(), {}
    for name, method in {"oracle": oracle(chain), "dps": DPS()}.items():
        posterior = chain.tilted(method.kernel(chain, log_reward_9of25))
        path = rollout(posterior, 4_000, small_chains.noise(), record=False)
        assert path.log_ratio is not None
        found[name] = effective_sample_size(log_reward_9of25(path.x_0) - path.log_ratio)
    assert found["oracle"] > 0.5
    assert found["dps"] < 0.03


def test_the_face_guides_and_certifies():
    """A Gaussian prior and likelihood: the defensive interval covers the closed form."""
    reward, prior = Likelihood(), Prior(gaussian_chain())
    target = prior.tilt(reward)
    posterior = target.guided(DPS(0.5))
    assert posterior.form == DPS(0.5)
    torch.testing.assert_close(
        target.sample(6, 3, method=DPS(0.5)), posterior.sample(64, seed=3)[:6]
    )
    best = posterior.certify(2_000, confidence=0.999).defensive.best
    assert best.low < reward.log_z(prior.chain) < best.high


def test_guidance_knows_the_bound_of_the_target():
    target = Prior(gaussian_chain()).tilt(lambda x_0: -x_0.square().sum(1), log_bound=0.0)
    assert target.sample(3, method=DPS(0.1, normalised=True)).isfinite().all()


@pytest.mark.parametrize("correct", ["snis", "smc"])
def test_corrected_guided_samples_have_the_exact_mean(correct):
    """2,000 samples of effort 8: 5 standard errors; sharing proposals adds half the variance."""
    reward, prior = Likelihood(), Prior(gaussian_chain())
    mean, variance = reward.posterior(prior.chain)
    x = prior.tilt(reward).sample(2_000, 1, method=DPS(0.4), correct=correct, effort=8)[:, 0]
    allowed = STANDARD_ERRORS * math.sqrt(1.5 * variance / 2_000)
    assert abs(float(x.mean()) - mean) < allowed


def test_the_gradient_goes_through_the_decoding():
    """Guided in the noise of a generator by r, as by ``r(f(z))`` without a generator."""

    def decode(z: Tensor) -> Tensor:
        return torch.tanh(z) + z[:, :1]

    prior = difftilt.latent(decode, (2,), steps=4)
    apart = prior.tilt(log_reward)
    together = replace(prior, decode=None).tilt(lambda z: log_reward(decode(z)))
    drawn = apart.sample(5, method=DPS())
    torch.testing.assert_close(drawn, decode(together.sample(5, method=DPS())))
    assert not torch.allclose(drawn, prior.sample(5))
    assert apart.log_reward.calls > 0


def test_conditions_reach_prior_and_reward():
    """The reward tells labels apart, the first prior does not: 400 samples of each, 5 errors."""
    reward = Likelihood(y=(-1.0, 1.5))
    posterior = Prior(gaussian_chain()).tilt(reward).guided(DPS())
    labels = torch.arange(2).repeat_interleave(400)
    x = posterior.given(labels).sample(800)
    gap = x[400:].mean() - x[:400].mean()
    assert gap > STANDARD_ERRORS * math.sqrt(2 / 400) * float(x[:400].std())
    conditional = Prior(small_chains.prior()).tilt(log_reward).guided(DPS())
    rows = torch.tensor([[-2.0], [2.0]]).double()
    both = conditional.given(rows).sample(2)
    torch.testing.assert_close(conditional.given(rows[:1]).sample(1), both[:1])
    assert not torch.allclose(both[1], conditional.given(rows.flip(0)).sample(2)[1])
