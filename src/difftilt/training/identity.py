"""Whether what is saved belongs to this run, and in which fields or tensors it differs."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difftilt.errors import CheckpointError
from difftilt.training.files import Spec, to_json

NAMED = 5
ABSENT = "absent"
ROUNDING = 1e-5
"""Relative difference of a chain's numbers that another machine's arithmetic may make."""


def flattened(value: Any, name: str = "") -> dict[str, Any]:
    """Nested JSON as ``{"a.b.c": leaf}``."""
    if not isinstance(value, Mapping):
        return {name: value}
    parts = [flattened(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()]
    return {k: v for part in parts for k, v in part.items()}


def differences(there: Any, here: Any) -> list[str]:
    """One phrase for each leaf that differs."""
    saved, own = (flattened(json.loads(to_json(value))) for value in (there, here))
    names = [*saved, *(name for name in own if name not in saved)]
    pairs = [(name, saved.get(name, ABSENT), own.get(name, ABSENT)) for name in names]
    different = [pair for pair in pairs if not _same(*pair)]
    return [f"{n} is {_shown(s)} there and {_shown(o)} here" for n, s, o in different]


def refuse_other(path: Path, there: Any, here: Any) -> None:
    """Refuse what another run wrote.

    Raises:
        CheckpointError: names the first fields that differ, with both values.
    """
    found = differences(there, here)
    if found:
        raise CheckpointError(
            f"{path} belongs to another run: {_list(found)}; use the same settings, or another "
            "folder"
        )


def refuse_changed(path: Path, there: Any, here: Any) -> None:
    """Refuse to use a run after what it was trained on has changed.

    Raises:
        CheckpointError: names the first parts that differ, with both values.
    """
    found = differences(there, here)
    if found:
        raise CheckpointError(
            f"{path} was trained on another prior or reward: {_list(found)}; put back what it was "
            "trained on, or train again"
        )


def refuse_tensors(path: Path, there: Mapping[str, Spec], here: Mapping[str, Spec]) -> None:
    """Refuse the weights of another architecture.

    Raises:
        CheckpointError: names the first tensors that differ, with both shapes.
    """
    found = differences({k: str(v) for k, v in there.items()}, {k: str(v) for k, v in here.items()})
    if found:
        raise CheckpointError(f"{path} does not fit this posterior: {_list(found)}")


def _same(name: str, there: Any, here: Any) -> bool:
    computed = name.startswith("chain.") and isinstance(there, float) and isinstance(here, float)
    return math.isclose(there, here, rel_tol=ROUNDING) if computed else there == here


def _list(found: list[str]) -> str:
    rest = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return "; ".join(found[:NAMED]) + rest


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
