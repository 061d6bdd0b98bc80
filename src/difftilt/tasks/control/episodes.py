"""Playing: episodes of a policy in the real environment, several side by side.

Evaluation and collection are the same loop: evaluation keeps the rewards, collection keeps all.
One call of the policy answers all episodes that still run, so a network's cost is shared; the
environments themselves are stepped one after another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from difftilt.errors import InputError
from difftilt.tasks.control.environments import make_environment, scale_of

SIDE_BY_SIDE = 10
"""Episodes that evaluation and collection play at the same time."""

Policy = Callable[[Float[Tensor, "B O"], torch.Generator], Float[Tensor, "B A"]]
"""From observations to actions in [-1, 1]; the generator is all that it may draw from."""


@dataclass(frozen=True)
class Episode:
    """One episode of ``T`` steps.

    Arguments:
        observations: (T + 1, O), the last one after the last action.
        actions: (T, A) in [-1, 1].
        rewards: (T,).
        terminated: whether the task was over at the end; otherwise the clock ran out.
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[Any]
    terminated: bool

    def __len__(self) -> int:
        return len(self.rewards)


class Game:
    """One episode that is being played, and what has been recorded of it.

    Arguments:
        made: an environment by ``make_environment``; it is reset.
        seed: of the reset.
    """

    def __init__(self, made: Any, seed: int) -> None:
        self.made, self.scale = made, scale_of(made.action_space, "the game")
        self.observations = [made.reset(seed=seed)[0]]
        self.actions: list[Any] = []
        self.rewards: list[float] = []
        self.terminated = self.over = False

    def step(self, action: NDArray[Any]) -> None:
        """Take one step with an (A,) action in [-1, 1]."""
        scaled = self.scale.from_unit(action).astype(self.made.action_space.dtype)
        observation, reward, terminated, truncated, _ = self.made.step(scaled)
        self.observations.append(observation)
        self.actions.append(action)
        self.rewards.append(float(reward))
        self.terminated, self.over = bool(terminated), bool(terminated or truncated)

    def episode(self) -> Episode:
        """What has been played."""
        observations, actions = np.array(self.observations), np.array(self.actions)
        return Episode(observations, actions, np.array(self.rewards), self.terminated)


def copies(environment: str, count: int) -> list[Any]:
    """An environment several times, to play in side by side and again: compiling one is slow.

    Raises:
        InputError: no such environment.
        MissingPackage: what it runs on is not installed.
    """
    return [make_environment(environment) for _ in range(count)]


def play(
    made: Sequence[Any], policy: Policy, seeds: Sequence[int], generator: torch.Generator
) -> list[Episode]:
    """One episode for each seed, as many at a time as there are environments.

    Arguments:
        made: the ``copies`` to play in.
        policy: called with the observations of the running episodes, in their order; its
            actions are cut to [-1, 1].
        seeds: of the environments' resets.
        generator: handed to the policy.

    Raises:
        InputError: actions of a wrong shape or not finite.
    """
    episodes: list[Episode] = []
    while chosen := seeds[len(episodes) : len(episodes) + len(made)]:
        games = [Game(place, seed) for place, seed in zip(made, chosen, strict=False)]
        while running := [game for game in games if not game.over]:
            advance(running, policy, generator)
        episodes += [game.episode() for game in games]
    return episodes


def advance(games: Sequence[Game], policy: Policy, generator: torch.Generator) -> None:
    """One step in each of some games of one environment.

    Raises:
        InputError: actions of a wrong shape or not finite.
    """
    seen = np.stack([game.observations[-1] for game in games])
    with torch.no_grad():
        actions = policy(torch.from_numpy(seen).float(), generator)
    wanted = (len(seen), len(games[0].scale.low))
    if tuple(actions.shape) != wanted or not torch.isfinite(actions).all():
        raise InputError(
            f"the policy's actions are {tuple(actions.shape)}; give finite {wanted} in [-1, 1]"
        )
    for game, action in zip(games, actions.double().clamp(-1, 1).numpy(), strict=True):
        game.step(action)
