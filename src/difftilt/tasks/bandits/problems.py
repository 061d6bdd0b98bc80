"""Contextual bandits whose optimal policy is known in every state.

    π(a | s, β) = μ(a | s) exp(β Q(s, a)) / Z(s, β)

μ is a mixture whose weights and means depend on the state; a state is uniform in [-1, 1]². Three
geometries and two critics, all in closed form:

| geometry | behaviour |
|---|---|
| ``line`` (d = 1) | three Gaussians that move with the state |
| ``ring`` (d = 2) | six on a circle that turns with the state, their weights too |
| ``space`` (d = 6) | the ring in a plane of R^6, noise in the other directions |

| critic | Q(s, a) <= 0 |
|---|---|
| ``rare`` | what each component pays, by its responsibility; the best is rarely taken |
| ``goal`` | minus half the squared distance to a goal that moves with the state, times 0.6 |

Under "rare" the mass moves between modes; under "goal" a mixture stays a mixture, in closed form
(``clean_goal_law``). The truth is that of the discrete chain, by quadrature (``difftilt.tasks.
bandits.truth``). In R^6 the directions off the plane do not interact with it, so quadrature in the
plane is exact there too.

Source of the setting: Lu et al. 2023, sections 4 and 5.1 (arXiv 2304.12824).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.errors import InputError
from difftilt.schedules import quantile_log_snr
from difftilt.tasks.bandits.mixtures import (
    Actions,
    ContextualDenoiser,
    ContextualMixture,
    States,
)
from difftilt.tasks.exact.vectors import vector_chain

Geometry = Literal["line", "ring", "space"]
Critic = Literal["rare", "goal"]
STATE_SIZE = 2
LARGEST_BETA = 10.0
COMPONENTS = {"line": 3, "ring": 6, "space": 6}
DIMENSION = {"line": 1, "ring": 2, "space": 6}
RADIUS = 1.3
PULL = 0.6


@dataclass(frozen=True)
class Bandit:
    """A contextual bandit with its answer.

    Arguments:
        geometry: "line", "ring" or "space".
        critic: "rare" or "goal".
        steps: N of the prior's chain.

    Raises:
        InputError: unknown geometry or critic.
    """

    geometry: Geometry = "line"
    critic: Critic = "rare"
    steps: int = 12

    def __post_init__(self) -> None:
        if self.geometry not in DIMENSION or self.critic not in ("rare", "goal"):
            raise InputError(
                f"there is no bandit {self.geometry!r} with critic {self.critic!r}; choose a "
                f"geometry of {', '.join(DIMENSION)} and a critic of rare, goal"
            )

    @property
    def name(self) -> str:
        """As in the bench's tables."""
        return f"{self.geometry}_{self.critic}"

    @property
    def dimension(self) -> int:
        """d of an action."""
        return DIMENSION[self.geometry]

    @cached_property
    def mixture(self) -> ContextualMixture:
        """The behaviour policy μ."""
        return mixture(self.geometry)

    @cached_property
    def chain(self) -> Chain:
        """The prior: DDPM's chain on the exact denoiser; binds (B, 2) or, with β, (B, 3)."""
        log_snr = quantile_log_snr(self.steps, centre=1.0, spread=2.0, clean=5.0, noisy=-8.0)
        return vector_chain(ContextualDenoiser(self.mixture), log_snr, self.dimension)

    def states(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
        """States, uniform in [-1, 1]²."""
        return 2 * torch.rand(count, STATE_SIZE, generator=generator) - 1

    def value(self, states: States, actions: Actions) -> Float[Tensor, " B"]:
        """``Q(s, a)``, at most 0, differentiable in the action."""
        if self.critic == "goal":
            away = actions - self.goal(states)
            return -0.5 * PULL * away.square().sum(1)
        share = self.mixture.responsibilities(states, actions)
        return ((share * self.payoffs(states)).sum(1) - 1).clamp(max=0)

    def log_reward(
        self, x_0: Actions, condition: Float[Tensor, "B 2"] | None = None
    ) -> Float[Tensor, " B"]:
        """Q as a reward: ``log r(a, s)``.

        Raises:
            InputError: no state is bound.
        """
        if condition is None:
            raise InputError("Q(s, a) reads a state; bind one with given(states of shape (1, 2))")
        return self.value(condition.to(x_0), x_0)

    def payoffs(self, states: States) -> Float[Tensor, "B K"]:
        """What each component pays under "rare", in [0, 1]; the last, which is rare, pays 1."""
        count = COMPONENTS[self.geometry]
        place = torch.arange(count - 1).to(states) / max(count - 2, 1)
        usual = 0.15 + 0.3 * place + 0.15 * states[:, 1:] * (1 - 2 * place)
        return torch.cat([usual, torch.ones_like(usual[:, :1])], 1)

    def goal(self, states: States) -> Actions:
        """Where "goal" wants actions to be."""
        if self.geometry == "line":
            return 1.5 * states[:, 1:]
        return _embedded(1.2 * states, self.dimension)


def mixture(geometry: Geometry) -> ContextualMixture:
    """The behaviour policy of a geometry."""
    if geometry == "line":
        return ContextualMixture(STATE_SIZE, 1, _line_weights, _line_means, 0.25)
    if geometry == "ring":
        return ContextualMixture(STATE_SIZE, 2, _ring_weights, _ring_means, 0.25)
    return ContextualMixture(STATE_SIZE, 6, _ring_weights, _space_means, 0.25)


def _line_weights(states: States) -> Float[Tensor, "B 3"]:
    first, second = states.unbind(1)
    return torch.stack([0.6 * second, -0.6 * second, 0.5 * first - 2.0], 1)


def _line_means(states: States) -> Float[Tensor, "B 3 1"]:
    centres = torch.tensor([-1.2, 0.0, 1.2]).to(states)
    return (centres + 0.25 * states[:, :1])[:, :, None]


def _angles(states: States) -> Float[Tensor, "B 6"]:
    """Of the six centres: they turn by up to 30° either way."""
    return (math.pi / 3) * torch.arange(6).to(states) + (math.pi / 6) * states[:, :1]


def _ring_weights(states: States) -> Float[Tensor, "B 6"]:
    tilted = 0.7 * torch.cos(_angles(states) - math.pi * states[:, 1:])
    rare = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, -2.0]).to(states)
    return tilted + rare


def _ring_means(states: States) -> Float[Tensor, "B 6 2"]:
    angles = _angles(states)
    return RADIUS * torch.stack([angles.cos(), angles.sin()], 2)


def _space_means(states: States) -> Float[Tensor, "B 6 6"]:
    return _embedded(_ring_means(states), 6)


def plane_axes(dimension: int, like: Tensor) -> Float[Tensor, "d 2"]:
    """Orthonormal axes of the ring's plane; in two dimensions the plane's own."""
    if dimension == 2:
        return torch.eye(2).to(like)
    angles = 2 * math.pi * torch.arange(dimension, dtype=torch.float64) / dimension
    # Sine and cosine over equal angles are orthogonal, and no axis of R^d lies in their plane.
    axes = torch.stack([angles.cos(), angles.sin()], 1) * math.sqrt(2 / dimension)
    return axes.to(like)


def _embedded(points: Float[Tensor, "... 2"], dimension: int) -> Float[Tensor, "... d"]:
    return points @ plane_axes(dimension, points).T
