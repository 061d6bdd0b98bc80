"""Balance conditions on whole paths: relative trajectory balance in its two forms.

With ``Λ(τ) = log q(τ) - log p(τ)`` and the target ``π(τ) = p(τ) r(x_0)^β / Z``, a posterior ``q``
equals π exactly if the residual ``log Z + Λ(τ) - β log r(x_0)`` vanishes on every path. The paths
may come from any behaviour with full support.

Source: Venkatraman et al. 2024, eq. 8-9 (arXiv 2405.20971); the log-variance form is Richter et al.
2020, section 3 (arXiv 2010.10436).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.errors import InputError


@dataclass(frozen=True)
class Scores:
    """The tensors an objective may read; nats, one number per path.

    Arguments:
        log_ratio: (B,) ``Λ``, the only entry that carries a gradient.
        log_r: (B,) ``β log r(x_0)``.
        log_z: (B,) learned ``log Z`` of each path's condition, with its own gradient, or None.
        group: (B,) which paths share a condition (0 ... G - 1), or None: all do.
        weight: (B,) non-negative weights, for the weighted likelihood.
    """

    log_ratio: Float[Tensor, " B"]
    log_r: Float[Tensor, " B"]
    log_z: Float[Tensor, " B"] | None = None
    group: Int[Tensor, " B"] | None = None
    weight: Float[Tensor, " B"] | None = None


def squared(residual: Float[Tensor, " B"], clip: float | None = None) -> Float[Tensor, " B"]:
    """``residual²``, or, beyond ``±clip`` nats, its linear continuation (Huber).

    The zero of the loss is the same; the gradient of a path is bounded by ``2 clip``.
    """
    if clip is None:
        return residual**2
    size = residual.abs()
    return torch.where(size <= clip, residual**2, 2 * clip * size - clip**2)


def relative_trajectory_balance(
    scores: Scores, residual_clip: float | None = None
) -> Float[Tensor, " B"]:
    """``(log Z + Λ - β log r)²`` with a learned ``log Z``.

    Raises:
        InputError: no ``log_z``.
    """
    if scores.log_z is None:
        raise InputError("relative trajectory balance needs a learned log Z; scores.log_z is None")
    return squared(scores.log_z + scores.log_ratio - scores.log_r, residual_clip)


def log_variance(scores: Scores, residual_clip: float | None = None) -> Float[Tensor, " B"]:
    """``(Λ - β log r - mean)²``, the mean over the paths that share a condition.

    The mean is not detached; that it is the minimiser of the sum makes its gradient vanish.

    Raises:
        InputError: a condition with a single path, for which the loss is identically zero.
    """
    gap = scores.log_ratio - scores.log_r
    group = torch.zeros_like(gap, dtype=torch.long) if scores.group is None else scores.group
    count = torch.bincount(group)
    if int(count[count > 0].min()) < 2:
        raise InputError(
            "the log-variance form needs at least 2 paths per condition in a batch, got 1; "
            "raise batch (or paths_per_condition), or use a learned log Z"
        )
    total = torch.zeros(len(count), dtype=gap.dtype, device=gap.device).index_add(0, group, gap)
    return squared(gap - (total / count)[group], residual_clip)
