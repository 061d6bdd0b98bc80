"""How a policy scores: episodes played in the real environment.

    score = 100 (return - random) / (expert - random)

as D4RL defines it (Fu et al. 2020, arXiv 2004.07219), with ``random`` the mean return of uniform
actions and ``expert`` that of the best collecting agent. Both were measured here, in these versions
of the environments, by ``scripts/train_control_agents.py``; so scores must not be compared with
D4RL's tables, whose environments, agents and data differ.
"""

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.errors import InputError, MissingPackage, require
from difftilt.tasks.control.environments import EXTRA, make_environment
from difftilt.tasks.control.episodes import SIDE_BY_SIDE, Game, Policy, advance, copies, play
from difftilt.tasks.control.references import reference


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
    """Play episodes ten by ten: one call of the policy serves all that still run.

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
    generator = torch.Generator().manual_seed(seed)
    made = copies(environment, min(episodes, SIDE_BY_SIDE))
    played = play(made, policy, range(seed, seed + episodes), generator)
    returns = torch.tensor([episode.rewards.sum() for episode in played]).float()
    return Returns(environment, returns, torch.tensor([len(episode) for episode in played]))


def normalised(environment: str, returns: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``100 (returns - random) / (expert - random)`` with the table's returns.

    Raises:
        InputError: the table has no such environment.
    """
    known = reference(environment)
    return 100 * (returns - known.random) / (known.expert - known.random)


def rendered_episode(
    environment: str,
    policy: Policy,
    *,
    episodes: int = 1,
    seed: int = 0,
    steps: int = 300,
    side: int = 240,
) -> bytes:
    """The first episode of an evaluation, as ``evaluate`` plays it, as a GIF file's bytes.

    At most ``steps`` of it, every other frame. Without a screen MuJoCo draws through EGL, or
    through what ``MUJOCO_GL`` names.

    Arguments:
        environment: its id.
        policy: acts in it.
        episodes: of the evaluation.
        seed: of the evaluation.
        steps: most of them.
        side: most pixels of a frame's longer side.

    Raises:
        InputError: no such environment.
        MissingPackage: imageio is not installed, or nothing here can draw.
    """
    imageio = require("imageio", EXTRA)
    with _without_screen():
        frames = _frames(environment, policy, range(seed, seed + episodes), steps)[::2]
    stride = max(1, -(-max(frames[0].shape[:2]) // side))
    return imageio.mimwrite(
        "<bytes>", [f[::stride, ::stride] for f in frames], "gif", duration=40, loop=0
    )


def _frames(environment: str, policy: Policy, seeds: range, steps: int) -> list[Any]:
    made, frames = make_environment(environment, render_mode="rgb_array"), []
    # One generator serves all episodes played side by side: without the others it is another one.
    others = copies(environment, min(len(seeds), SIDE_BY_SIDE) - 1)
    games = [Game(place, seed) for place, seed in zip([made, *others], seeds, strict=False)]
    generator = torch.Generator().manual_seed(seeds[0])
    try:
        while not games[0].over and len(frames) < steps:
            frames.append(_frame(made, environment))
            advance([game for game in games if not game.over], policy, generator)
    finally:
        made.close()
    return frames


@contextlib.contextmanager
def _without_screen() -> Iterator[None]:
    """Inside, MuJoCo tries EGL first where there is no screen: GLFW would complain on stderr."""
    if {"MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys() or sys.platform != "linux":
        yield
        return
    os.environ["MUJOCO_GL"] = "egl"
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]


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
