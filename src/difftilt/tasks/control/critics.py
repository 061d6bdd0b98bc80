"""Critics of logged data: what an action is worth, learned without leaving the data.

    Q(s, a) ← r + γ (1 - terminated) V(s')

| V(s) | learner | tends to |
|---|---|---|
| expectile τ of Q(s, a), a from the data | ``fit_iql`` | the best logged action as τ → 1 |
| ``Σ_k softmax(β Q)_k Q(s, â_k)`` | ``fit_in_support("softmax")`` | E[Q] of the tilted behaviour |
| ``1/β log mean_k exp(β Q(s, â_k))`` | ``fit_in_support("soft")`` | that, less its KL / β |
| TD(λ) of the logged episodes | ``advantages.fit_advantage`` | the behaviour's own |

with â_1 ... â_K drawn from the behaviour (``DiffusionPolicy.support``). The third is the exact
value of control at a price of 1/β per nat away from the behaviour; its advantage ``Q - V`` has
``E_μ[exp(β (Q - V))] = 1``, so that log Z of every state is 0.

Two networks are fitted to Q, and the smaller speaks (through slowly moving averages).

Source: Kostrikov et al. 2021, IQL (arXiv 2110.06169); Lu et al. 2023, QGPO, eq. 13 (arXiv
2304.12824).
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.errors import InputError
from difftilt.tasks.control.data import OfflineData
from difftilt.tasks.control.fitting import Fit, minimised, reward_scale
from difftilt.tasks.soft_values import soft_value, softmax_value

Backup = Literal["softmax", "soft"]
LONGEST = 1000
"""Steps that a discount looks ahead at most."""


class Standardised(nn.Module):
    """A perceptron on a standardised state and, if there is one, an action.

    Arguments:
        observations: O, numbers in a state.
        actions: A, or 0 for none.
        width: of the hidden layers.
        depth: hidden layers.
        outputs: numbers per row.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        observations: int,
        actions: int = 0,
        width: int = 256,
        depth: int = 2,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(observations))
        self.register_buffer("spread", torch.ones(observations))
        widths = [observations + actions, *[width] * depth]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(
        self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"] | None = None
    ) -> Float[Tensor, "B outputs"]:
        """The outputs of each row."""
        read = (states - self.centre) / self.spread
        return self.layers(read if actions is None else torch.cat([read, actions], 1))


def standardised(data: OfflineData, actions: int, width: int, outputs: int = 1) -> Standardised:
    """A perceptron that standardises states as those of a data set."""
    network = Standardised(data.observation_width, actions, width, outputs=outputs)
    network.centre.copy_(data.observation_mean)
    network.spread.copy_(data.observation_std)
    return network


@dataclass(frozen=True)
class Critic:
    """Q and V of a data set, in units of its scaled rewards.

    Arguments:
        twins: two networks of (s, a), of Q or of Q - V.
        value: V(s).
        reward_scale: that rewards were multiplied by.
        relative: the twins say Q - V.
    """

    twins: nn.ModuleList
    value: nn.Module
    reward_scale: float = 1.0
    relative: bool = False

    def q(self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """The smaller of the two values of each action; differentiable in the actions."""
        said = self._said(states, actions)
        return said + self.v(states) if self.relative else said

    def v(self, states: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        """The value of each state."""
        return self.value(states)[:, 0]

    def advantage(
        self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"]
    ) -> Float[Tensor, " B"]:
        """``Q - V``: a reward of the same posterior as Q's, of one size in all states."""
        said = self._said(states, actions)
        return said if self.relative else said - self.v(states)

    def _said(
        self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"]
    ) -> Float[Tensor, " B"]:
        return torch.minimum(*(twin(states, actions)[:, 0] for twin in self.twins))

    def q_of_support(
        self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B K A"]
    ) -> Float[Tensor, "B K"]:
        """Q of K actions in each state."""
        count = actions.shape[1]
        return self.q(states.repeat_interleave(count, 0), actions.flatten(0, 1)).unflatten(
            0, (-1, count)
        )

    def modules(self) -> nn.ModuleDict:
        """All networks, for a file of weights."""
        return nn.ModuleDict({"twins": self.twins, "value": self.value})


@dataclass(frozen=True)
class CriticOptions:
    """How a critic learns.

    Arguments:
        discount: γ, in [0, 1); None: ``1 - 1/L``, L the longest episode's steps but at most 1000,
            because policies are judged by undiscounted returns.
        average: share of the present weights in the slow ones, per update, in (0, 1].
        width: of the networks' two hidden layers.
        scale_rewards: by ``reward_scale``; False: as they are.
        fit: updates, batch, learning rate, seed.

    Raises:
        InputError: a number out of range.
    """

    discount: float | None = None
    average: float = 0.2
    width: int = 256
    scale_rewards: bool = True
    fit: Fit = field(default_factory=lambda: Fit(learning_rate=1e-3, decays=True))

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"a critic needs width >= 1, got {self.width}")
        if not 0 <= (self.discount or 0) < 1 or not 0 < self.average <= 1:
            raise InputError(
                f"a critic needs discount in [0, 1) and average in (0, 1], got {self.discount} "
                f"and {self.average}"
            )

    def discount_of(self, data: OfflineData) -> float:
        """γ on a data set."""
        if self.discount is not None:
            return self.discount
        return 1 - 1 / min(int(data.lengths.max()), LONGEST)


def expectile_loss(gap: Float[Tensor, " B"], expectile: float) -> Float[Tensor, ""]:
    """``mean |τ - 1(gap < 0)| gap²``: least where V is the τ-expectile of ``V + gap``."""
    return (torch.where(gap < 0, 1 - expectile, expectile) * gap**2).mean()


BACKUPS = {"softmax": softmax_value, "soft": soft_value}


def fit_iql(data: OfflineData, options: CriticOptions, expectile: float = 0.7) -> Critic:
    """Implicit Q-learning: V is an expectile of Q over logged actions.

    Arguments:
        data: logged transitions.
        options: of the learning.
        expectile: τ, in (0, 1); 0.5 is the behaviour's own value.

    Raises:
        InputError: ``expectile`` out of range.
        TrainingError: the loss is not finite.
    """
    check_expectile(expectile)
    learner = _Learner(data, options)

    def loss(rows: Tensor) -> Tensor:
        states, actions = data.observations[rows], data.actions[rows]
        with torch.no_grad():
            seen = learner.slow.q(states, actions)
            following = learner.quick.v(data.next_observations[rows])
        gap = seen - learner.quick.v(states)
        return expectile_loss(gap, expectile) + learner.bellman(rows, following)

    return learner.run(loss)


def check_expectile(expectile: float) -> None:
    """Refuse an expectile that is none.

    Raises:
        InputError: it is outside (0, 1).
    """
    if not 0 < expectile < 1:
        raise InputError(f"expectile={expectile} must lie in (0, 1)")


def fit_in_support(
    data: OfflineData,
    support: Float[Tensor, "M K A"],
    options: CriticOptions,
    beta: float = 1.0,
    backup: Backup = "softmax",
) -> Critic:
    """Q-learning over K actions of the behaviour in each next state.

    Arguments:
        data: logged transitions.
        support: K actions in each ``next_observations``, in [-1, 1].
        options: of the learning.
        beta: β of the backup, per unit of scaled reward.
        backup: "softmax" (QGPO's) or "soft" (the exact value at a price of 1/β per nat).

    Raises:
        InputError: another number of support actions than of transitions, β not above 0, or an
            unknown backup.
        TrainingError: the loss is not finite.
    """
    if len(support) != len(data.actions):
        raise InputError(
            f"{len(support)} sets of support actions for {len(data.actions)} transitions; draw one "
            "for each next state"
        )
    if not beta > 0:
        raise InputError(f"beta={beta} of the backup must be above 0")
    if backup not in BACKUPS:
        raise InputError(f"unknown backup {backup!r}; choose one of {', '.join(BACKUPS)}")
    worth = BACKUPS[backup]
    learner = _Learner(data, options)

    def loss(rows: Tensor) -> Tensor:
        following = data.next_observations[rows]
        with torch.no_grad():
            value = worth(learner.slow.q_of_support(following, support[rows]), beta)
        error = (learner.quick.v(following) - value).square().mean()
        return error + learner.bellman(rows, value)

    return learner.run(loss)


def networks(data: OfflineData, options: CriticOptions) -> tuple[nn.ModuleList, Standardised]:
    """Two networks of (s, a) and one of s, before any update."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.fit.seed)
        twins = [standardised(data, data.action_width, options.width) for _ in range(2)]
        return nn.ModuleList(twins), standardised(data, 0, options.width)


def scale_of_rewards(data: OfflineData, options: CriticOptions) -> float:
    """What rewards are multiplied by."""
    return reward_scale(data) if options.scale_rewards else 1.0


class _Learner:
    """The networks of a critic, their slow averages, and one update of them."""

    def __init__(self, data: OfflineData, options: CriticOptions) -> None:
        self.data, self.options = data, options
        self.discount = options.discount_of(data)
        twins, value = networks(data, options)
        scale = scale_of_rewards(data, options)
        self.quick = Critic(twins, value, scale)
        # V is learned from Q, so that it is Q alone that has to move slowly.
        self.slow = Critic(copy.deepcopy(twins).requires_grad_(False), value, scale)

    def bellman(self, rows: Int[Tensor, " B"], following: Float[Tensor, " B"]) -> Tensor:
        """Both networks' squared error against ``r + γ (1 - terminated) V(s')``, V(s') given."""
        data = self.data
        goes_on = (~data.terminations[rows]).to(following)
        rewards = self.quick.reward_scale * data.rewards[rows]
        wanted = rewards + self.discount * goes_on * following
        states, actions = data.observations[rows], data.actions[rows]
        found = [twin(states, actions)[:, 0] for twin in self.quick.twins]
        return torch.stack([(q - wanted).square().mean() for q in found]).sum()

    def run(self, loss: Callable[[Tensor], Tensor]) -> Critic:
        """All updates; the critic that results is frozen."""
        parameters = list(self.quick.modules().parameters())
        for _ in minimised(loss, parameters, len(self.data.actions), self.options.fit):
            self._follow()
        self.slow.value.eval().requires_grad_(False)
        return self.slow

    @torch.no_grad()
    def _follow(self) -> None:
        slow = [p.detach() for p in self.slow.twins.parameters()]
        quick = [p.detach() for p in self.quick.twins.parameters()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            slow, quick, self.options.average
        )
