"""The agents that collect the data: linear policies that we ship, and a controller for mazes.

Each environment has a row of agents from worst to best: uniform actions, then policies saved while
one was trained, the last but one *medium* and the last *expert*. The linear policies were found by
``scripts/train_control_agents.py``; the maze needs no training: the agent walks from cell to cell
along the shortest way to the goal, with a spring to the next cell's centre and a brake.
"""

import hashlib
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from difftilt.errors import InputError
from difftilt.tasks.control.environments import make_environment
from difftilt.tasks.control.episodes import Policy
from difftilt.tasks.shipped import shipped_folder, unusable

MAZE = "PointMaze_UMaze-v3"
MAZE_GAINS = ((0.5, 2.0), (1.0, 2.0), (1.5, 2.0), (2.0, 2.0), (10.0, 2.0))
"""Spring and brake of the maze's agents; the last but one is medium, the last expert."""


@dataclass(frozen=True)
class Uniform:
    """Actions drawn uniformly from [-1, 1].

    Arguments:
        width: numbers in an action.
    """

    width: int

    def __call__(
        self, observations: Float[Tensor, "B O"], generator: torch.Generator
    ) -> Float[Tensor, "B A"]:
        return 2 * torch.rand(len(observations), self.width, generator=generator) - 1


@dataclass(frozen=True)
class Linear:
    """``clip(matrix · observation + bias)``.

    Arguments:
        matrix: (A, O).
        bias: (A,).
    """

    matrix: Float[Tensor, "A O"]
    bias: Float[Tensor, " A"]

    def __call__(
        self, observations: Float[Tensor, "B O"], generator: torch.Generator
    ) -> Float[Tensor, "B A"]:
        return (observations @ self.matrix.T + self.bias).clamp(-1, 1)


@dataclass(frozen=True)
class Noisy:
    """Another policy's actions with Gaussian noise, clipped, rounded to half precision.

    What is stored is then exactly what was played.

    Arguments:
        policy: the other.
        deviation: of the noise, in units of actions.
    """

    policy: Policy
    deviation: float

    def __call__(
        self, observations: Float[Tensor, "B O"], generator: torch.Generator
    ) -> Float[Tensor, "B A"]:
        actions = self.policy(observations, generator)
        noise = torch.randn(actions.shape, generator=generator)
        return (actions + self.deviation * noise).clamp(-1, 1).half().float()


class MazeWalker:
    """The shortest way through a point maze, by a spring to the next cell and a brake.

    Arguments:
        environment: a PointMaze id; its map is read from the environment.
        spring: action per unit of distance to the next cell's centre.
        brake: action per unit of velocity, against it.
    """

    def __init__(self, environment: str, spring: float, brake: float) -> None:
        self.maze = _maze(environment)
        self.spring, self.brake = spring, brake
        self.next_cells: dict[tuple[int, int], dict[tuple[int, int], tuple[int, int]]] = {}

    def __call__(
        self, observations: Float[Tensor, "B O"], generator: torch.Generator
    ) -> Float[Tensor, "B A"]:
        rows = [self._action(row) for row in observations.double().numpy()]
        return torch.from_numpy(np.clip(rows, -1, 1)).float()

    def _action(self, row: Any) -> Any:
        # The flat order is gymnasium's: where it is, where it should be, where it is and how fast.
        place, goal, velocity = row[0:2], row[2:4], row[6:8]
        here = self._cell(place)
        following = self._ways(self._cell(goal)).get(here, here)
        arrived = following == self._cell(goal)
        target = goal if arrived else self.maze.cell_rowcol_to_xy(np.array(following))
        return self.spring * (target - place) - self.brake * velocity

    def _cell(self, place: Any) -> tuple[int, int]:
        row, column = self.maze.cell_xy_to_rowcol(place)
        return int(row), int(column)

    def _ways(self, goal: tuple[int, int]) -> dict[tuple[int, int], tuple[int, int]]:
        """From each cell the next one on a shortest way to the goal (breadth first)."""
        if goal not in self.next_cells:
            found, waiting = {goal: goal}, deque([goal])
            while waiting:
                row, column = cell = waiting.popleft()
                for near in (
                    (row + 1, column),
                    (row - 1, column),
                    (row, column + 1),
                    (row, column - 1),
                ):
                    if near not in found and self.maze.maze_map[near[0]][near[1]] != 1:
                        found[near] = cell
                        waiting.append(near)
            self.next_cells[goal] = found
        return self.next_cells[goal]


@cache
def _maze(environment: str) -> Any:
    return make_environment(environment).unwrapped.maze


def agents(environment: str) -> list[Policy]:
    """Uniform actions, then the saved agents in the order of their training; the best is last.

    Raises:
        InputError: we have no agents for this environment.
        CheckpointError: their weights are missing or damaged.
    """
    if environment == MAZE:
        return [Uniform(2), *(MazeWalker(MAZE, *gains) for gains in MAZE_GAINS)]
    return load_linear(_weights(environment))


def fingerprint(environment: str) -> str:
    """Sixty-four letters that change when an environment's agents do.

    Raises:
        InputError: we have no agents for this environment.
    """
    ours = repr(MAZE_GAINS).encode() if environment == MAZE else _weights(environment).read_bytes()
    return hashlib.sha256(ours).hexdigest()


def load_linear(file: Path) -> list[Policy]:
    """Uniform actions and the linear policies of one file of ``matrix (K, A, O), bias (K, A)``.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        weights = load_file(file)
        linear = [Linear(m, b) for m, b in zip(weights["matrix"], weights["bias"], strict=True)]
        return [Uniform(weights["bias"].shape[1]), *linear]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise unusable(file, error, "scripts/train_control_agents.py") from error


def _weights(environment: str) -> Path:
    file = shipped_folder("control") / f"{environment}.safetensors"
    if not file.is_file():
        known = sorted(other.stem for other in file.parent.glob("*.safetensors"))
        raise InputError(
            f"no agents are shipped for {environment!r}; choose one of {', '.join([*known, MAZE])}"
        )
    return file
