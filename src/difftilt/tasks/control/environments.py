"""Gymnasium environments with flat observations and actions in [-1, 1].

A policy sees (B, O) observations: a dictionary of arrays (a goal task's) is laid out flat in
gymnasium's own order. It answers with (B, A) actions in [-1, 1]; a `Scale` maps them to the bounds
of the environment's action space and back. Both directions are the same for logged data and for
evaluation, so a policy never sees the environment's units.

Needs the extra ``control`` (gymnasium with MuJoCo; goal tasks come from gymnasium-robotics).
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftilt.errors import InputError, MissingPackage, require

EXTRA = "control"
ROBOTICS = ("PointMaze", "AntMaze", "Fetch", "Adroit", "FrankaKitchen", "HandReach")
"""Beginnings of the ids that gymnasium-robotics registers."""


@dataclass(frozen=True)
class Scale:
    """The affine map between [-1, 1] and an action space's bounds.

    Arguments:
        low: (A,) smallest actions, in the environment's units.
        high: (A,) largest actions.
    """

    low: NDArray[Any]
    high: NDArray[Any]

    def to_unit(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions in [-1, 1] from (..., A) actions in the environment's units."""
        return 2 * (actions - self.low) / (self.high - self.low) - 1

    def from_unit(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions in the environment's units from (..., A) actions, cut to [-1, 1]."""
        return self.low + (np.clip(actions, -1, 1) + 1) / 2 * (self.high - self.low)


def make_environment(name: str, **arguments: Any) -> Any:
    """A gymnasium environment by id; its observations are flat, its actions in its own units.

    Arguments:
        name: an id with its version, such as ``"HalfCheetah-v5"`` or ``"PointMaze_UMaze-v3"``.
        arguments: handed to ``gymnasium.make``, such as ``render_mode``.

    Raises:
        InputError: no such environment, or one without a bounded box of actions.
        MissingPackage: what the environment runs on is not installed.
    """
    gymnasium = require("gymnasium", EXTRA)
    if name.startswith(ROBOTICS):
        with contextlib.redirect_stderr(io.StringIO()):  # it greets with news of other tasks
            gymnasium.register_envs(require("gymnasium_robotics", EXTRA))
    with _quiet_compiler():
        environment = _made(gymnasium, name, arguments)
    scale_of(environment.action_space, name)
    if isinstance(environment.observation_space, gymnasium.spaces.Dict):
        environment = gymnasium.wrappers.FlattenObservation(environment)
    return environment


def check_playable(name: str, observations: int, actions: int) -> None:
    """Make an environment once, and see that logged transitions are of its widths.

    Arguments:
        name: its id.
        observations: O of the data.
        actions: A of the data.

    Raises:
        InputError: no such environment, or one of other widths.
        MissingPackage: what it runs on is not installed.
    """
    made = make_environment(name)
    seen, taken = made.observation_space, made.action_space
    made.close()
    if seen.shape != (observations,) or taken.shape != (actions,):
        raise InputError(
            f"the data have observations of {observations} numbers and actions of {actions}, but "
            f"{name} has {seen} and {taken}; name the environment that they are of in their "
            "metadata"
        )


def scale_of(space: Any, name: str) -> Scale:
    """The scale of an action space.

    Raises:
        InputError: it is no box of one axis with finite bounds.
    """
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None or low.ndim != 1 or not np.isfinite([low, high]).all():
        raise InputError(
            f"the actions of {name} are {space}; offline control needs a Box of one axis with "
            "finite bounds"
        )
    return Scale(low.astype(np.float64), high.astype(np.float64))


def flat_observations(space: Any, value: Any) -> NDArray[Any]:
    """(T, O) rows of ``T`` stacked observations, in the order of ``gymnasium.spaces.flatten``."""
    if isinstance(value, dict):
        parts = [flat_observations(part, value[key]) for key, part in space.spaces.items()]
        return np.concatenate(parts, 1)
    rows = np.asarray(value)
    return rows.reshape(len(rows), -1)


def _made(gymnasium: Any, name: str, arguments: dict[str, Any]) -> Any:
    errors = gymnasium.error
    try:
        return gymnasium.make(name, **arguments)
    except errors.DependencyNotInstalled as error:
        # Some of gymnasium's messages are tuples of sentences by mistake.
        words = error.args[0] if error.args else ""
        reason = " ".join(words) if isinstance(words, tuple) else words
        raise MissingPackage(
            f"{name} cannot be made here ({reason}); run: pip install 'difftilt[{EXTRA}]', or give "
            "a newer version of the environment"
        ) from None
    except errors.Error as error:
        raise InputError(
            f"gymnasium cannot make {name!r} ({str(error).rstrip('.')}); give an id such as "
            "HalfCheetah-v5, or install the package that registers it"
        ) from None


@contextlib.contextmanager
def _quiet_compiler() -> Iterator[None]:
    """MuJoCo warns of each old model file on stderr and in a file in the working directory."""
    mujoco = require("mujoco", EXTRA)
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
