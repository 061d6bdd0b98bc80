"""Episodes on disk in Minari's format (hdf5 and a JSON of metadata).

Observations and actions are written in half precision, rewards in single. A folder written here is
what ``minari.MinariDataset`` opens, and below ``MINARI_DATASETS_PATH`` what
``minari.load_dataset`` finds; a folder written by others is read the same way. Both spaces must be
in its metadata: without them Minari would build the environment that the file names, and opening a
stranger's file must not run code.

Format: https://minari.farama.org/content/dataset_standards/
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftilt.errors import CheckpointError, InputError, require
from difftilt.tasks.control.environments import (
    EXTRA,
    flat_observations,
    make_environment,
    scale_of,
)
from difftilt.tasks.control.episodes import Episode


@dataclass(frozen=True)
class Stored:
    """What a folder holds.

    Arguments:
        environment: the gymnasium id.
        episodes: with actions scaled to [-1, 1] by the bounds of the stored action space.
    """

    environment: str
    episodes: list[Episode]


def write_episodes(folder: Path, name: str, stored: Stored, description: str = "") -> None:
    """Write a new folder, whole or not at all.

    Arguments:
        folder: ``NAME/data`` for Minari to find it by name; replaced if it is there.
        name: Minari's id, ending in ``-v0`` or another number.
        stored: the episodes.
        description: kept in the metadata.
    """
    minari = require("minari", EXTRA)
    storage_type = require("minari.dataset.minari_storage", EXTRA).MinariStorage
    # h5py opens the file from another folder than this, where the path is relative.
    folder = folder.expanduser().resolve()
    made = make_environment(stored.environment)
    scale = scale_of(made.action_space, stored.environment)
    written = folder.with_name(folder.name + ".part")
    shutil.rmtree(written, ignore_errors=True)
    written.parent.mkdir(parents=True, exist_ok=True)
    storage = storage_type.new(written, made.observation_space, made.action_space, made.spec)
    storage.update_episodes(_buffer(episode, scale) for episode in stored.episodes)
    storage.update_metadata(
        {"dataset_id": name, "minari_version": minari.__version__, "description": description}
    )
    shutil.rmtree(folder, ignore_errors=True)
    written.rename(folder)


def read_episodes(folder: Path) -> Stored:
    """Read a folder, or the ``data`` folder inside it.

    Raises:
        CheckpointError: it is no Minari data set, is damaged, or lacks its spaces or environment.
        InputError: observations of another kind than numbers in a box, or outside the bounds that
            their own space states.
    """
    minari = require("minari", EXTRA)
    folder = folder / "data" if (folder / "data").is_dir() else folder
    _check_metadata(folder)
    try:
        dataset = minari.MinariDataset(folder)
        name, space = dataset.spec.env_spec.id, dataset.observation_space
        _check_space(space, f"{folder}: observations of {name}")
        scale = scale_of(dataset.action_space, name)
        episodes = [_episode(space, scale, found) for found in dataset.iterate_episodes()]
    except InputError:
        raise
    except Exception as error:  # h5py and Minari raise whatever they meet in a damaged file
        raise _unreadable(folder, f"{type(error).__name__}: {error}") from None
    if not episodes:
        raise _unreadable(folder, "it has no episodes")
    _check_range(folder, space, episodes)
    return Stored(name, episodes)


def downloaded(name: str, others: Sequence[str] = ()) -> Path:
    """The folder of a data set that Minari has, or downloads, by its id.

    Arguments:
        name: such as ``"D4RL/pointmaze/umaze-v2"``.
        others: names that the error suggests.

    Raises:
        InputError: this is no id.
        CheckpointError: Minari could not download it.
    """
    if not re.fullmatch(r"[\w/-]+-v\d+", name):
        raise InputError(
            f"no data set is called {name!r}; choose one of {', '.join(others)}, or give a folder "
            "of a Minari data set or its id, such as D4RL/pointmaze/umaze-v2"
        )
    minari = require("minari", EXTRA)
    try:
        return Path(minari.load_dataset(name, download=True).spec.data_path)
    except Exception as error:  # the network, the host's library or Minari itself
        raise CheckpointError(
            f"Minari cannot download {name} ({type(error).__name__}: {error}); check the id and "
            "the network, or give the folder of a copy"
        ) from None


def _buffer(episode: Episode, scale: Any) -> Any:
    over = np.arange(1, len(episode) + 1) == len(episode)
    return require("minari.data_collector", EXTRA).EpisodeBuffer(
        observations=episode.observations.astype(np.float16),
        actions=scale.from_unit(episode.actions).astype(np.float16),
        rewards=episode.rewards.astype(np.float32),
        terminations=over & episode.terminated,
        truncations=over & (not episode.terminated),
        infos={},
    )


def _episode(space: Any, scale: Any, found: Any) -> Episode:
    observations = flat_observations(space, found.observations).astype(np.float64)
    actions = np.asarray(found.actions, np.float64)
    rewards = np.asarray(found.rewards, np.float64)
    if len({len(observations) - 1, len(actions), len(rewards)}) > 1:
        raise InputError(
            f"episode {found.id} has {len(observations)} observations, {len(actions)} actions and "
            f"{len(rewards)} rewards; it needs one observation more than of the others"
        )
    ended = bool(len(rewards) and found.terminations[-1])
    return Episode(observations, scale.to_unit(actions), rewards, ended)


def _check_metadata(folder: Path) -> None:
    try:
        metadata = json.loads((folder / "metadata.json").read_text())
    except FileNotFoundError:
        raise _unreadable(folder, "it has no metadata.json") from None
    except (OSError, ValueError) as error:
        raise _unreadable(folder, f"metadata.json: {error}") from None
    for key in ("env_spec", "observation_space", "action_space"):
        if key not in metadata:
            raise _unreadable(folder, f"its metadata lack {key}")


def _check_space(space: Any, what: str) -> None:
    spaces = require("gymnasium", EXTRA).spaces
    if isinstance(space, spaces.Dict):
        for name, part in space.spaces.items():
            _check_space(part, f"{what}, {name!r}")
    elif not isinstance(space, spaces.Box):
        raise InputError(
            f"{what} are {space}; offline control needs a Box, or a dictionary of them"
        )


def _check_range(folder: Path, space: Any, episodes: Sequence[Episode]) -> None:
    low, high = (_bound(space, side) for side in ("low", "high"))
    for number, episode in enumerate(episodes):
        seen: NDArray[Any] = episode.observations
        slack = 1e-3 * np.maximum(1, np.abs(seen))  # half precision rounds over a bound
        if (seen < low - slack).any() or (seen > high + slack).any():
            raise InputError(
                f"{folder}: observations of episode {number} are outside the bounds of the stored "
                "observation space; mend or leave out that episode"
            )


def _bound(space: Any, side: str) -> NDArray[Any]:
    if hasattr(space, "spaces"):
        return np.concatenate([_bound(part, side) for part in space.spaces.values()])
    return getattr(space, side).reshape(-1)


def _unreadable(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} cannot be read as a Minari data set ({reason}); give a whole folder of one, or "
        "delete it to have it made again"
    )
