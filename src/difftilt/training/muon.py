"""Muon in the weights' own precision."""

import math
from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor


class Muon(torch.optim.Muon):
    """torch's Muon, its Newton-Schulz iteration in the weights' precision and over equal shapes.

    torch rounds to bfloat16, which a processor without such arithmetic emulates: 15 to 40 times as
    long for matrices of 64 to 512, more than a small network's forward and backward together. What
    is kept, and so what a checkpoint holds, is torch's.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all weights that have a gradient."""
        for group in self.param_groups:
            alike: dict[tuple, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    kind = (weight.dtype, weight.device)
                    alike[*sorted(weight.shape), *kind].append(weight)
            for weights in alike.values():
                self._update(group, weights)

    def _update(self, group: dict, weights: list[Tensor]) -> None:
        directions = torch.stack([_wide(self._direction(group, w)) for w in weights])
        made = orthogonal(directions, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for weight, direction in zip(weights, made, strict=True):
            rows, columns = weight.shape
            rate = group["lr"] * math.sqrt(max(1, rows / columns))
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(direction if rows <= columns else direction.T, alpha=-rate)

    def _direction(self, group: dict, weight: Tensor) -> Tensor:
        gradient, kept = weight.grad, self.state[weight]
        assert gradient is not None
        if "momentum_buffer" not in kept:
            kept["momentum_buffer"] = torch.zeros_like(weight)
        momentum = kept["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum


def _wide(matrix: Tensor) -> Tensor:
    return matrix if len(matrix) <= matrix.shape[1] else matrix.T


def orthogonal(
    matrices: Float[Tensor, "n rows columns"],
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
) -> Float[Tensor, "n rows columns"]:
    """Matrices of the same singular vectors, all singular values near 1.

    Arguments:
        matrices: no more rows than columns.
        coefficients: a, b, c of ``a X + b (X Xᵀ) X + c (X Xᵀ)² X``.
        steps: how many of these.
        eps: least norm that is divided by.
    """
    a, b, c = coefficients
    found = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(
            found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a
        )
    return found
