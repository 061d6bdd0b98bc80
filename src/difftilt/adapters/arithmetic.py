"""Networks that are held in 16 bits and calculate in float32.

A posterior's step is told from its prior's by the difference of two predictions. Where both are
rounded to 16 bits on their way through a network, it is a difference of roundings, however little
the posterior has moved: a divergence that no training takes away (docs/guides/text-to-image.md).
So weights of 16 bits are widened where they are used, an operation at a time, and nothing is
rounded. A copy that is trained has to be of 32 bits itself.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NARROW = (torch.float16, torch.bfloat16)

_widening: ContextVar[bool] = ContextVar("widening", default=False)


def calculating(network: nn.Module) -> AbstractContextManager[None]:
    """Inside, a network whose weights have 16 bits takes and gives float32; others are as ever."""
    return in_float32() if held_in(network) in NARROW else nullcontext()


def autocast(network: nn.Module) -> AbstractContextManager[Any]:
    """Inside, a network whose weights have 16 bits calculates in them where torch deems it safe."""
    own = held_in(network)
    if own not in NARROW:
        return nullcontext()
    return torch.autocast(next(network.parameters()).device.type, own)


def held_in(network: nn.Module) -> torch.dtype:
    """The dtype of a network's own weights; float32 of one without any."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


@contextmanager
def in_float32() -> Iterator[None]:
    """Inside, torch takes every tensor of 16 bits for one of float32."""
    token = _widening.set(True)
    try:
        with _Widening():
            yield
    finally:
        _widening.reset(token)


def as_now() -> AbstractContextManager[None]:
    """A context in which torch calculates as it does here."""
    return in_float32() if _widening.get() else nullcontext()


class _Widening(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "__get__":  # an attribute: a shape, a dtype
            return _wide(func(*args))
        kwargs = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return func(*map(_wide, args), **kwargs)


def _wide(value: Any) -> Any:
    """An argument with its tensors and dtypes of 16 bits widened."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in NARROW else value
    if isinstance(value, torch.dtype):
        return torch.float32 if value in NARROW else value
    if type(value) in (list, tuple):  # no torch.Size, and nothing that torch returns
        return type(value)(map(_wide, value))
    return value
