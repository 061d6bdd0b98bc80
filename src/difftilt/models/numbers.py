"""Numbers of a condition (a state, an angle, β), as the numbers that a network reads."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError


@dataclass(frozen=True)
class Numbers:
    """What a network reads of a condition of real numbers, (B, K): ``(number - centre) / scale``.

    Arguments:
        scales: usual size of each number, above 0.
        largest_beta: the condition has one more number, its last: β in [0, largest_beta]; then
            outputs are multiplied by ``β / largest_beta``, so that β = 0 is the prior. None: no β.
        centres: usual value of each number; empty for 0.

    Raises:
        InputError: no number, a scale or ``largest_beta`` that is not positive and finite, or
            another number of centres.
    """

    scales: tuple[float, ...]
    largest_beta: float | None = None
    centres: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.centres and len(self.centres) != len(self.scales):
            raise InputError(
                f"{len(self.scales)} scales and {len(self.centres)} centres; give each number one "
                "of both, or no centres"
            )
        if not self.every or not all(0 < scale < math.inf for scale in self.every):
            raise InputError(
                f"numbers of a condition have scales {self.scales} and largest_beta="
                f"{self.largest_beta}; give at least one, each positive and finite"
            )

    @property
    def every(self) -> tuple[float, ...]:
        """The scale of each number, β's included."""
        return self.scales if self.largest_beta is None else (*self.scales, self.largest_beta)

    @property
    def count(self) -> int:
        """How many numbers the network reads."""
        return len(self.every)

    def code(self, condition: Tensor | None, like: Float[Tensor, "B ..."]) -> Float[Tensor, "B K"]:
        """The scaled numbers.

        Arguments:
            condition: (B, K).
            like: gives batch, dtype and device.

        Raises:
            InputError: no condition, another shape, integers, or β out of range.
        """
        wanted = f"({len(like)}, {self.count})"
        if condition is None:
            raise InputError(
                f"this network reads {self.count} numbers of a condition and none is bound; bind "
                f"one with given(numbers of shape (1, {self.count}))"
            )
        if not condition.is_floating_point() or condition.shape != (len(like), self.count):
            dtype = str(condition.dtype).removeprefix("torch.")
            raise InputError(
                f"this network reads a condition of shape {wanted}, floats, and got {dtype} of "
                f"shape {tuple(condition.shape)}"
            )
        self._check_beta(condition)
        moved = condition.to(like)
        if self.centres:
            # β, which comes last, stays where it is.
            rest = [0.0] * (self.count - len(self.centres))
            moved = moved - torch.tensor([*self.centres, *rest]).to(like)
        return moved / torch.tensor(self.every).to(like)

    def _check_beta(self, condition: Tensor) -> None:
        if self.largest_beta is None:
            return
        low, high = condition[:, -1].aminmax()
        if float(low) < 0 or float(high) > self.largest_beta * (1 + 1e-6):
            raise InputError(
                f"the last number of the condition is β in [0, {self.largest_beta}], got "
                f"{float(low):.4g} to {float(high):.4g}; give its form a larger largest_beta"
            )

    def weight(self, code: Float[Tensor, "B K"]) -> Float[Tensor, "B 1"] | float:
        """What outputs are multiplied by: ``β / largest_beta``, or 1 without β."""
        return 1.0 if self.largest_beta is None else code[:, -1:]
