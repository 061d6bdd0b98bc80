"""Integer labels of a condition, as the numbers that a network reads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.errors import InputError


def checked_labels(
    condition: Tensor | None, sizes: Sequence[int], like: Float[Tensor, "B ..."]
) -> Int[Tensor, "B K"]:
    """K integer labels of each row.

    Arguments:
        condition: (B, K) integers, or (B,) for a single label.
        sizes: number of values of each label, counted from 0.
        like: gives batch and device.

    Raises:
        InputError: no condition, another shape, no integers, or a label out of range.
    """
    wanted = f"({len(like)}, {len(sizes)})"
    if condition is None:
        raise InputError(
            f"this posterior reads labels of sizes {tuple(sizes)} and no condition is bound; bind "
            f"one with posterior.given(labels of shape (1, {len(sizes)}))"
        )
    labels = condition[:, None] if condition.ndim == 1 else condition
    whole = not condition.is_floating_point() and condition.dtype != torch.bool
    if not whole or labels.shape != (len(like), len(sizes)):
        dtype = str(condition.dtype).removeprefix("torch.")
        raise InputError(
            f"this posterior reads labels of shape {wanted}, integers, and got {dtype} of shape "
            f"{tuple(condition.shape)}"
        )
    labels = labels.to(like.device, torch.int64)
    limits = torch.tensor(tuple(sizes), device=like.device)
    if bool(((labels < 0) | (labels >= limits)).any()):
        raise InputError(
            f"a label is out of range: labels {labels.amin(0).tolist()} to "
            f"{labels.amax(0).tolist()}, sizes {tuple(sizes)}, counted from 0"
        )
    return labels


@dataclass(frozen=True)
class Labels:
    """What a network reads of a condition of K integer labels: their one-hot codes.

    Arguments:
        sizes: number of values of each label, counted from 0.
    """

    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers the network reads."""
        return sum(self.sizes)

    def code(
        self, condition: Tensor | None, like: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B code"]:
        """One-hot codes of the labels, side by side.

        Raises:
            InputError: as ``checked_labels``.
        """
        labels = checked_labels(condition, self.sizes, like)
        codes = [
            torch.nn.functional.one_hot(label, size)
            for label, size in zip(labels.T, self.sizes, strict=True)
        ]
        return torch.cat(codes, 1).to(like.dtype)

    @property
    def combinations(self) -> int:
        """How many different conditions there are."""
        return math.prod(self.sizes)

    def row(self, condition: Tensor | None, like: Float[Tensor, "B ..."]) -> Int[Tensor, " B"]:
        """The place of each row's labels among all combinations, the last label moving first.

        Raises:
            InputError: as ``checked_labels``.
        """
        labels = checked_labels(condition, self.sizes, like)
        place = labels[:, 0]
        for label, size in zip(labels.T[1:], self.sizes[1:], strict=True):
            place = place * size + label
        return place

    def weight(self, code: Float[Tensor, "B code"]) -> float:
        """What outputs are multiplied by: 1."""
        return 1.0
