"""The law of one step of a chain, and how a posterior tilts it.

A step of the prior has coordinates ``eps``, in which its law is simple: a standard normal, or a
choice among tokens. A posterior keeps the step's coordinates and changes the law inside them, with
a ``Tilt``. Every log-ratio ``log q/p`` is a function of ``eps`` and the tilt alone. It is exactly
zero where the tilt is zero, and it never subtracts two large log-densities.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from difftilt._ops import over_event
from difftilt.noise import Noise


class Transition(ABC):
    """The prior's law of one step, in coordinates ``eps`` in which posteriors are written."""

    @abstractmethod
    def draw(self, noise: Noise, widen: float = 1.0) -> Tensor:
        """``eps`` of the prior, its spread multiplied by ``widen``."""

    @abstractmethod
    def at(self, eps: Tensor) -> Shaped[Tensor, "B ..."]:
        """The state at coordinates ``eps``."""

    @abstractmethod
    def standardise(self, x: Shaped[Tensor, "B ..."]) -> Tensor:
        """The coordinates of a state: the inverse of ``at``."""

    @abstractmethod
    def log_prob(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        """Log-density in nats, summed over the event."""

    @property
    @abstractmethod
    def landing(self) -> Shaped[Tensor, "B ..."]:
        """Where a step without density lands."""


class Tilt(ABC):
    """A law of ``eps`` that replaces the prior's at one step."""

    @abstractmethod
    def draw(self, noise: Noise, widen: float = 1.0) -> Shaped[Tensor, "B ..."]:
        """``eps`` from the tilt, its spread multiplied by ``widen``."""

    @abstractmethod
    def log_ratio(self, eps: Shaped[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        """``log q(eps) - log p(eps)``, nats summed over the event."""

    @abstractmethod
    def divergence(self) -> Float[Tensor, " B"]:
        """``KL(q ‖ p)``, nats summed over the event.

        Raises:
            InputError: it has no closed form.
        """

    @classmethod
    def joined(cls, tilts: Sequence[Any]) -> "Tilt | None":
        """The tilts of several steps as one of all their rows, or None: they do not fit."""
        return None


def log_ratios(
    tilts: Sequence[Tilt], eps: Sequence[Shaped[Tensor, "B ..."]], joined: Tilt | None = None
) -> Float[Tensor, "steps B"]:
    """``log_ratio`` of several steps of a chain, in one call where their tilts can be joined.

    Arguments:
        tilts: of each step.
        eps: where each step landed.
        joined: the same tilts as one of all their rows, if that is known.
    """
    joined = tilts[0].joined(tilts) if joined is None else joined
    if joined is None:
        return torch.stack([tilt.log_ratio(e) for tilt, e in zip(tilts, eps, strict=True)])
    return joined.log_ratio(torch.cat(list(eps))).unflatten(0, (len(tilts), -1))


def rows_of(values: Float[Tensor, " N"], n: int | Tensor, x: Tensor) -> Tensor:
    """Entry ``n`` of a table: a scalar for an int, one per sample (B, 1, ...) for a tensor."""
    if isinstance(n, int):
        return values[n]
    return over_event(values[n], x)
