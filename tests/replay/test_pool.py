import math

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Path
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.errors import RewardError
from difftilt.noise import GeneratorNoise
from difftilt.replay.pool import PathPool, tempered_exponent, within_groups
from tests.toys import Likelihood, linear_posterior


def effective(log_w: Tensor) -> float:
    w = (log_w - log_w.max()).exp()
    return float(w.sum() ** 2 / (w**2).sum() / len(w))


def test_even_weights_are_not_tempered():
    assert tempered_exponent(torch.zeros(50), torch.zeros(50), 0.5) == 1.0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_exponent_reaches_the_wanted_share(share: float, generator: torch.Generator):
    log_r = 8 * torch.randn(2000, generator=generator)
    exponent = tempered_exponent(log_r, torch.zeros(2000), share)
    assert 0 < exponent < 1
    assert effective(exponent * log_r) == pytest.approx(share, abs=1e-3)


def test_zero_rewards_do_not_count(generator: torch.Generator):
    log_r = 8 * torch.randn(2000, generator=generator)
    mostly_zero = torch.cat([log_r, torch.full((50_000,), -math.inf)])
    wanted = tempered_exponent(log_r, torch.zeros(2000), 0.5)
    assert tempered_exponent(mostly_zero, torch.zeros(52_000), 0.5) == pytest.approx(wanted)


def test_a_proposal_too_uneven_still_gives_a_usable_exponent():
    log_proposal = torch.tensor([0.0, 50.0, 50.0, 50.0])
    assert 0 < tempered_exponent(torch.arange(4.0), log_proposal, 0.9) < 1e-6


def test_zero_rewards_alone_are_an_error():
    with pytest.raises(RewardError, match="log r = -inf on all 3 paths of the pool"):
        tempered_exponent(torch.full((3,), -math.inf), torch.zeros(3), 0.5)


def paths(values: list[float]) -> Path:
    states = torch.tensor(values)[None, :, None].repeat(3, 1, 1)
    return Path(states, states[1:].clone())


@pytest.mark.parametrize(("memory", "expected"), [(None, 7), (10**6, 7), (100, 5), (3, 1)])
def test_long_paths_lower_the_capacity(memory: int | None, expected: int):
    """Three states and two predictions of four bytes: 20 bytes a path."""
    pool = PathPool(7, memory)
    for first in map(float, range(0, 12, 2)):
        pool.add(
            paths([first, first + 1.0]), torch.tensor([first, first + 1.0]), torch.zeros(2), 1.0
        )
    assert len(pool) == pool.capacity == expected
    assert pool.log_r.sort().values.tolist() == list(range(12 - expected, 12))
    again = PathPool(7, memory)
    again.load(pool.state())
    assert again.capacity == expected


def test_the_oldest_paths_leave():
    pool = PathPool(3)
    for first in (0.0, 2.0):
        pool.add(paths([first, first + 1]), torch.tensor([first, first + 1]), torch.zeros(2), 1.0)
    assert pool.log_r.sort().values.tolist() == [1.0, 2.0, 3.0]
    assert pool.path is not None and pool.path.x_0.flatten().tolist() == pool.log_r.tolist()
    assert pool.hopeful


def test_proposal_densities_are_those_of_the_mixture():
    pool = PathPool(10)
    ratio = torch.tensor([0.0, 1.5, -40.0])
    pool.add(paths([0.0, 1.0, 2.0]), torch.zeros(3), ratio, 0.25)
    torch.testing.assert_close(pool.log_proposal, (0.75 * ratio.exp() + 0.25).log())
    pool.add(paths([3.0]), torch.zeros(1), torch.tensor([7.0]), 1.0)
    assert float(pool.log_proposal[-1]) == 0.0


def test_resampled_paths_have_the_posterior_mean(generator: torch.Generator):
    """Half of the pool comes from a bad posterior, and the weights undo it (5 standard errors)."""
    chain, reward, n = linear_posterior(), Likelihood(), 20_000
    with torch.no_grad():
        for parameter in chain.kernel.parameters():
            parameter.normal_(std=0.2, generator=generator)
    noise = GeneratorNoise(generator)
    both = Path.joined([rollout(chain.prior, n, noise), rollout(chain, n, noise)])
    pool = PathPool(2 * n)
    with torch.no_grad():
        pool.add(both, reward(both.x_0), log_ratio(chain, both), 0.5)
    drawn, log_r = pool.draw(n, 1.0, 1.0, generator)
    mean, variance = reward.posterior(chain.prior)
    w = (pool.log_r - pool.log_proposal).softmax(0)
    error = math.sqrt(variance * (float((w**2).sum()) + 1 / n))
    assert abs(float(drawn.x_0.mean()) - mean) < 5 * error
    torch.testing.assert_close(log_r, reward(drawn.x_0))


def test_zero_rewards_are_never_drawn(generator: torch.Generator):
    pool = PathPool(10)
    log_r = torch.tensor([-math.inf, 0.0, -math.inf])
    pool.add(paths([0.0, 1.0, 2.0]), log_r, torch.zeros(3), 1.0)
    drawn, _ = pool.draw(50, 1.0, pool.exponent(1.0, 0.2), generator)
    assert drawn.x_0.unique().tolist() == [1.0]


def test_state_comes_back():
    assert PathPool(5).state() == {}
    pool, again = PathPool(5), PathPool(5)
    pool.add(paths([0.0, 1.0]), torch.tensor([0.5, 0.25]), torch.zeros(2), 0.5)
    again.load(pool.state())
    left, right = pool.state(), again.state()
    assert left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_reward_in_double_precision_outlives_the_refilling_of_the_pool():
    pool = PathPool(4)
    pool.add(paths([0.0] * 4), torch.zeros(4).double(), torch.zeros(4), prior_share=1.0)
    pool.add(paths([1.0, 1.0]), torch.ones(2).double(), torch.zeros(2), prior_share=0.5)
    assert pool.log_r.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert pool.log_r.dtype == pool.log_proposal.dtype == torch.float64


def test_weights_are_scaled_within_their_group():
    log_w = torch.tensor([0.0, 5.0, -300.0, -300.0, -math.inf, 90.0])
    group = torch.tensor([0, 0, 1, 1, 2, 0])
    scaled = within_groups(log_w, group).exp()
    totals = torch.zeros(3).index_add(0, group, scaled)
    assert totals.tolist() == pytest.approx([3.0, 2.0, 0.0], rel=1e-5)
    assert float(scaled[1] / scaled[5]) == pytest.approx(math.exp(-85), rel=1e-4)
    assert within_groups(log_w, None) is log_w


def test_a_condition_of_large_rewards_does_not_drive_the_others_out(generator: torch.Generator):
    """log Z of the conditions is 0, 40 and -60: each is drawn as often as it was asked for."""
    label = torch.tensor([0, 1, 2, 2]).repeat(500)
    offset = torch.tensor([0.0, 40.0, -60.0])[label]
    inner = torch.randn(2000, generator=generator)
    pool = PathPool(2000)
    bare = paths(inner.tolist())
    pool.add(Path(bare.states, bare.predictions, None, label), inner + offset, offset * 0, 1.0)
    exponent = pool.exponent(1.0, 0.2)
    assert exponent == 1.0
    path, _ = pool.draw(4000, 1.0, exponent, generator)
    assert path.condition is not None
    assert torch.bincount(path.condition).tolist() == pytest.approx([1000, 1000, 2000], abs=40)
    # Within a condition the draws follow exp(inner): a normal moved by one.
    assert float(path.x_0[path.condition == 2].mean()) == pytest.approx(1.0, abs=0.2)
