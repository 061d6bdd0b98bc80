"""Balance conditions on whole paths: relative trajectory balance in its two forms.

With ``Λ(τ) = log q(τ) - log p(τ)`` and the target ``π(τ) = p(τ) r(x_0)^β / Z``, a posterior ``q``
equals π exactly if the residual ``log Z + Λ(τ) - β log r(x_0)`` vanishes on every path. The paths
may come from any behaviour with full support.

Source: Venkatraman et al. 2024, eq. 8-9 (arXiv 2405.20971); the log-variance form is Richter et al.
2020, section 3 (arXiv 2010.10436).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.base import PathObjective, Scores
from difftilt.ranges import POSITIVE, check_choices, check_ranges


@dataclass(frozen=True)
class RTB(PathObjective):
    """Relative trajectory balance.

    Arguments:
        log_z: "learned" (a parameter with its own learning rate) or "batch" (log-variance form).
        residual_clip: beyond this many nats the squared residual goes on linearly; None: never.

    Raises:
        InputError: an argument out of range.
    """

    log_z: Literal["learned", "batch"] = "batch"
    residual_clip: float | None = None

    def __post_init__(self) -> None:
        check_choices(self, log_z=("learned", "batch"))
        check_ranges(self, residual_clip=POSITIVE.or_none)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_z"} if self.log_z == "learned" else ())

    @property
    def paths_per_group(self) -> int:
        return 2 if self.log_z == "batch" else 1

    def losses(self, scores: Scores) -> Float[Tensor, " B"]:
        if self.log_z == "batch":
            return log_variance(scores, self.residual_clip)
        return relative_trajectory_balance(scores, self.residual_clip)

    def forbidden(
        self, log_ratio: Float[Tensor, " F"], losses: Float[Tensor, " K"]
    ) -> Float[Tensor, " F"]:
        """A push on Λ: of the clip, or of the worst residual of the other paths (1 nat at least).

        The residual of a path with r = 0 is infinite. Its push is weighted by ``min(1, q/p)``, so
        that it ends where the posterior has left forbidden ground, whoever drew the path.
        """
        residual = self.residual_clip or float(losses.detach().max().clamp(min=1).sqrt())
        weight = log_ratio.detach().clamp(max=0).exp()
        return 2 * residual * weight * (1 + log_ratio - log_ratio.detach())


def squared(residual: Float[Tensor, "..."], clip: float | None = None) -> Float[Tensor, "..."]:
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


def _alone(scores: Scores) -> bool:
    """Whether a condition has a single path."""
    if scores.group is None:
        return len(scores.log_r) < 2
    return bool((torch.bincount(scores.group) == 1).any())


def log_variance(scores: Scores, residual_clip: float | None = None) -> Float[Tensor, " B"]:
    """``(Λ - β log r - mean)²``, the mean over the paths that share a condition.

    The mean is not detached; that it is the minimiser of the sum makes its gradient vanish.

    Raises:
        InputError: a condition with a single path, for which the loss is identically zero.
    """
    gap = scores.log_ratio - scores.log_r
    if _alone(scores):
        raise InputError(
            "the log-variance form needs at least 2 paths per condition in a batch, got 1; "
            "raise batch (or paths_per_condition), or use a learned log Z"
        )
    return squared(scores.centred(gap), residual_clip)
