"""What checks the types and shapes of every call into difftilt while the tests run.

jaxtyping's import hook (`--jaxtyping-packages` in pyproject.toml) hands it each function.
"""

from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

# As for pyright, an int passes for a float. To beartype `Self` means something on a class only.
CONFIGURATION = BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: Any}))


def checked(function: Callable) -> Callable:
    """Return `function` with its arguments and its result checked at each call."""
    if "<locals>" in function.__qualname__:
        return function  # would be compiled anew, in milliseconds, at each call of its parent
    return beartype(conf=CONFIGURATION)(function)
