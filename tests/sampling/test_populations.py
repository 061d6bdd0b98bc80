"""Populations as samplers of a target: samples, certificates, and the facade's verb."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

import difftilt
from difftilt.errors import InputError
from difftilt.sampling.draws import Tilted, certify, weighted_sample
from difftilt.sampling.populations import PopulationSampler, certify_population, sample_population
from difftilt.smc.methods import SVDD, TDS, BestOfN, FKSteering, ImportanceResampling
from difftilt.tasks.exact.grid25 import gmm9of25
from difftilt.tasks.exact.linear_gaussian import linear_gaussian
from small_chains import posterior_of, prior
from toys import Likelihood, gaussian_chain


def linear_goal() -> Tilted:
    problem = linear_gaussian(2, 6)
    return Tilted(lambda x_0, condition: problem.log_reward(x_0), 1.0, problem.log_bound)


def half_plane(x_0: Tensor, condition: Tensor | None = None) -> Tensor:
    return torch.where(x_0[:, 0] > 40.0, 0.0, -math.inf)


def test_a_sample_does_not_depend_on_how_many_are_drawn():
    chain, reward = gaussian_chain(2), Likelihood()
    sampler = PopulationSampler(FKSteering(600), chain, Tilted(reward))
    many, few = sampler.draw(9, seed=4), sampler.draw(2, seed=4)
    assert torch.equal(many.x_0[:2], few.x_0)
    assert many.log_w is not None and few.log_w is not None
    torch.testing.assert_close(many.log_w[:2], few.log_w)
    assert not torch.equal(sampler.sample(2, seed=5), few.x_0)


def test_one_particle_has_the_chains_own_certificate():
    """K = 1 from a moved posterior: every figure but the cost is that of the chain itself."""
    chain = posterior_of(prior(), "variance")
    goal = Tilted(lambda x_0, condition: -x_0.square().sum(1), 1.5, 0.0)
    own = dataclasses.asdict(certify(chain, goal, 400, share=0.25, seed=3))
    found = dataclasses.asdict(certify_population(TDS(1), chain, goal, 400, seed=3))
    costs = ("network_calls", "reward_calls")
    own, found = ({k: v for k, v in each.items() if k not in costs} for each in (own, found))
    torch.testing.assert_close(list(numbers(found)), list(numbers(own)), rtol=1e-6, atol=1e-7)


def numbers(value: object):
    """Every number of nested dictionaries, the verdict's text left out."""
    if isinstance(value, dict):
        for each in value.values():
            yield from numbers(each)
    elif isinstance(value, float):
        yield value


@pytest.mark.parametrize("method", [ImportanceResampling(8), FKSteering(8), SVDD(4)])
def test_the_certificate_of_a_good_population(method, unchecked: None):
    """Its intervals hold the truth, each in 99 of 100 seeds; this seed is fixed."""
    truth = linear_gaussian(2, 6).truth
    chain = linear_gaussian(2, 6).chain
    found = certify_population(method, chain, linear_goal(), 4_000, seed=1)
    for interval in (found.log_z, found.defensive.clt, found.defensive.betting):
        assert interval is not None
        assert interval.low < truth.log_z < interval.high
    assert found.elbo.low < truth.log_z < found.eubo.high
    assert found.trust
    assert found.total_variation.kind == "bound"
    plain = certify(chain, linear_goal(), 4_000, seed=1)
    assert found.total_variation.value < 0.7 * plain.total_variation.value
    assert found.ess > plain.ess
    assert found.reward_calls is not None and found.reward_calls >= 4_000 * method.size
    assert found.network_calls is not None and found.network_calls >= 4_000 * method.size * 6


def test_the_total_variation_of_the_certificate_bounds_that_of_the_samples(unchecked: None):
    """Mode weights of drawn ends are no further from the truth than the bound on systems."""
    problem = gmm9of25(8)
    goal = Tilted(lambda x_0, condition: problem.log_reward(x_0), 1.0, problem.log_bound)
    method = ImportanceResampling(16)
    found = certify_population(method, problem.chain, goal, 2_000, seed=2)
    x_0 = sample_population(method, problem.chain, goal, 2_000, seed=3).x_0
    label, truth = problem.truth.label, problem.truth.label_probabilities
    assert label is not None and truth is not None
    share = torch.bincount(label(x_0), minlength=len(truth)) / len(x_0)
    # 0.03: what 25 frequencies of 2,000 draws are off by chance.
    assert float(0.5 * (share - truth).abs().sum()) < found.total_variation.upper + 0.03
    assert found.total_variation.upper < 0.6


def test_conditions_are_bound_one_for_all_or_one_each():
    reward = Likelihood((-3.0, 3.0), 0.3)
    sampler = PopulationSampler(FKSteering(8), gaussian_chain(1), Tilted(reward))
    each = sampler.given(torch.tensor([0, 1] * 10)).draw(20)
    assert float(each.x_0[0::2].mean()) < -0.5 < 1.0 < float(each.x_0[1::2].mean())
    one = sampler.given(torch.tensor([1])).sample(20)
    assert float(one.mean()) > 1.0


def test_rewards_that_are_zero_everywhere_are_one_clear_error():
    chain, goal = gaussian_chain(1), Tilted(half_plane)
    for method in (FKSteering(3), BestOfN(3), SVDD(3), SVDD(3, argmax=True)):
        with pytest.raises(InputError, match="every particle of all 4 systems ends with zero"):
            sample_population(method, chain, goal, 4)


def test_what_cannot_be_certified_or_sampled_is_refused():
    chain, goal = gaussian_chain(1), Tilted(Likelihood())
    for method in (BestOfN(3), SVDD(3, argmax=True)):
        with pytest.raises(InputError, match="no unbiased estimate of Z"):
            certify_population(method, chain, goal, 8)
    with pytest.raises(InputError, match="stratified resampling has no exact conditional run"):
        certify_population(TDS(3, scheme="stratified"), chain, goal, 8)
    with pytest.raises(InputError, match="share must lie in"):
        PopulationSampler(TDS(3), chain, goal).certify(8, share=1.0)
    with pytest.raises(InputError, match="n must be at least 1 system"):
        sample_population(TDS(3), chain, goal, 0)


class Zero(nn.Module):
    """A network that predicts no noise."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_the_facade_binds_a_method_to_its_target():
    """Over a generator's noise: the reward sees decoded ends, and so does the user."""
    prior = difftilt.latent(lambda z: 3 + z[:, :1], (2,), steps=4)
    target = prior.tilt(lambda x: -0.5 * (x[:, 0] - 4) ** 2, log_bound=0.0)
    sampler = target.population(ImportanceResampling(8))
    x, drawn = sampler.sample(200, seed=1), sampler.draw(200, seed=1)
    assert x.shape == (200, 1)
    assert drawn.x_0.shape == (200, 2)
    torch.testing.assert_close(x, 3 + drawn.x_0[:, :1])
    assert drawn.log_r is not None
    torch.testing.assert_close(
        drawn.log_r, -0.5 * (x[:, 0] - 4).double() ** 2, rtol=1e-5, atol=1e-6
    )
    assert 3.2 < float(x.mean()) < 3.8
    assert math.isfinite(sampler.certify(64).defensive.best.value)


def test_the_facade_takes_another_chain():
    network = difftilt.load(Zero(), 3, schedule=difftilt.VariancePreserving(), event_shape=(1,))
    target = network.tilt(lambda x: -x[:, 0].square())
    posterior = target.posterior()
    drawn = target.population(TDS(1), posterior.chain).draw(5, seed=2)
    own = weighted_sample(posterior.chain, target.tilted, 5, 2)
    assert torch.equal(drawn.x_0, own.x_0)
