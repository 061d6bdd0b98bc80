"""Train the linear policies that collect ``difftilt.tasks.control``'s data sets.

    pip install 'difftilt[control,agents]'
    python scripts/train_control_agents.py --environment HalfCheetah-v5 --steps 3_000_000

Augmented random search (Mania, Guy and Recht 2018, arXiv 1803.07055, V2) as sb3-contrib implements
it, with an episode loop of our own in numpy, several times as fast as the library's. A policy is
saved every ``--every`` steps; its mean training return goes to stderr.
``choose_control_agents.py`` then plays the saved policies and keeps some.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sb3_contrib import ARS  # pyright: ignore[reportMissingImports]
from torch import Tensor


@dataclass(frozen=True)
class Search:
    """Augmented random search's settings for one environment.

    Arguments:
        directions: tried in each update, both ways.
        best: of them used.
        learning_rate: of an update, in standard deviations of the used returns.
        deviation: of the directions.
        alive_bonus: taken off every step's reward, or staying alive alone would be learned.
    """

    directions: int
    best: int
    learning_rate: float
    deviation: float
    alive_bonus: float = 0.0


SEARCHES = {
    "HalfCheetah-v5": Search(32, 4, 0.02, 0.03),
    "Hopper-v5": Search(8, 4, 0.01, 0.025, 1.0),
    "Walker2d-v5": Search(40, 30, 0.03, 0.025, 1.0),
}


@dataclass(frozen=True)
class Settings:
    """What the command line can change."""

    environment: str
    steps: int = 3_000_000
    every: int = 50_000
    seed: int = 0
    folder: Path = Path("runs/agents")


class Episodes:
    """Plays linear policies on normalised observations and keeps the observations' moments."""

    def __init__(self, environment: str, seed: int) -> None:
        made = gymnasium.make(environment)
        self.limit = made.spec.max_episode_steps if made.spec else None
        self.game = made.unwrapped
        self.game.reset(seed=seed)
        width = int(np.prod(made.observation_space.shape or ()))
        self.shape = (int(np.prod(made.action_space.shape or ())), width)
        self.count, self.total, self.squares = 1e-3, np.zeros(width), np.full(width, 1e-3)

    def affine(self, weights: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """``matrix, bias`` on raw observations of weights on normalised ones."""
        mean = self.total / self.count
        deviation = np.sqrt(np.maximum(self.squares / self.count - mean**2, 1e-8))
        matrix = weights.reshape(self.shape) / deviation
        return matrix, -matrix @ mean

    def play(self, matrix: NDArray[Any], bias: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        """One episode's return and its observations."""
        seen, returned, ended = [], 0.0, False
        observation, _ = self.game.reset()
        while not ended and len(seen) < (self.limit or 1000):
            seen.append(observation)
            action = np.clip(matrix @ observation + bias, -1, 1)
            observation, reward, ended, _, _ = self.game.step(action)
            returned += float(reward)
        return returned, np.array(seen)

    def learn(self, seen: NDArray[Any]) -> None:
        """Add observations to the moments."""
        self.count += len(seen)
        self.total += seen.sum(0)
        self.squares += (seen**2).sum(0)


class FastSearch(ARS):
    """sb3-contrib's search with our episodes; its updates, its choice of the best directions."""

    episodes: Episodes
    settings: Settings
    saved = 0

    def evaluate_candidates(self, candidate_weights: Tensor, callback: Any, _: Any) -> Tensor:
        """The return of one episode per candidate."""
        returns, everything = [], []
        for weights in candidate_weights.double().numpy():
            returned, seen = self.episodes.play(*self.episodes.affine(weights))
            returns.append(returned + self.alive_bonus_offset * len(seen))
            everything.append(seen)
            self.num_timesteps += len(seen)
        self.ep_info_buffer = []
        self._keep(float(np.mean(returns)), float(np.mean([len(seen) for seen in everything])))
        self.episodes.learn(np.concatenate(everything))
        callback.on_step()
        return torch.tensor(returns)

    def _keep(self, mean: float, length: float) -> None:
        if self.num_timesteps < self.saved * self.settings.every:
            return
        self.saved = self.num_timesteps // self.settings.every + 1
        matrix, bias = self.episodes.affine(self.weights.double().numpy())
        file = self.settings.folder / f"{self.settings.environment}-{self.num_timesteps:08d}"
        tensors = {"matrix": torch.tensor(matrix).float(), "bias": torch.tensor(bias).float()}
        save_file(tensors, file.with_suffix(".safetensors"))
        seconds = time.process_time()
        print(f"{file.name}: {mean:.0f} in {length:.0f} steps, {seconds:.0f} s", file=sys.stderr)


def train(settings: Settings) -> None:
    """Search, saving policies on the way."""
    torch.set_num_threads(1)
    chosen = SEARCHES[settings.environment]
    settings.folder.mkdir(parents=True, exist_ok=True)
    search = FastSearch(
        "LinearPolicy",
        gymnasium.make(settings.environment),
        n_delta=chosen.directions,
        n_top=chosen.best,
        learning_rate=chosen.learning_rate,
        delta_std=chosen.deviation,
        alive_bonus_offset=-chosen.alive_bonus,
        seed=settings.seed,
    )
    search.settings, search.episodes = settings, Episodes(settings.environment, settings.seed)
    search.learn(settings.steps)


if __name__ == "__main__":
    import tyro

    train(tyro.cli(Settings, description=__doc__))
