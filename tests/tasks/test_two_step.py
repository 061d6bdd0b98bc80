"""A process of two steps: its soft values against closed forms, and backups against them."""

import math

import pytest
import torch

from difftilt.tasks.bandits import TwoStep
from difftilt.tasks.bandits.two_step import REACH, draw_actions, grid_of, observed
from difftilt.tasks.control.critics import CriticOptions, fit_in_support
from difftilt.tasks.control.fitting import Fit
from difftilt.tasks.soft_values import soft_value, softmax_value

pytestmark = pytest.mark.usefixtures("unchecked")
PROCESS = TwoStep()
FIT = Fit(500, 128, 1e-2, decays=True)
STATES = torch.tensor([[0.4, -0.6], [-0.9, 0.2], [0.0, 1.0]])


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_the_last_value_is_a_closed_form(beta: float):
    quadrature = PROCESS.second_value(STATES, beta)
    assert torch.allclose(quadrature, PROCESS.second_value_closed(STATES, beta), atol=1e-9)


def test_a_finite_sum_by_hand():
    """Two actions of masses 1/4 and 3/4."""
    values, masses = torch.tensor([[1.0, -1.0]]).double(), torch.tensor([[0.25, 0.75]]).double()
    z = 0.25 * math.exp(2.0) + 0.75 * math.exp(-2.0)
    share = 0.25 * math.exp(2.0) / z
    assert float(soft_value(values, 2.0, masses.log())) == pytest.approx(math.log(z) / 2)
    assert float(softmax_value(values, 2.0, masses.log())) == pytest.approx(2 * share - 1)


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_the_two_backups_differ_by_the_divergence(beta: float):
    """``E_π[Q] - V = KL(π ‖ μ) / β``."""
    x, log_mass = grid_of(PROCESS.first.mixture, STATES.double())
    rows = STATES.double().repeat_interleave(len(x), 0)
    values = PROCESS.first.value(rows, x.repeat(3)[:, None]).reshape(3, -1)
    soft = soft_value(values, beta, log_mass)
    log_policy = log_mass + beta * (values - soft[:, None])
    assert torch.allclose(log_policy.logsumexp(1), torch.zeros(3).double(), atol=1e-9)
    divergence = (log_policy.exp() * (log_policy - log_mass)).sum(1)
    gap = softmax_value(values, beta, log_mass) - soft
    assert torch.allclose(gap, divergence / beta, atol=1e-9) and float(gap.min()) > 0


def test_many_logged_actions_back_up_the_exact_value(generator):
    """Given V_2, one backup over 20,000 actions of the behaviour is V_1: 5 standard errors."""
    beta, n = 2.0, 20_000
    for state in STATES:
        rows = state.expand(n, 2)
        actions = draw_actions(PROCESS.first.mixture, rows, generator)
        after = PROCESS.second_value_closed(PROCESS.next_states(rows, actions), beta)
        values = PROCESS.first.value(rows, actions).double() + PROCESS.discount * after
        paid = (beta * values).exp()
        error = float(paid.std() / paid.mean()) / (beta * math.sqrt(n))
        found = float(soft_value(values[None], beta))
        assert abs(found - float(PROCESS.first_value(state[None], beta))) < 5 * error


def test_a_few_actions_back_up_too_little_by_the_stated_amount(generator):
    """K = 16: the bias is ``-Var(e^{βQ}) / (2 K β E[e^{βQ}]²)`` to leading order, here to 25 %.

    4000 backups; 5 standard errors are added to what is allowed.
    """
    beta, count, n = 2.0, 16, 4000
    state = STATES[:1]
    x, log_mass = grid_of(PROCESS.first.mixture, state.double())
    values = PROCESS.first.value(state.double().expand(len(x), -1), x[:, None])
    paid, mass = (beta * values).exp(), log_mass[0].exp()
    mean = mass @ paid
    variance = mass @ paid**2 - mean**2
    bias = -float(variance / (2 * count * beta * mean**2))
    actions = draw_actions(PROCESS.first.mixture, state.expand(n * count, 2), generator)
    drawn = PROCESS.first.value(state.expand(n * count, 2), actions).reshape(n, count)
    backups = soft_value(drawn.double(), beta)
    gap = float(backups.mean() - soft_value(values[None], beta, log_mass))
    assert gap < 0
    assert abs(gap - bias) < 0.25 * abs(bias) + 5 * float(backups.std()) / math.sqrt(n)


def test_values_in_both_limits():
    """β → 0 gives the behaviour's mean; as β grows the value rises towards the best action's."""
    x, log_mass = grid_of(PROCESS.first.mixture, STATES.double())
    rows = STATES.double().repeat_interleave(len(x), 0)
    values = PROCESS.first.value(rows, x.repeat(3)[:, None]).reshape(3, -1)
    mean = (log_mass.exp() * values).sum(1)
    assert torch.allclose(soft_value(values, 1e-6, log_mass), mean, atol=1e-5)
    rising = torch.stack([soft_value(values, beta, log_mass) for beta in (0.1, 1.0, 10.0, 100.0)])
    assert bool((rising.diff(dim=0) > 0).all()) and float(rising.max()) <= float(values.max())


def test_logged_episodes_are_the_processes_own(generator):
    data = PROCESS.logged(500, generator)
    states, actions = data.observations[:, :2], REACH * data.actions
    first, second = slice(0, None, 2), slice(1, None, 2)
    assert torch.equal(data.observations[:, 2], torch.tensor([0.0, 1.0]).repeat(500))
    assert torch.equal(data.next_observations[first], data.observations[second])
    following = PROCESS.next_states(states[first], actions[first])
    assert torch.allclose(states[second], following, atol=1e-6)
    for step, rows in ((PROCESS.first, first), (PROCESS.second, second)):
        paid = step.value(states[rows], actions[rows])
        assert torch.allclose(data.rewards[rows], paid, atol=1e-5)
    assert torch.equal(data.terminations, torch.tensor([False, True]).repeat(500))


def test_the_soft_critic_of_logged_data_gives_the_exact_policy(generator):
    """In-support learning at β = 2 with K = 32: values, and the first step's optimal policy."""
    beta, count = 2.0, 32
    data = PROCESS.logged(3000, generator)
    ahead = data.next_observations[:, :2].repeat_interleave(count, 0)
    support = draw_actions(PROCESS.second.mixture, ahead, generator).view(-1, count, 1) / REACH
    options = CriticOptions(PROCESS.discount, 0.03, 64, scale_rewards=False, fit=FIT)
    critic = fit_in_support(data, support, options, beta, "soft")

    states = PROCESS.first.states(32, generator)
    x, log_mass = grid_of(PROCESS.first.mixture, states.double())
    rows = states.repeat_interleave(len(x), 0)
    actions = x.repeat(len(states))[:, None]
    exact = PROCESS.first_action_value(rows, actions, beta).view(len(states), -1)
    with torch.no_grad():
        said = critic.q(observed(rows, 0), actions.float() / REACH).view(len(states), -1)
        later = critic.v(observed(states, 1))
    assert float((later - PROCESS.second_value(states, beta)).abs().mean()) < 0.05
    error = (log_mass.exp() * (said - exact).abs()).sum(1)
    assert float(error.mean()) < 0.08
    policies = [(log_mass + beta * q).softmax(1) for q in (said, exact, torch.zeros_like(exact))]
    learned, optimal, behaviour = policies
    distance = 0.5 * (learned - optimal).abs().sum(1).mean()
    assert float(distance) < 0.08
    assert float(distance) < 0.4 * float(0.5 * (behaviour - optimal).abs().sum(1).mean())
