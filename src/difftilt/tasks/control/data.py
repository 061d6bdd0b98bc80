"""Logged transitions of a control task: what offline methods are trained on.

`OfflineData` is a table of transitions ``(s, a, r, s', ended)`` in the order in which they were
collected. An episode ends by *termination* (the task is over: nothing can be earned after) or by
*truncation* (the clock ran out: a critic still bootstraps from s'). Actions are in [-1, 1], the
environment's bounds mapped there; `Scale` in ``environments`` holds the map.

The behaviour that collected the data is the prior of offline control: a policy may be better than
it, but should stay where it has been.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from difftilt.errors import InputError
from difftilt.tasks.control.collection import DATA_SETS, made
from difftilt.tasks.control.minari_files import Stored, downloaded, read_episodes

TOLERANCE = 1e-3
"""How far outside [-1, 1] an action may lie, for the rounding of files in half precision."""


@dataclass(frozen=True)
class OfflineData:
    """Transitions of one environment, episode after episode.

    Arguments:
        environment: the gymnasium id, such as ``"HalfCheetah-v5"``.
        observations: (M, O), flat.
        actions: (M, A) in [-1, 1]; what half precision rounded over a bound is put on it.
        rewards: (M,), in the environment's units.
        next_observations: (M, O), what followed each action.
        terminations: (M,) where the task was over after the transition.
        truncations: (M,) where the episode was cut short after the transition.

    Raises:
        InputError: shapes that do not fit, no transition, a value that is not finite, or an action
            outside [-1, 1].
    """

    environment: str
    observations: Float[Tensor, "M O"]
    actions: Float[Tensor, "M A"]
    rewards: Float[Tensor, " M"]
    next_observations: Float[Tensor, "M O"]
    terminations: Bool[Tensor, " M"]
    truncations: Bool[Tensor, " M"]

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_finite(self)
        largest = self.actions.abs().max().item()
        if largest > 1 + TOLERANCE:
            raise InputError(
                f"{self.environment}: an action has the size {largest:.4g}; scale actions to "
                "[-1, 1] by the bounds of the action space"
            )
        object.__setattr__(self, "actions", self.actions.clamp(-1, 1))

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def observation_width(self) -> int:
        """O, the numbers in an observation."""
        return self.observations.shape[1]

    @property
    def action_width(self) -> int:
        """A, the numbers in an action."""
        return self.actions.shape[1]

    @cached_property
    def ends(self) -> Bool[Tensor, " M"]:
        """True on the last transition of each episode; the table's end is one."""
        ended = self.terminations | self.truncations
        ended[-1] = True
        return ended

    @cached_property
    def episode_of(self) -> Int[Tensor, " M"]:
        """The episode of each transition, counted from 0."""
        return self.ends.long().cumsum(0) - self.ends.long()

    @property
    def episodes(self) -> int:
        """How many episodes there are."""
        return int(self.ends.sum())

    @cached_property
    def returns(self) -> Float[Tensor, " E"]:
        """The sum of each episode's rewards, undiscounted."""
        sums = torch.zeros(self.episodes, dtype=torch.float64)
        return sums.index_add(0, self.episode_of, self.rewards.double()).float()

    @cached_property
    def lengths(self) -> Int[Tensor, " E"]:
        """The number of transitions of each episode."""
        return torch.bincount(self.episode_of, minlength=self.episodes)

    @cached_property
    def observation_mean(self) -> Float[Tensor, " O"]:
        """The mean observation."""
        return self.observations.double().mean(0).float()

    @cached_property
    def observation_std(self) -> Float[Tensor, " O"]:
        """The standard deviation of each number in an observation, at least 1e-3."""
        return self.observations.double().std(0, correction=0).clamp(min=1e-3).float()

    def normalised(self, observations: Float[Tensor, "B O"]) -> Float[Tensor, "B O"]:
        """Observations with this table's mean 0 and standard deviation 1."""
        return (observations - self.observation_mean) / self.observation_std

    def where(self, kept: Bool[Tensor, " M"]) -> "OfflineData":
        """The table of some transitions; choose whole episodes, or episodes run together.

        Raises:
            InputError: none is kept.
        """
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        name = columns.pop("environment")
        return OfflineData(name, **{key: value[kept] for key, value in columns.items()})

    def of_episodes(self, chosen: Sequence[int]) -> "OfflineData":
        """The table of some episodes, in the order in which they were collected.

        Raises:
            InputError: none is chosen, or one that is not there.
        """
        rows = torch.tensor(list(chosen), dtype=torch.long)
        if not len(rows) or rows.min() < 0 or rows.max() >= self.episodes:
            raise InputError(
                f"choose at least one of the episodes 0 to {self.episodes - 1}; these are "
                f"{list(chosen)[:5]}"
            )
        kept = torch.zeros(self.episodes, dtype=torch.bool)
        kept[rows] = True
        return self.where(kept[self.episode_of])

    def best(self, share: float) -> "OfflineData":
        """The episodes with the largest returns, a share of their number (filtered cloning).

        Arguments:
            share: in (0, 1]; at least one episode is kept.

        Raises:
            InputError: a share outside (0, 1].
        """
        if not 0 < share <= 1:
            raise InputError(f"share={share} must be in (0, 1]")
        count = max(1, round(share * self.episodes))
        return self.of_episodes(self.returns.argsort(descending=True)[:count].tolist())

    def split(self, share: float, seed: int = 0) -> tuple["OfflineData", "OfflineData"]:
        """Episodes to train on, and a random share of them to validate on.

        Arguments:
            share: of the episodes that are held out, in (0, 1); at least one.
            seed: of the choice.

        Raises:
            InputError: a part would be empty.
        """
        out = max(1, round(share * self.episodes))
        if not 0 < share < 1 or out >= self.episodes:
            raise InputError(
                f"share={share} of {self.episodes} episodes leaves a part without episodes"
            )
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.episodes, generator=generator).tolist()
        return self.of_episodes(order[out:]), self.of_episodes(order[:out])


def load_data(name: str | Path) -> OfflineData:
    """Offline data by name.

    Arguments:
        name: one of ``difftilt.tasks.control.collection.DATA_SETS``, such as
            ``"halfcheetah-medium"``, collected on first use (a minute or two) and kept in the
            cache; or the folder of a Minari data set; or the id of one, such as
            ``"D4RL/pointmaze/umaze-v2"``, which Minari downloads unless it has it.

    Raises:
        InputError: no such name; or values out of range, not finite or of wrong widths.
        CheckpointError: the folder cannot be read, or the download failed.
        MissingPackage: the extra ``control`` is not installed.
    """
    if name in DATA_SETS:
        return from_episodes(read_episodes(made(str(name))))
    if Path(name).is_dir():
        return from_episodes(read_episodes(Path(name)))
    return from_episodes(read_episodes(downloaded(str(name), DATA_SETS)))


def from_episodes(stored: Stored) -> OfflineData:
    """The table of some episodes.

    Raises:
        InputError: no episode with a transition, widths that differ, or values as `OfflineData`
            refuses them.
    """
    episodes = [episode for episode in stored.episodes if len(episode)]
    if len({(e.observations.shape[1], e.actions.shape[1:]) for e in episodes}) != 1:
        raise InputError(
            f"{stored.environment}: the episodes are {len(episodes)} of different widths; give at "
            "least one with a transition, all with the same observations and actions"
        )
    ends = torch.cat([torch.arange(1, len(e) + 1) == len(e) for e in episodes])
    over = torch.cat([torch.full((len(e),), e.terminated) for e in episodes])
    return OfflineData(
        stored.environment,
        _column([e.observations[:-1] for e in episodes]),
        _column([e.actions for e in episodes]),
        _column([e.rewards for e in episodes]),
        _column([e.observations[1:] for e in episodes]),
        ends & over,
        ends & ~over,
    )


def _column(parts: Sequence[NDArray[Any]]) -> Float[Tensor, "M ..."]:
    return torch.from_numpy(np.concatenate(parts)).float()


def _check_shapes(data: OfflineData) -> None:
    rows, widths = data.rewards.shape, (data.observations.shape, data.next_observations.shape)
    if len(rows) != 1 or not rows[0]:
        raise InputError(f"{data.environment}: rewards are {tuple(rows)}; give (M,) with M >= 1")
    for name in ("observations", "actions", "next_observations"):
        shape = getattr(data, name).shape
        if len(shape) != 2 or shape[0] != rows[0] or not shape[1]:
            raise InputError(
                f"{data.environment}: {name} are {tuple(shape)}; give ({rows[0]}, width), a row "
                "per reward"
            )
    for name in ("terminations", "truncations"):
        if getattr(data, name).shape != rows:
            raise InputError(
                f"{data.environment}: {name} are {tuple(getattr(data, name).shape)}; give "
                f"({rows[0]},), one per reward"
            )
    if widths[0] != widths[1]:
        raise InputError(
            f"{data.environment}: observations are {tuple(widths[0])} but next observations "
            f"{tuple(widths[1])}; give both the same width"
        )


def _check_finite(data: OfflineData) -> None:
    for name in ("observations", "actions", "rewards", "next_observations"):
        wrong = (~torch.isfinite(getattr(data, name))).nonzero()
        if len(wrong):
            raise InputError(
                f"{data.environment}: {name} of transition {int(wrong[0, 0])} are not finite; "
                "mend or leave out that episode"
            )
