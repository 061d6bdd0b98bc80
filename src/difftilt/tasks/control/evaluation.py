"""How a policy scores: episodes played in the real environment.

    score = 100 (return - random) / (expert - random)

as D4RL defines it (Fu et al. 2020, arXiv 2004.07219), with ``random`` the mean return of uniform
actions and ``expert`` that of the best collecting agent. Both were measured here, in these versions
of the environments, by ``scripts/train_control_agents.py``; so scores must not be compared with
D4RL's tables, whose environments, agents and data differ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.errors import InputError, MissingPackage, require
from difftilt.tasks.control.environments import EXTRA, make_environment, scale_of
from difftilt.tasks.control.references import reference

Policy = Callable[[Float[Tensor, "B O"], torch.Generator], Float[Tensor, "B A"]]
"""From observations to actions in [-1, 1]; the generator is all that it may draw from."""


@dataclass(frozen=True)
class Returns:
    """What an evaluation gives.

    Arguments:
        environment: the gymnasium id.
        returns: (E,) undiscounted, one per episode.
        lengths: (E,) steps per episode.
    """

    environment: str
    returns: Float[Tensor, " E"]
    lengths: Int[Tensor, " E"]

    @property
    def mean(self) -> float:
        """The mean return."""
        return self.returns.mean().item()

    @property
    def standard_error(self) -> float:
        """Of the mean return; NaN for a single episode."""
        return _standard_error(self.returns)

    @property
    def scores(self) -> Float[Tensor, " E"]:
        """Normalised scores, one per episode."""
        return normalised(self.environment, self.returns)

    @property
    def score(self) -> float:
        """The mean normalised score."""
        return self.scores.mean().item()

    @property
    def score_standard_error(self) -> float:
        """Of the mean normalised score; NaN for a single episode."""
        return _standard_error(self.scores)


def evaluate(environment: str, policy: Policy, episodes: int = 10, seed: int = 0) -> Returns:
    """Play episodes side by side: one call of the policy serves all that still run.

    Arguments:
        environment: the gymnasium id.
        policy: called with the observations of the running episodes, in their order.
        episodes: at least 1.
        seed: episode ``i`` is reset with ``seed + i``; the policy's generator is seeded with
            ``seed``.

    Raises:
        InputError: no episode, no such environment, or actions of a wrong shape or not finite.
        MissingPackage: what the environment runs on is not installed.
    """
    if episodes < 1:
        raise InputError(f"episodes={episodes} must be at least 1")
    games = [make_environment(environment) for _ in range(episodes)]
    generator = torch.Generator().manual_seed(seed)
    seen = [game.reset(seed=seed + i)[0] for i, game in enumerate(games)]
    returns, lengths = [0.0] * episodes, [0] * episodes
    running = list(range(episodes))
    while running:
        actions = _actions(policy, games[0], [seen[i] for i in running], generator)
        going = []
        for i, action in zip(running, actions, strict=True):
            seen[i], reward, terminated, truncated, _ = games[i].step(action)
            returns[i] += float(reward)
            lengths[i] += 1
            if not (terminated or truncated):
                going.append(i)
        running = going
    return Returns(environment, torch.tensor(returns), torch.tensor(lengths))


def normalised(environment: str, returns: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``100 (returns - random) / (expert - random)`` with the table's returns.

    Raises:
        InputError: the table has no such environment.
    """
    known = reference(environment)
    return 100 * (returns - known.random) / (known.expert - known.random)


def record_gif(
    environment: str, policy: Policy, file: Path, *, seed: int = 0, steps: int = 300
) -> None:
    """Write one rendered episode, at most ``steps`` long, every other frame, as a GIF.

    MuJoCo draws without a screen when ``MUJOCO_GL`` is ``egl`` or ``osmesa``.

    Raises:
        InputError: no such environment.
        MissingPackage: imageio is not installed, or nothing here can draw.
    """
    imageio = require("imageio", EXTRA)
    game = make_environment(environment, render_mode="rgb_array")
    generator = torch.Generator().manual_seed(seed)
    observation, _ = game.reset(seed=seed)
    frames, over = [], False
    try:
        while not over and len(frames) < steps:
            frames.append(_frame(game, environment))
            action = _actions(policy, game, [observation], generator)[0]
            observation, _, terminated, truncated, _ = game.step(action)
            over = terminated or truncated
    finally:
        game.close()
    imageio.mimsave(file, frames[::2], fps=25, loop=0)


def _actions(policy: Policy, game: Any, seen: list[Any], generator: torch.Generator) -> Any:
    observations = torch.from_numpy(np.stack(seen)).float()
    with torch.no_grad():
        actions = policy(observations, generator)
    wanted = (len(seen), game.action_space.shape[0])
    if tuple(actions.shape) != wanted or not torch.isfinite(actions).all():
        raise InputError(
            f"the policy's actions are {tuple(actions.shape)}; give finite {wanted} in [-1, 1]"
        )
    space = game.action_space
    return scale_of(space, "the game").from_unit(actions.double().numpy()).astype(space.dtype)


def _frame(game: Any, name: str) -> Any:
    try:
        return game.render()
    except Exception as error:  # whatever the drawing library raises: there is no common kind
        raise MissingPackage(
            f"{name} cannot be drawn here ({error}); install EGL or OSMesa and set MUJOCO_GL to "
            "egl or osmesa"
        ) from None


def _standard_error(values: Float[Tensor, " E"]) -> float:
    if len(values) < 2:
        return math.nan
    return (values.std() / math.sqrt(len(values))).item()
