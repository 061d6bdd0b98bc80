"""Our data sets: which agents collected them, and how they are made again.

Three mixtures for each environment, named as D4RL names its own, but with other agents, other
noise and other environments' versions, so no figure on them may be compared with D4RL's tables:

* *medium*: the medium agent;
* *medium-replay*: every agent up to the medium one, as many transitions of each: what a replay
  buffer would hold, and a behaviour of several modes;
* *medium-expert*: half of the medium agent's, half of the best agent's.

Agents act with Gaussian noise, half of each one's transitions with little and half with three times
as much; the best agent with little. Actions are clipped and rounded to half precision before they
are played, so that what is stored is what was done. The data are a function of name and seed on one
set of versions (MuJoCo's and ours); on others they are repeated in law.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from difftilt.errors import InputError
from difftilt.tasks.control.agents import MAZE, Noisy, agents, fingerprint
from difftilt.tasks.control.episodes import SIDE_BY_SIDE, Episode, copies, play
from difftilt.tasks.control.minari_files import Stored, write_episodes

QUIET, LOUD = 0.05, 0.15
"""Deviations of the noise on actions, which are in [-1, 1]."""


@dataclass(frozen=True)
class Share:
    """A part of a data set.

    Arguments:
        agent: its place in ``agents(environment)``, from the end if negative.
        deviation: of the noise on its actions.
        transitions: how many at least; the last episode is kept whole.
    """

    agent: int
    deviation: float
    transitions: int


@dataclass(frozen=True)
class Mixture:
    """What a data set is made of.

    Arguments:
        environment: the gymnasium id.
        shares: its parts, in order.
        seed: of the noise and of the environments' starts.
    """

    environment: str
    shares: tuple[Share, ...]
    seed: int = 0


ENVIRONMENTS = {
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "pointmaze": MAZE,
}
KINDS = ("medium", "medium-replay", "medium-expert")
DATA_SETS = tuple(f"{name}-{kind}" for name in ENVIRONMENTS for kind in KINDS)
"""The names that ``load_data`` knows."""


def mixture(name: str, transitions: int = 100_000) -> Mixture:
    """The recipe of one of our data sets.

    Arguments:
        name: one of ``DATA_SETS``.
        transitions: in all, about.

    Raises:
        InputError: no such name, or too few transitions to share out.
    """
    if name not in DATA_SETS:
        raise InputError(f"no data set is called {name!r}; choose one of {', '.join(DATA_SETS)}")
    task, kind = name.split("-", 1)
    environment = ENVIRONMENTS[task]
    last = len(agents(environment)) - 1
    if transitions < 2 * last:
        raise InputError(f"transitions={transitions} of {name} must be at least {2 * last}")
    half = transitions // 2
    if kind == "medium":
        shares = _both(last - 1, transitions)
    elif kind == "medium-expert":
        shares = (*_both(last - 1, half), Share(last, QUIET, half))
    else:
        shares = tuple(s for agent in range(last) for s in _both(agent, transitions // last))
    return Mixture(environment, shares)


def collect(recipe: Mixture, *, progress: bool = False) -> list[Episode]:
    """Play a mixture.

    Arguments:
        recipe: what is to be played.
        progress: whether a bar on stderr counts transitions.
    """
    total = sum(share.transitions for share in recipe.shares)
    with tqdm(total=total, desc=recipe.environment, unit="step", disable=not progress) as bar:
        places = copies(recipe.environment, SIDE_BY_SIDE)
        parts = [_share(recipe, number, places, bar) for number in range(len(recipe.shares))]
    return [episode for part in parts for episode in part]


def cache_folder() -> Path:
    """Where data sets are kept: ``DIFFTILT_CACHE``, else a folder in the user's cache."""
    named = os.environ.get("DIFFTILT_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(named) if named else Path(home) / "difftilt"


def made(name: str, folder: Path | None = None, transitions: int = 100_000) -> Path:
    """The folder of one of our data sets; it is collected first if it is not there.

    Below ``MINARI_DATASETS_PATH=cache_folder()`` it is ``minari.load_dataset("difftilt/NAME-v0")``.

    Arguments:
        name: one of ``DATA_SETS``.
        folder: of all data sets; the cache by default.
        transitions: in all, about; another number makes another folder.

    Raises:
        InputError: no such name.
    """
    recipe = mixture(name, transitions)
    full = f"{name}-{_mark(recipe)}-v0"
    place = (folder or cache_folder()) / "difftilt" / full
    if not (place / "data" / "metadata.json").is_file():
        episodes = collect(recipe, progress=True)
        write_episodes(
            place / "data", f"difftilt/{full}", Stored(recipe.environment, episodes), repr(recipe)
        )
    return place


def _both(agent: int, transitions: int) -> tuple[Share, Share]:
    """One agent with both noises."""
    return Share(agent, QUIET, transitions // 2), Share(agent, LOUD, transitions // 2)


def _share(recipe: Mixture, number: int, places: list[Any], bar: tqdm) -> list[Episode]:
    share = recipe.shares[number]
    policy = Noisy(agents(recipe.environment)[share.agent], share.deviation)
    generator = torch.Generator().manual_seed(recipe.seed * 1000 + number)
    episodes, steps, seed = [], 0, (recipe.seed * 1000 + number) * 100_000
    while steps < share.transitions:
        played = play(places, policy, range(seed, seed + SIDE_BY_SIDE), generator)
        seed += SIDE_BY_SIDE
        kept = _until(played, share.transitions - steps)
        steps += sum(map(len, kept))
        bar.update(sum(map(len, kept)))
        episodes += kept
    return episodes


def _until(episodes: Sequence[Episode], transitions: int) -> list[Episode]:
    """The first episodes that together have that many transitions."""
    kept, steps = [], 0
    for episode in episodes:
        if steps >= transitions:
            break
        kept.append(episode)
        steps += len(episode)
    return kept


def _mark(recipe: Mixture) -> str:
    """Eight letters that change with recipe and agents: an old folder is not taken for a new."""
    ours = repr(recipe) + fingerprint(recipe.environment)
    return hashlib.sha256(ours.encode()).hexdigest()[:8]
