"""Paths and their densities, by torch.distributions, recursion and statistics."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from difftilt.chains.chain import InitialTilt, Path
from difftilt.chains.rollouts import back_and_forth, bridge, rollout
from difftilt.chains.scoring import log_ratio
from difftilt.errors import InputError
from difftilt.kernels.networks import full_copy
from difftilt.noise import Noise, StreamNoise
from difftilt.transitions.gaussian import GaussianTilt
from small_chains import CONDITION, DIMENSION, FORMS, STEPS, noise, posterior_of, prior


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("widen", [1.0, 1.5])
def test_the_ratio_of_a_rollout_is_the_ratio_of_its_states(form: str, initial: bool, widen: float):
    chain = posterior_of(prior(), form, initial)
    path = rollout(chain, 7, noise(), widen)
    assert path.log_ratio is not None and float(path.log_ratio.abs().min()) > 1e-3
    with torch.no_grad():
        for chunk in (None, 1, 6):
            assert torch.allclose(log_ratio(chain, path, chunk), path.log_ratio, rtol=0, atol=1e-9)
        bare = Path(path.states)
        assert torch.allclose(log_ratio(chain, bare, 4), path.log_ratio, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["shift", "variance", "copy", "copy and variance", "drift"])
def test_the_ratio_is_a_difference_of_log_densities(form: str):
    """Step by step with torch.distributions, the first law and the map at the end included."""
    chain = posterior_of(prior(), form)
    path = rollout(chain, 6, noise())
    states, total = path.states, torch.zeros(6).double()
    base = chain.diffusion.base(states[-1])
    laws = [(base, chain.initial(6), states[-1])]
    for n in chain.density_steps:
        prediction = chain.predict(states[n], n)
        laws.append(
            (
                chain.law(prediction, states[n], n),
                chain.tilt(states[n], n, prediction),
                states[n - 1],
            )
        )
    for p, tilt, landed in laws:
        assert isinstance(tilt, GaussianTilt)
        scale = torch.ones_like(landed) if tilt.log_scale is None else tilt.log_scale.exp()
        q = Normal(p.mean + p.std * tilt.delta, p.std * scale)
        total = total + (q.log_prob(landed) - Normal(p.mean, p.std).log_prob(landed)).sum(1)
    assert len(laws) == STEPS
    assert torch.allclose(path.log_ratio, total, rtol=0, atol=1e-9)


def test_a_priors_ratio_is_zero():
    chain = prior()
    path = rollout(chain, 4, noise())
    assert torch.equal(path.log_ratio, torch.zeros(4).double())
    assert torch.equal(log_ratio(chain, path), torch.zeros(4).double())


@pytest.mark.parametrize("form", ["shift", "variance", "mixture", "copy"])
def test_ratios_weigh_paths_to_and_fro(form: str):
    """``E_p[q/p] = E_q[p/q] = 1`` over whole paths, within 5 standard errors (below 2e-6)."""
    chain = posterior_of(prior(), form, scale=0.03)
    with torch.no_grad():
        there = log_ratio(chain, rollout(chain.prior, 4_000, noise(1))).exp()
        back = (-rollout(chain, 4_000, noise(2)).log_ratio).exp()
    for weight in (there, back):
        assert 0.02 < float(weight.std()) < 2
        assert abs(float(weight.mean()) - 1) < 5 * float(weight.std()) / 4_000**0.5


def test_steps_without_noise_are_shared_and_count_nothing():
    chain = posterior_of(prior(), "copy")
    assert chain.density_steps == [2, 3, 4, 5]
    path = rollout(chain, 4, noise())
    last = chain.law(chain.prior.predict(path.states[1], 1), path.states[1], 1).mean
    assert torch.equal(path.x_0, last)
    elsewhere = replace(path, states=torch.cat([path.states[:1] + 100, path.states[1:]]))
    with torch.no_grad():
        assert torch.equal(log_ratio(chain, elsewhere), log_ratio(chain, path))


def test_a_chain_without_noise_cannot_be_tilted():
    chain = prior(eta=0.0)
    assert chain.density_steps == []
    rollout(chain, 2)
    with pytest.raises(InputError, match=r"no stochastic step .* use eta > 0, or tilt its noise"):
        chain.tilted(full_copy(chain))


# Drawing


class Counted(Noise):
    """Constant noise, counted."""

    def __init__(self) -> None:
        self.draws = 0

    def normal(self, like: Tensor) -> Tensor:
        self.draws += 1
        return torch.ones_like(like)

    def uniform(self, like: Tensor) -> Tensor:
        return torch.full((len(like),), 0.5, dtype=like.dtype)

    def uniforms(self, like: Tensor) -> Tensor:
        return torch.full(like.shape, 0.5, dtype=torch.float64)


@pytest.mark.parametrize("widen", [1.0, 2.0])
def test_a_rollout_is_its_recursion(widen: float):
    chain, counted = prior(), Counted()
    path = rollout(chain, 3, counted, widen)
    assert counted.draws == STEPS  # x_N and four steps; the last is a map
    x = torch.full((3, DIMENSION), widen * chain.diffusion.base_std).double()
    for n in range(STEPS, 0, -1):
        assert torch.allclose(path.states[n], x, rtol=1e-12)
        assert torch.allclose(path.predictions[n - 1], chain.predict(x, n), rtol=1e-12)
        law = chain.law(chain.predict(x, n), x, n)
        x = law.mean + law.std * widen
    assert torch.allclose(path.x_0, x, rtol=1e-12)


@pytest.mark.parametrize("form", ["shift", "mixture", "copy"])
def test_a_sample_does_not_depend_on_its_batch(form: str):
    chain = posterior_of(prior(), form)
    together = rollout(chain, 6, StreamNoise(3, range(6)))
    alone = rollout(chain, 2, StreamNoise(3, [4, 1]))
    rows = torch.tensor([4, 1])
    assert torch.allclose(alone.x_0, together.x_0[rows], rtol=0, atol=1e-12)
    assert torch.allclose(alone.log_ratio, together.log_ratio[rows], rtol=0, atol=1e-9)


def test_a_rollout_may_keep_its_end_alone():
    chain = posterior_of(prior(), "copy")
    whole, end = rollout(chain, 4, noise()), rollout(chain, 4, noise(), record=False)
    assert torch.equal(end.states, whole.states[:1]) and end.predictions is None
    assert torch.equal(end.log_ratio, whole.log_ratio)


def test_rollouts_have_no_graph():
    path = rollout(posterior_of(prior(), "copy"), 2, noise())
    assert not any(t.requires_grad for t in (path.states, path.predictions, path.log_ratio))


def test_paths_are_selected_and_joined():
    chain = posterior_of(prior(), "copy").given(CONDITION)
    path = rollout(chain, 5, noise())
    parts = [path.select(torch.tensor(rows)) for rows in ([0, 1], [2, 3, 4])]
    joined = Path.joined(parts)
    for name in ("states", "predictions", "log_ratio", "condition"):
        assert torch.equal(getattr(joined, name), getattr(path, name)), name
    assert path.select(torch.arange(5) > 2).batch == 2
    assert Path.joined([parts[0], replace(parts[1], log_ratio=None)]).log_ratio is None
    assert Path.joined(parts[:1]) is parts[0]


# Bridges


def test_a_bridge_has_the_forward_marginals():
    """Means and variances of every level given x_0, and neighbouring covariances (below 3e-5)."""
    chain, count = prior(), 20_000
    x_0 = torch.tensor([2.0, -0.5]).double()
    path = bridge(chain, x_0.expand(count, 2), noise())
    alpha, sigma = chain.diffusion.levels.alpha, chain.diffusion.levels.sigma
    for n in range(1, STEPS + 1):
        centred = path.states[n] - alpha[n] * x_0
        assert bool((centred.mean(0).abs() < 5 * sigma[n] / count**0.5).all())
        spread = (centred**2).mean(0) - sigma[n] ** 2
        assert bool((spread.abs() < 5 * sigma[n] ** 2 * (2 / count) ** 0.5).all())
        if n > 1:
            products = centred * (path.states[n - 1] - alpha[n - 1] * x_0)
            expected = alpha[n] / alpha[n - 1] * sigma[n - 1] ** 2
            error = products.std(0) / count**0.5
            assert bool(((products.mean(0) - expected).abs() < 5 * error).all())


def test_a_bridge_ends_where_the_chain_ends():
    chain = prior().given(CONDITION)
    x_0 = torch.randn(5, 2).double()
    path = bridge(chain, x_0, noise())
    expected = chain.law(chain.predict(path.states[1], 1), path.states[1], 1).mean
    assert torch.equal(path.x_0, expected) and not torch.equal(path.x_0, x_0)
    for n in range(1, STEPS + 1):
        assert torch.allclose(path.predictions[n - 1], chain.predict(path.states[n], n), rtol=1e-12)
    assert path.log_ratio is None and path.condition is CONDITION


def test_a_bridge_keeps_its_end_where_the_last_step_is_a_law():
    chain = prior()
    noisy = replace(chain, diffusion=chain.diffusion.with_std(1, 0.05))
    x_0 = torch.randn(5, 2).double()
    assert torch.equal(bridge(noisy, x_0, noise()).x_0, x_0)


@pytest.mark.parametrize("level", [1, 3, STEPS])
def test_back_and_forth_is_forward_above_and_the_chain_below(level: int):
    chain = posterior_of(prior(), "copy").given(CONDITION)
    x_0 = torch.randn(5, 2).double()
    path = back_and_forth(chain, x_0, level, noise())
    assert path.states.shape == (STEPS + 1, 5, 2) and path.log_ratio is None
    for n in range(1, STEPS + 1):
        assert torch.allclose(path.predictions[n - 1], chain.predict(path.states[n], n), rtol=1e-12)
    # Above the level: the forward process from x_0, with the noise drawn first.
    replay, above = noise(), x_0
    for n in range(1, STEPS + 1):
        law = chain.diffusion.forward_step(above, n)
        above = law.at(replay.normal(above))
        if n >= level:
            assert torch.allclose(path.states[n], above, rtol=1e-12)
    # Below: the posterior's own steps, with the noise that follows.
    x = path.states[level]
    for n in range(level, 1, -1):
        prediction = chain.predict(x, n)
        tilt = chain.tilt(x, n, prediction)
        x = chain.law(prediction, x, n).at(tilt.draw(replay))
        assert torch.allclose(path.states[n - 1], x, rtol=1e-9)


@pytest.mark.parametrize("level", [0, STEPS + 1])
def test_back_and_forth_needs_a_level_of_the_chain(level: int):
    with pytest.raises(InputError, match=f"level={level} must lie between 1 and the chain's 5"):
        back_and_forth(prior(), torch.zeros(2, 2).double(), level, noise())


def test_a_posterior_is_the_same_prior_tilted():
    chain = prior()
    posterior = chain.tilted(full_copy(chain), InitialTilt((2,)))
    assert posterior.prior.kernel is None and posterior.prior.initial is None
    assert posterior.prior.denoiser is chain.denoiser
    assert chain.given(CONDITION).condition is CONDITION
    assert posterior.steps == chain.steps == STEPS
