"""What checks the types and shapes of every call into difftilt while the tests run.

jaxtyping's import hook (`--jaxtyping-packages` in pyproject.toml) hands it each function.
"""

from collections.abc import Callable
from typing import IO, Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

# Where pyright and beartype differ, pyright wins: an int passes for a float, `Self` is known
# outside of decorated classes, and an io.BytesIO is an `IO[bytes]` although it has no file name.
CONFIGURATION = BeartypeConf(
    is_pep484_tower=True, hint_overrides=FrozenDict({Self: Any, IO[bytes]: Any})
)


def checked(function: Callable) -> Callable:
    """Return `function` with its arguments and its result checked at each call."""
    if "<locals>" in function.__qualname__:
        return function  # would be compiled anew, in milliseconds, at each call of its parent
    return beartype(conf=CONFIGURATION)(function)
