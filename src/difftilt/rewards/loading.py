"""Rewards by the name of their function."""

import hashlib
import sys
from pathlib import Path

from difftilt.errors import InputError
from difftilt.rewards import isolation_worker as worker
from difftilt.rewards.contract import LogReward


def load_reward(spec: str) -> LogReward:
    """The reward that ``package.module:function`` or ``file.py:function`` names.

    The current folder, and before it the file's own, come first on ``sys.path``, as for a script.

    Raises:
        InputError: no such file, module or attribute; it is not callable; or importing it raised
            (then with that exception as the cause).
    """
    try:
        return worker.load(spec)
    except worker.Unusable as error:
        raise InputError(f"reward {spec!r} {error}") from error.__cause__


def reward_digest(spec: str) -> str | None:
    """SHA-256 of the file that holds a loaded reward's function; None where there is no such file.

    Arguments:
        spec: as of ``load_reward``. A module that was imported in another process alone has none.
    """
    source = spec.rpartition(":")[0]
    path = source if source.endswith(".py") else getattr(sys.modules.get(source), "__file__", None)
    file = None if path is None else Path(path).expanduser()
    return hashlib.sha256(file.read_bytes()).hexdigest() if file and file.is_file() else None
