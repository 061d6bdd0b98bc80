"""Integer labels of a condition, as the numbers that a network reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError


def label_code(
    condition: Tensor | None, sizes: Sequence[int], like: Float[Tensor, "B ..."]
) -> Float[Tensor, "B code"]:
    """One-hot codes of K integer labels, side by side: (B, sum of sizes).

    Arguments:
        condition: (B, K) integers, or (B,) for a single label.
        sizes: number of values of each label, counted from 0.
        like: gives batch, dtype and device.

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
    codes = [torch.nn.functional.one_hot(y, size) for y, size in zip(labels.T, sizes, strict=True)]
    return torch.cat(codes, 1).to(like.dtype)


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
        """``label_code`` of a condition.

        Raises:
            InputError: as ``label_code``.
        """
        return label_code(condition, self.sizes, like)

    def weight(self, code: Float[Tensor, "B code"]) -> float:
        """What outputs are multiplied by: 1."""
        return 1.0
