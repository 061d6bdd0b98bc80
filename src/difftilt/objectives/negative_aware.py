"""Negative-aware fine-tuning on the forward process: a baseline beside advantage weighting.

Source: Zheng et al. 2025, DiffusionNFT (arXiv 2509.16117).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.ends import EndObjective, EndScores, States
from difftilt.objectives.forward import advantage


@dataclass(frozen=True)
class NegativeAware(EndObjective):
    """Good ends pull the shift δ towards their noise ε, bad ones push an implicit negative away.

        ρ |b δ - ε|² / 2 + (1 - ρ) |-b δ - ε|² / 2,      ρ = (1 + clip(A / scale, -1, 1)) / 2

    of noised ends of the prior, ε a row's own landing in the prior's standardised coordinates, b
    the ``strength`` and A the advantage of β log r. As ``δ·ε = λ + KL``, it is up to a constant

        b² KL(q ‖ p) - b (2ρ - 1) (λ + KL(q ‖ p)).

    This is the published loss in its first round, where the policy that draws is the prior.

    **Not the posterior.** Its optimum is ``δ = E[(2ρ - 1) ε | x_n] / b``: a clipped reward's
    covariance with the noise, one step along the advantage, instead of the slope of ``log h``.

    The kernel must keep the prior's variance.

    Arguments:
        strength: b > 0; small ones move far.
        scale: nats of advantage that count as wholly good, > 0.
        states: "forward" (ends noised afresh) or "chain" (the paths' own states).

    Raises:
        InputError: an option out of range.
    """

    strength: float = 1.0
    scale: float = 1.0
    states: States = "forward"

    def __post_init__(self) -> None:
        for name in ("strength", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a finite number > 0, got {getattr(self, name)}")
        if self.states not in ("chain", "forward"):
            raise InputError(f"states={self.states!r} is unknown; choose 'chain' or 'forward'")

    @property
    def consistent(self) -> bool:
        """No: see above."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_ratio", "divergence"})

    @property
    def behaviours(self) -> frozenset[str]:
        return frozenset({"prior", "data"})

    @property
    def starts_warm(self) -> bool:
        return False

    @property
    def paths_per_group(self) -> int:
        return 2

    @property
    def within_condition(self) -> bool:
        return True

    @property
    def states_from(self) -> States:
        return self.states

    def losses(self, scores: EndScores) -> Float[Tensor, " R"]:
        return negative_aware(scores, self.strength, self.scale)


def negative_aware(
    scores: EndScores, strength: float = 1.0, scale: float = 1.0
) -> Float[Tensor, " R"]:
    """``b² KL - b clip(A / scale, -1, 1) (λ + KL)``; an end of zero reward is wholly bad.

    Raises:
        InputError: no ``log_ratio`` or no ``divergence``.
    """
    if scores.log_ratio is None or scores.divergence is None:
        raise InputError("negative-aware tuning needs scores.log_ratio and scores.divergence")
    good = (advantage(scores) / scale).clamp(-1, 1)
    good = torch.where(torch.isfinite(scores.log_r), good, -1.0)
    pulled = scores.log_ratio[0] + scores.divergence
    return strength**2 * scores.divergence - strength * good * pulled
