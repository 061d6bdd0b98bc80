"""Group policy gradient with mean-field likelihoods, as language models are often trained.

A rollout is scored in one network call, as if all of its tokens had been drawn at once from the
state in which all are masked. That is cheap, and it is not the likelihood of the rollout.

Source: Zhao et al. 2025, d1 (diffu-GRPO, arXiv 2504.12216); Shao et al. 2024 (GRPO,
arXiv 2402.03300).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.ends import EndObjective, EndScores
from difftilt.objectives.forward import advantage, advantage_weighted


@dataclass(frozen=True)
class GroupPolicyGradient(EndObjective):
    """``-A λ + penalty · KL(q ‖ p)`` of the mean-field law of own ends, all positions masked.

    ``A = β log r - mean`` over the other paths of the condition, in units of their standard
    deviation if ``normalised``. A single update per batch of paths, so that nothing is clipped.

    **Not the posterior**: the likelihood is a product over positions that the sampler does not draw
    from, the penalty is that product's own, and states with some tokens shown learn nothing but
    what they share with the empty one.

    Arguments:
        penalty: of the divergence, >= 0; 0 maximises the reward, and nothing stops it.
        normalised: divide advantages by their condition's standard deviation; β then has no effect.

    Raises:
        InputError: a penalty below 0.
    """

    on_policy: ClassVar[bool] = True

    penalty: float = 1.0
    normalised: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.penalty < math.inf:
            raise InputError(f"penalty must be a finite number >= 0, got {self.penalty}")

    @property
    def consistent(self) -> bool:
        """No: its likelihood is a product over positions."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_ratio", "divergence"} if self.penalty > 0 else {"log_ratio"})

    @property
    def paths_per_group(self) -> int:
        return 2

    @property
    def within_condition(self) -> bool:
        return True

    @property
    def leaps(self) -> bool:
        return True

    @property
    def from_noise(self) -> bool:
        return True

    def losses(self, scores: EndScores) -> Float[Tensor, " R"]:
        gains = advantage(scores)
        if self.normalised:
            gains = scaled(gains, scores.group)
        return advantage_weighted(scores, self.penalty, gains)


def scaled(gains: Float[Tensor, " R"], group: Tensor) -> Float[Tensor, " R"]:
    """Advantages over their root mean square in each set."""
    zeros = gains.new_zeros(int(group.max()) + 1)
    square = zeros.index_add(0, group, gains**2) / torch.bincount(group).clamp(min=1)
    return gains / square.sqrt().clamp(min=1e-6)[group]
