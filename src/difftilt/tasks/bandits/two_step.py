"""A decision process of two steps whose soft values are known.

    s_1 -> a_1 ~ μ_1(. | s_1), reward r_1(s_1, a_1) -> s_2 = (tanh a_1, s_1's second number)
        -> a_2 ~ μ_2(. | s_2), reward r_2(s_2, a_2), end

With the KL to the behaviour μ priced at α = 1/β, values are soft and backups are Bellman's:

    V_2(s) = α log E_μ2[exp(r_2 / α)],  Q_1(s, a) = r_1(s, a) + γ V_2(s'),
    V_1(s) = α log E_μ1[exp(Q_1 / α)],  π_i(a | s) = μ_i(a | s) exp((Q_i - V_i) / α).

The first step is the bandit "line_rare", the second "line_goal". μ is the mixture itself, of which
logged data are draws (``logged``); expectations are quadratures on a grid, and V_2 is a closed form
too. So whatever learns values from data can be held against them.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.tasks.bandits.mixtures import Actions, ContextualMixture, States
from difftilt.tasks.bandits.problems import PULL, Bandit
from difftilt.tasks.control.data import OfflineData
from difftilt.tasks.soft_values import soft_value

SPACING, REACH = 0.02, 4.0


def observed(states: States, step: int) -> Float[Tensor, "B O"]:
    """What logged data say of a state: its numbers, and which step it is."""
    return torch.cat([states, torch.full_like(states[:, :1], step)], 1)


def _in_turn(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first, second], 1).flatten(0, 1)


@dataclass(frozen=True)
class TwoStep:
    """The process.

    Arguments:
        discount: γ in (0, 1].
        first: the bandit of the first step.
        second: of the second; its critic is "goal".
    """

    discount: float = 0.9
    first: Bandit = field(default_factory=lambda: Bandit("line", "rare"))
    second: Bandit = field(default_factory=lambda: Bandit("line", "goal"))

    def next_states(self, states: States, actions: Actions) -> States:
        """``s_2``."""
        return torch.cat([actions.tanh(), states[:, 1:]], 1)

    def logged(self, n: int, generator: torch.Generator) -> OfflineData:
        """``n`` episodes of the behaviour, step after step.

        An observation is the state and the number of the step, 0 or 1; an action is divided by
        ``REACH``, so that it lies in [-1, 1].
        """
        states = self.first.states(n, generator)
        actions = draw_actions(self.first.mixture, states, generator)
        after = self.next_states(states, actions)
        last = draw_actions(self.second.mixture, after, generator)
        first, second = observed(states, 0), observed(after, 1)
        paid = self.first.value(states, actions), self.second.value(after, last)
        over = torch.tensor([False, True]).repeat(n)
        return OfflineData(
            "a process of two steps",
            _in_turn(first, second),
            _in_turn(actions, last) / REACH,
            _in_turn(*paid),
            _in_turn(second, second),
            over,
            torch.zeros_like(over),
        )

    def second_value(self, states: States, beta: float) -> Float[Tensor, " B"]:
        """``V_2(s)`` by quadrature, float64."""
        x, log_mass = grid_of(self.second.mixture, states.double())
        return soft_value(_on_grid(self.second, states.double(), x), beta, log_mass)

    def first_action_value(
        self, states: States, actions: Actions, beta: float
    ) -> Float[Tensor, " B"]:
        """``Q_1(s, a)``, float64."""
        states, actions = states.double(), actions.double()
        after = self.second_value(self.next_states(states, actions), beta)
        return self.first.value(states, actions) + self.discount * after

    def first_value(self, states: States, beta: float) -> Float[Tensor, " B"]:
        """``V_1(s)`` by quadrature, float64."""
        return torch.stack([self._first_value(state[None], beta) for state in states.double()])

    def _first_value(self, state: States, beta: float) -> Float[Tensor, ""]:
        x, log_mass = grid_of(self.first.mixture, state)
        values = self.first_action_value(state.expand(len(x), -1), x[:, None], beta)
        return soft_value(values[None], beta, log_mass)[0]

    def second_value_closed(self, states: States, beta: float) -> Float[Tensor, " B"]:
        """``V_2(s)`` in closed form: a Gaussian times ``exp(-β c (a - g)² / 2)`` is integrable."""
        return clean_goal_law(self.second, states.double(), beta)[3] / beta


def clean_goal_law(
    bandit: Bandit, states: States, beta: float
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K d"], float, Float[Tensor, " B"]]:
    """The optimal policy of the clean mixture under "goal": a mixture again.

    ``N(m, v)`` times ``exp(-β c |a - g|² / 2)`` is ``Z_k N(m', v')`` with ``v' = v / (1 + β c v)``,
    ``m' = (m + β c v g) / (1 + β c v)`` and
    ``log Z_k = -β c |m - g|² / (2 (1 + β c v)) - d/2 log(1 + β c v)``.

    Returns:
        weights, means, the variance v' and ``log Z(s, β)``.
    """
    law, pull = bandit.mixture, beta * PULL
    means, goal = law.means(states), bandit.goal(states)[:, None]
    growth = 1 + pull * law.std**2
    gaps = (means - goal).square().sum(2)
    log_z = -pull * gaps / (2 * growth) - 0.5 * bandit.dimension * math.log(growth)
    joint = law.log_weights(states).log_softmax(1) + log_z
    moved = (means + (growth - 1) * goal) / growth
    return joint.softmax(1), moved, law.std**2 / growth, joint.logsumexp(1)


def draw_actions(
    mixture: ContextualMixture, states: States, generator: torch.Generator
) -> Float[Tensor, "B d"]:
    """One action of the behaviour in each state."""
    share = mixture.log_weights(states).softmax(1)
    which = torch.multinomial(share, 1, generator=generator)[:, 0]
    means = mixture.means(states)[torch.arange(len(states)), which]
    return means + mixture.std * torch.randn(means.shape, generator=generator)


def grid_of(
    mixture: ContextualMixture, states: Float[Tensor, "B S"]
) -> tuple[Float[Tensor, " G"], Float[Tensor, "B G"]]:
    """A grid of actions on the line, and the log-masses of the mixture there in each state."""
    count = round(REACH / SPACING)
    x = SPACING * torch.arange(-count, count + 1, dtype=torch.float64)
    gaps = (x[:, None] - mixture.means(states)[:, None, :, 0]).square() / (2 * mixture.std**2)
    log_density = (mixture.log_weights(states).log_softmax(1)[:, None] - gaps).logsumexp(2)
    return x, log_density.log_softmax(1)


def _on_grid(bandit: Bandit, states: States, x: Float[Tensor, " G"]) -> Float[Tensor, "B G"]:
    rows = states.repeat_interleave(len(x), 0)
    actions = x.repeat(len(states))[:, None]
    return bandit.value(rows, actions).reshape(len(states), len(x))
