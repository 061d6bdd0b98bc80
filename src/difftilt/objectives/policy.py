"""Policy gradients: the chain as a policy, its own paths as experience.

The reverse divergence ``KL(q ‖ π) = E_q[Λ - β log r] + log Z`` has the score-function gradient

    E_q[ Σ_n A_n ∇λ_n ],      A_n = Σ_{m <= n} λ_m - β log r - baseline,

because what happened before a step does not depend on it. Without Λ in the cost only the reward is
maximised and the optimum is no posterior but its mode.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.base import PathObjective, Scores


def costs_to_go(scores: Scores, kl: bool) -> Float[Tensor, "rows B"]:
    """``Σ_{m <= n} λ_m - β log r`` at each step, detached; without λ if not ``kl``."""
    assert scores.steps is not None
    past = scores.steps.detach().cumsum(0) if kl else torch.zeros_like(scores.steps)
    return past - scores.log_r


def _surrogate(cost: Float[Tensor, " B"], gradient: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """A loss with the value of ``cost`` and the derivative of ``gradient``."""
    return cost.detach() + gradient - gradient.detach()


@dataclass(frozen=True)
class _OnPolicy(PathObjective):
    on_policy: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"steps"})

    @property
    def paths_per_group(self) -> int:
        return 2


@dataclass(frozen=True)
class Reinforce(_OnPolicy):
    """KL-regularised REINFORCE: the score-function gradient of ``KL(q ‖ π)``.

    The baseline is the mean cost of the other paths of the same condition, so that the gradient is
    unbiased.

    Source: Williams 1992; for diffusion models, Uehara et al. 2024 (arXiv 2407.13734).
    """

    def losses(self, scores: Scores) -> Float[Tensor, " B"]:
        assert scores.steps is not None
        cost = costs_to_go(scores, kl=True)
        gradient = (scores.advantages(cost) * scores.steps).sum(0)
        return _surrogate(cost[-1], gradient)


@dataclass(frozen=True)
class DDPO(_OnPolicy):
    """Denoising diffusion policy optimisation, by score function or with PPO's clipped ratio.

    As published it has no divergence to the prior: it maximises the reward, collapses onto its best
    mode, and only the number of updates keeps it near the prior.

    Arguments:
        clip: ε of the clipped ratio (the paper takes 1e-4); None for the plain score function.
        kl: add Λ to the cost, which makes the posterior the optimum.
        normalised: divide the advantages of a batch by their standard deviation.
        updates: optimiser steps on each batch of paths; above 1 needs ``clip``.

    Raises:
        InputError: ``clip`` is not positive, or several updates without it.

    Source: Black et al. 2023, eq. 3-4 (arXiv 2305.13301); Schulman et al. 2017 (arXiv 1707.06347).
    """

    clip: float | None = None
    kl: bool = False
    normalised: bool = True
    updates: int = 1

    def __post_init__(self) -> None:
        if self.clip is not None and self.clip <= 0:
            raise InputError(f"clip must be positive, or None for no clipping, got {self.clip}")
        if self.updates < 1 or (self.updates > 1 and self.clip is None):
            raise InputError(
                f"updates={self.updates}: at least 1, and more than 1 on the same paths needs clip"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"steps", "drawn"} if self.clip is not None else {"steps"})

    @property
    def consistent(self) -> bool:
        """Only with ``kl``."""
        return self.kl

    @property
    def updates_per_batch(self) -> int:
        return self.updates

    def losses(self, scores: Scores) -> Float[Tensor, " B"]:
        assert scores.steps is not None
        present = scores if scores.drawn is None else _as_drawn(scores)
        cost = costs_to_go(present, self.kl)
        advantage = -scores.advantages(cost)
        if self.normalised:
            advantage = advantage / advantage.std().clamp(min=1e-6)
        if self.clip is None:
            return _surrogate(cost[-1], -(advantage * scores.steps).sum(0))
        assert scores.drawn is not None
        return _surrogate(cost[-1], -_clipped_gain(scores, advantage, self.clip).sum(0))


def _clipped_gain(
    scores: Scores, advantage: Float[Tensor, "*rows B"], clip: float
) -> Float[Tensor, "rows B"]:
    """``min(ρ A, clamp(ρ, 1 ± clip) A)`` with ``ρ = q / q_drawn`` of each step (PPO)."""
    assert scores.steps is not None and scores.drawn is not None
    ratio = torch.exp(scores.steps - scores.drawn)
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def _as_drawn(scores: Scores) -> Scores:
    """Advantages belong to the policy that drew the paths."""
    return Scores(scores.log_ratio, scores.log_r, group=scores.group, steps=scores.drawn)


@dataclass(frozen=True)
class DPOK(_OnPolicy):
    """Policy gradient of the reward, with each step's ``KL(q ‖ p)`` as a penalty.

    The divergences are differentiated at the visited states, as published: how the steps above move
    those states is left out, so that its optimum is near the posterior but not it.

    Source: Fan et al. 2023, eq. 8-9 (arXiv 2305.16381).
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"steps", "divergence"})

    @property
    def consistent(self) -> bool:
        """It leaves out a part of the divergence's gradient."""
        return False

    def losses(self, scores: Scores) -> Float[Tensor, " B"]:
        assert scores.steps is not None and scores.divergence is not None
        advantage = scores.advantages(scores.log_r)
        gradient = scores.divergence.sum(0) - advantage * scores.steps.sum(0)
        return _surrogate(scores.log_ratio - scores.log_r, gradient)


@dataclass(frozen=True)
class FlowGRPO(_OnPolicy):
    """Group-relative policy optimisation: PPO's clipped ratio and each step's divergence.

        -min(ρ_n A, clamp(ρ_n, 1 ± clip) A) + penalty · KL(q ‖ p) of step n,    summed over n
        A = (log r - mean) / standard deviation, over the paths of a condition

    **Not the posterior**: dividing by the standard deviation takes the scale of ``β log r`` away,
    so that the penalty alone says how far from the prior it goes, and rare conditions go as far as
    easy ones. The paper averages log-ratios over dimensions; here they are sums.

    Arguments:
        clip: ε of the clipped ratio, > 0.
        penalty: of the divergence, >= 0.
        updates: optimiser steps on each batch of paths.

    Raises:
        InputError: an argument out of range.

    Source: Liu et al. 2025, eq. 4-6 (arXiv 2505.05470); Shao et al. 2024 (arXiv 2402.03300).
    """

    clip: float = 0.2
    penalty: float = 0.04
    updates: int = 1

    def __post_init__(self) -> None:
        if not (self.clip > 0 and self.penalty >= 0 and self.updates >= 1):
            raise InputError(
                f"clip={self.clip}, penalty={self.penalty}, updates={self.updates}: clip must be "
                "above 0, the penalty 0 or more, and the updates 1 or more"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"steps", "drawn", "divergence"})

    @property
    def consistent(self) -> bool:
        """No: see above."""
        return False

    @property
    def updates_per_batch(self) -> int:
        return self.updates

    def losses(self, scores: Scores) -> Float[Tensor, " B"]:
        assert scores.divergence is not None
        gain = scores.centred(scores.log_r)
        variance = gain.square() - scores.centred(gain.square())
        advantage = gain / variance.sqrt().clamp(min=1e-6)
        gradient = self.penalty * scores.divergence - _clipped_gain(scores, advantage, self.clip)
        return _surrogate(-scores.log_r, gradient.sum(0))
