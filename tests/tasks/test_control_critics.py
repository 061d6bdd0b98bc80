"""Critics against the closed form of a two-step problem, and β against enumerated divergences."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difftilt.errors import InputError, TrainingError
from difftilt.tasks.control.advantages import discounted_sums, fit_advantage
from difftilt.tasks.control.critics import (
    Critic,
    CriticOptions,
    expectile_loss,
    fit_in_support,
    fit_iql,
)
from difftilt.tasks.control.data import OfflineData
from difftilt.tasks.control.fitting import Fit, reward_scale
from difftilt.tasks.control.temperature import beta_of_divergence, divergences
from difftilt.tasks.soft_values import soft_value, softmax_value

pytestmark = pytest.mark.usefixtures("unchecked")
DISCOUNT, BETA = 0.9, 3.0
OPTIONS = CriticOptions(
    DISCOUNT, 0.03, 32, scale_rewards=False, fit=Fit(450, 128, 8e-3, decays=True)
)
FIRST, SECOND = torch.tensor([[0.0]]), torch.tensor([[1.0]])


def two_steps(episodes: int = 2000) -> OfflineData:
    """State 0 pays a/2 and leads to state 1, which pays a and ends; a is uniform on [-1, 1]."""
    generator = torch.Generator().manual_seed(5)
    actions = 2 * torch.rand(2 * episodes, 1, generator=generator) - 1
    state = torch.arange(2 * episodes) % 2
    ends = state == 1
    rewards = torch.where(ends, actions[:, 0], 0.5 * actions[:, 0])
    states = state[:, None].float()
    never = torch.zeros_like(ends)
    return OfflineData("two steps", states, actions, rewards, states + 1, ends, never)


DATA = two_steps()


def values(critic: Critic, state: Tensor) -> tuple[float, float]:
    """V and the slope of Q by the action."""
    with torch.no_grad():
        ends = [float(critic.q(state, torch.tensor([[a]]))[0]) for a in (-0.5, 0.5)]
        return float(critic.v(state)[0]), ends[1] - ends[0]


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_iql_finds_the_expectiles_of_both_steps(expectile: float):
    """The τ-expectile of U(-1, 1) is (1 - k)/(1 + k) with k² = (1 - τ)/τ."""
    k = math.sqrt((1 - expectile) / expectile)
    last = (1 - k) / (1 + k)
    critic = fit_iql(DATA, OPTIONS, expectile)
    second, slope = values(critic, SECOND)
    assert second == pytest.approx(last, abs=0.06)
    assert slope == pytest.approx(1.0, abs=0.06)
    first, slope = values(critic, FIRST)
    assert first == pytest.approx(0.5 * last + DISCOUNT * last, abs=0.08)
    assert slope == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("trace", [0.0, 0.95, 1.0])
def test_advantages_are_of_the_behaviours_own_value(trace: float):
    """Actions are 0 on average: V is 0 in both states, and an action is worth what it pays."""
    critic = fit_advantage(DATA, OPTIONS, trace)
    for state, pay in ((FIRST, 0.5), (SECOND, 1.0)):
        value, slope = values(critic, state)
        assert value == pytest.approx(0, abs=0.05)
        assert slope == pytest.approx(pay, abs=0.06)


def test_luck_is_no_merit():
    """State 0 leads to state 1 or 2 by chance; 1 pays 5, 2 pays -5, an action a tenth of itself."""
    generator = torch.Generator().manual_seed(8)
    actions = 2 * torch.rand(4000, 1, generator=generator) - 1
    lucky = torch.rand(2000, generator=generator) < 0.5
    following = torch.where(lucky, 1.0, 2.0)
    states = torch.stack([torch.zeros(2000), following], 1).reshape(-1, 1)
    paid = torch.stack([torch.zeros(2000), torch.where(lucky, 5.0, -5.0)], 1).flatten()
    ends = torch.arange(4000) % 2 == 1
    data = OfflineData(
        "luck",
        states,
        actions,
        paid + 0.1 * actions[:, 0],
        states + 1,
        ends,
        torch.zeros_like(ends),
    )
    after = torch.where(ends[:, None], states, states.roll(-1, 0))
    critic = fit_advantage(replace(data, next_observations=after), OPTIONS)
    for state, value in ((0.0, 0.0), (1.0, 5.0), (2.0, -5.0)):
        found, slope = values(critic, torch.tensor([[state]]))
        assert found == pytest.approx(value, abs=0.5)
        assert slope == pytest.approx(0.1, abs=0.6)


def test_discounted_sums_end_with_their_episode():
    values_of = torch.tensor([1.0, 2.0, 4.0, 3.0, 5.0])
    found = discounted_sums(values_of, torch.tensor([3, 2]), 0.5)
    assert found.tolist() == [3.0, 4.0, 4.0, 5.5, 5.0]


def hills() -> OfflineData:
    """One step: the state pays up to 30, the action up to .2, to the right of 0 upside down."""
    generator = torch.Generator().manual_seed(6)
    states, actions = (2 * torch.rand(2, 4000, 1, generator=generator) - 1).unbind()
    rewards = 30 * torch.sin(4 * states[:, 0]) + 0.2 * actions[:, 0] * torch.sign(states[:, 0])
    ends = torch.ones(len(states), dtype=torch.bool)
    return OfflineData("hills", states, actions, rewards, states, ends, ~ends)


def test_advantages_apart_tell_actions_where_states_differ_by_far_more():
    data, errors = hills(), []
    x = torch.cat([torch.linspace(-0.9, -0.2, 8), torch.linspace(0.2, 0.9, 8)])[:, None]
    for critic in (fit_advantage(data, OPTIONS), fit_iql(data, OPTIONS, 0.5)):
        with torch.no_grad():
            low, high = (critic.advantage(x, torch.full_like(x, a)) for a in (-1.0, 1.0))
        gap = 0.4 * torch.sign(x[:, 0])
        errors.append(float((high - low - gap).square().mean().sqrt()))
        assert torch.allclose(critic.q(x, x) - critic.v(x), critic.advantage(x, x), atol=1e-4)
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("backup", ["softmax", "soft"])
def test_support_learning_finds_the_soft_values(backup):
    """Of exp(β a) on U(-1, 1): log mean = log(sinh β / β), tilted mean = coth β - 1/β."""
    exact = {
        "soft": math.log(math.sinh(BETA) / BETA) / BETA,
        "softmax": 1 / math.tanh(BETA) - 1 / BETA,
    }[backup]
    grid = ((torch.arange(32) + 0.5) / 16 - 1).expand(len(DATA.actions), 32)[:, :, None]
    critic = fit_in_support(DATA, grid, OPTIONS, BETA, backup)
    assert values(critic, SECOND)[0] == pytest.approx(exact, abs=0.05)
    with torch.no_grad():
        start = float(critic.q(FIRST, torch.zeros(1, 1))[0])
    assert start == pytest.approx(DISCOUNT * exact, abs=0.06)


def in_all_actions(data: OfflineData, options: CriticOptions) -> Critic:
    """The in-support critic, with the one action that there is."""
    return fit_in_support(data, data.actions[:, None], options)


@pytest.mark.parametrize("fit", [fit_iql, fit_advantage, in_all_actions])
@pytest.mark.parametrize(("terminated", "exact"), [(False, 2.0), (True, 1.0)])
def test_a_cut_episode_goes_on_and_a_finished_one_does_not(
    terminated: bool, exact: float, fit: Callable[..., Critic]
):
    """A step pays 1 and leads back: V = 1 / (1 - γ) where the clock ran out, 1 where it is over."""
    state, over = torch.zeros(64, 1), torch.full((64,), terminated)
    loop = OfflineData("a loop", state, state, torch.ones(64), state, over, ~over)
    fast = Fit(250, 32, 1e-2, decays=True)
    critic = fit(loop, CriticOptions(0.5, 0.1, 16, scale_rewards=False, fit=fast))
    found, _ = values(critic, FIRST)
    assert found == pytest.approx(exact, abs=0.05)
    assert float(critic.q(FIRST, FIRST)[0]) == pytest.approx(exact, abs=0.05)


def test_the_discount_looks_as_far_as_the_longest_episode():
    assert CriticOptions().discount_of(DATA) == 1 - 1 / 2
    assert CriticOptions(discount=0.3).discount_of(DATA) == 0.3
    long = replace(DATA, terminations=torch.zeros_like(DATA.terminations))
    assert CriticOptions().discount_of(long) == pytest.approx(0.999)


def test_values_of_a_set_are_ordered(generator):
    """mean <= soft value <= tilted mean <= largest, and the ends in β are mean and largest."""
    q = torch.randn(50, 16, generator=generator, dtype=torch.float64)
    soft, tilted = soft_value(q, 2.0), softmax_value(q, 2.0)
    assert bool((q.mean(1) <= soft).all()) and bool((soft <= tilted).all())
    assert bool((tilted <= q.amax(1)).all())
    for worth in (soft_value, softmax_value):
        assert torch.allclose(worth(q, 1e-6), q.mean(1), atol=1e-4)
        assert torch.allclose(worth(q, 1e4), q.amax(1), atol=1e-2)
    advantage = q - soft[:, None]
    assert torch.allclose((2.0 * advantage).exp().mean(1), torch.ones(50).double())


def test_expectile_loss_is_least_at_the_expectile():
    """Of {0, 1} with equal chances the τ-expectile is τ."""
    for expectile in (0.3, 0.8):
        v = torch.linspace(0, 1, 1001, dtype=torch.float64)
        losses = [float(expectile_loss(torch.tensor([0.0, 1.0]) - u, expectile)) for u in v]
        assert float(v[int(torch.tensor(losses).argmin())]) == pytest.approx(expectile, abs=2e-3)


def test_beta_reaches_the_wanted_divergence(generator):
    """Of q ~ N(0, s²) the divergence is β² s² / 2; the unit of q does not matter."""
    q = torch.randn(200, 1024, generator=generator, dtype=torch.float64)
    beta = beta_of_divergence(q, 0.5)
    assert beta == pytest.approx(1.0, abs=0.02)
    assert beta_of_divergence(100 * q, 0.5) == pytest.approx(beta / 100, rel=1e-3)
    found = divergences(q, torch.tensor([0.0, beta, 1e6], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.0, 0.5, math.log(1024)], abs=1e-3)


def test_rewards_are_scaled_by_the_spread_of_returns():
    data = replace(
        DATA, rewards=torch.where(DATA.terminations, 4.0, -1.0) * (DATA.actions[:, 0] > 0)
    )
    returns = data.rewards.view(-1, 2).sum(1)
    assert reward_scale(data) == pytest.approx(1000 / float(returns.max() - returns.min()))


def test_wrong_numbers_are_named():
    q = torch.randn(3, 8)
    for wrong, words in (
        (lambda: fit_iql(DATA, OPTIONS, 1.0), "expectile=1.0"),
        (lambda: fit_advantage(DATA, OPTIONS, 1.5), "trace=1.5"),
        (lambda: fit_in_support(DATA, torch.zeros(3, 4, 1), OPTIONS), "3 sets of support actions"),
        (lambda: fit_in_support(DATA, torch.zeros(4000, 4, 1), OPTIONS, 0.0), "beta=0.0"),
        (lambda: beta_of_divergence(q, 3.0), "nats=3.0"),
        (lambda: beta_of_divergence(torch.ones(3, 8)), "one value"),
        (lambda: Fit(updates=0), "updates"),
        (lambda: CriticOptions(discount=1.0), "discount"),
        (lambda: CriticOptions(width=0), "width >= 1"),
        (lambda: fit_in_support(DATA, DATA.actions[:, None], OPTIONS, 1.0, "hard"), "'hard'"),
    ):
        with pytest.raises(InputError, match=words):
            wrong()


def test_an_infinite_reward_stops_the_fit():
    bad = replace(DATA, rewards=torch.full_like(DATA.rewards, 1e30))
    with pytest.raises(TrainingError, match="extreme numbers"):
        fit_iql(bad, OPTIONS)
