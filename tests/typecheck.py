"""What checks the types and shapes of calls into difftilt while the tests run.

jaxtyping's import hook (`--jaxtyping-packages` in pyproject.toml) hands it each function. A check
costs more than a small step of a training, and a training's thousandth call is like its hundredth:
each function is checked at its first `ENOUGH` calls in each test, and runs bare for the rest of it.
"""

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import IO, Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

# Where pyright and beartype differ, pyright wins: an int passes for a float, `Self` is known
# outside of decorated classes, and an io.BytesIO is an `IO[bytes]` although it has no file name.
CONFIGURATION = BeartypeConf(
    is_pep484_tower=True, hint_overrides=FrozenDict({Self: Any, IO[bytes]: Any})
)


ENOUGH = 20

calls: Counter[Callable] = Counter()
bare: list[Callable] = []


def checked(function: Callable) -> Callable:
    """Return `function` with its arguments and its result checked at each call.

    It has the signature of a function of ours and nothing else; jaxtyping calls it beside that one.
    """
    if "<locals>" in function.__qualname__:
        return function  # would be compiled anew, in milliseconds, at each call of its parent
    strict = beartype(conf=CONFIGURATION)(function)

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[function] += 1
        if calls[function] == ENOUGH:
            for layer in _layers(function):
                layer.__dict__["__no_type_check__"] = True
                bare.append(layer)
        return strict(*args, **kwargs)

    return counted


def check_anew() -> None:
    """Forget what was called: a test begins."""
    calls.clear()
    while bare:
        bare.pop().__dict__.pop("__no_type_check__", None)


def _layers(function: Callable) -> Iterator[Callable]:
    """Our function of that name, and what its decorators wrap; nothing if it is not found."""
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = inspect.getattr_static(found, name, None)
    for inner in ("fget", "__func__", "func"):
        found = getattr(found, inner, found)
    while isinstance(found, FunctionType):
        yield found
        found = getattr(found, "__wrapped__", None)
