"""What ``certify`` makes of a chain and a reward: noise, bounds, conditions, too few paths."""

import math

import pytest
import torch
from torch import Tensor, nn

import difftilt
from difftilt.errors import InputError
from difftilt.posteriors import Posterior, Prior
from toys import Likelihood, gaussian_chain


def posterior(log_reward, log_bound: float | None = None) -> Posterior:
    """The untrained posterior of N(0, I) in the plane: the prior itself."""
    prior = difftilt.latent(lambda z: z, (2,), steps=3)
    return prior.tilt(log_reward, log_bound=log_bound).posterior()


def noisy(x: Tensor) -> Tensor:
    """log r uniform on (-2, 0) afresh on each call: standard deviation 0.577."""
    return -2 * torch.rand(len(x))


def test_a_noisy_reward_is_flagged_and_proves_nothing():
    """8 pairs tell the standard deviation within a factor of 3 in 999 of 1,000."""
    torch.manual_seed(0)
    chain = posterior(noisy, log_bound=0.0)
    population = chain.target.population(difftilt.ImportanceResampling(4))
    for found in (chain.certify(600), population.certify(600)):
        assert found.reward_noise is not None
        assert 0.19 < found.reward_noise < 1.73
        assert found.total_variation.kind == "estimate"
        assert not found.verdict.startswith("TV")
        assert any("the reward is noisy" in text for text in found.warnings)


def test_a_deterministic_network_is_not_called_noisy():
    """Rows of another batch may be rounded in another way; the same batch twice is not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 512), nn.Tanh(), nn.Linear(512, 1))
    chain = posterior(lambda x: -network(x)[:, 0].square(), log_bound=0.0)
    found = chain.certify(600)
    assert found.reward_noise == 0
    assert found.total_variation.kind == "bound"
    assert found.reward_calls == 600 + 16
    assert not any("noisy" in text for text in found.warnings)


def test_a_reward_that_vanishes_in_one_call_alone_is_noisy():
    torch.manual_seed(0)
    chance = posterior(lambda x: torch.where(torch.rand(len(x)) < 0.5, 0.0, -math.inf), 0.0)
    always = posterior(lambda x: torch.where(x[:, 0] > 0, 0.0, -math.inf), 0.0)
    assert chance.certify(200).reward_noise == math.inf
    assert chance.certify(200).to_dict()["reward_noise"] is None
    assert always.certify(200).reward_noise == 0


@pytest.mark.parametrize(("beta", "log_bound"), [(1.0, 0.0), (50.0, 0.0), (2.0, -300.0)])
def test_a_reward_a_rounding_above_its_bound_is_trained_and_certified(beta, log_bound):
    """What the check of the reward lets pass, the certificate takes into its proof."""
    excess = 0.9e-5 * (1 + abs(log_bound))
    prior = difftilt.latent(lambda z: z, (2,), steps=3)
    target = prior.tilt(lambda x: torch.full((len(x),), log_bound + excess), beta, log_bound)
    found = target.posterior().certify(400)
    assert found.defensive.best.low <= beta * (log_bound + excess) <= found.defensive.best.high
    assert found.log_bound == log_bound
    with pytest.raises(difftilt.RewardError, match="above its bound"):
        prior.tilt(lambda x: torch.full((len(x),), log_bound + 2 * excess), beta, log_bound).score(
            torch.zeros(3, 2)
        )


def test_several_conditions_have_no_certificate_in_common():
    chain, reward = gaussian_chain(), Likelihood(y=(-0.5, 0.5, 1.5, 2.5))
    several = Posterior(Prior(chain).tilt(reward), chain).given(torch.arange(4))
    population = several.target.population(difftilt.ImportanceResampling(4), chain)
    with pytest.raises(InputError, match="4 conditions; use certify_each"):
        several.certify(64)
    with pytest.raises(InputError, match="4 conditions; certify with each by itself"):
        population.given(torch.arange(4)).certify(64)
    assert several.sample(4).shape == (4, 1)
    for draw in (several.sample, population.given(torch.arange(4)).sample):
        with pytest.raises(InputError, match="4 conditions are bound, too few for 64 samples"):
            draw(64)


@pytest.mark.parametrize("n", [2, 1, 0, -5])
def test_too_few_paths_are_one_sentence(n: int):
    chain = posterior(lambda x: -x[:, 0].square(), 0.0)
    for sampler in (chain, chain.target.population(difftilt.ImportanceResampling(4))):
        with pytest.raises(InputError, match=f"^{n} paths with a share of 0.25 of the prior leave"):
            sampler.certify(n)
        with pytest.raises(InputError, match=r"^100 paths with a share of 0\.999"):
            sampler.certify(100, share=0.999)


def test_the_fewest_paths_make_a_certificate():
    found = posterior(lambda x: -x[:, 0].square(), 0.0).certify(4)
    assert (found.n, found.n_prior, found.trust) == (4, 2, False)


@pytest.mark.parametrize("correct", ["snis", "mh", "smc"])
def test_corrections_need_samples_and_something_to_choose_from(correct):
    chain = posterior(lambda x: -x[:, 0].square(), 0.0)
    for n in (0, -1):
        with pytest.raises(InputError, match=f"^n must be at least 1, got {n}$"):
            chain.sample(n, correct=correct)
    least = 1 if correct == "smc" else 2
    with pytest.raises(InputError, match=f"^effort must be at least {least} for '{correct}'"):
        chain.sample(3, correct=correct, effort=least - 1)
    for n in (1, 3):
        assert chain.sample(n, correct=correct, effort=least).shape == (n, 2)
