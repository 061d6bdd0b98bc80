"""A forward-process policy gradient: advantage-weighted matching, a baseline.

Source: Xue et al. 2025, Advantage weighted matching (arXiv 2509.25050).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.ends import EndObjective, EndScores, States


@dataclass(frozen=True)
class AdvantageWeighted(EndObjective):
    """``-A λ + penalty · KL(q ‖ p)`` of single steps of own ends, noised by the forward process.

    ``A = β log r - mean`` over the batch (per condition). Along its own forward transitions ``-λ``
    is the denoising loss of the pre-training, up to a constant, in the weighting of the likelihood;
    the paper weighs it as the pre-training did and clips a ratio of policies.

    **Not the posterior.** The divergence is that of each row's own step, and the advantage knows
    nothing of divergences still to be paid; so the stationary kernel of a chain that reverses its
    forward process is ``q(x_{n-1} | x_n) ∝ p(x_{n-1} | x_n) exp(E_q[β log r | x_{n-1}] / penalty)``
    with the mean of β log r in the place of ``log h``, a log-mean-exp. The two agree with penalty 1
    if N = 1, and where β log r is affine on a linear Gaussian chain.

    *Breaks when* the chain is coarse: then ``E[λ's gradient | x_n]`` does not vanish along forward
    transitions, and rows of negative advantage push their steps away without bound; a learned
    variance collapses (in a Gaussian toy with N = 12 it does). "chain" has no such term.

    Arguments:
        penalty: of the divergence, >= 0; 0 maximises the reward, and nothing stops it.
        states: "forward" as in the paper, or "chain": the paths' own transitions (a policy
            gradient without the assumption of a reversed forward process).

    Raises:
        InputError: a penalty below 0, or unknown states.
    """

    on_policy: ClassVar[bool] = True

    penalty: float = 1.0
    states: States = "forward"

    def __post_init__(self) -> None:
        if not 0 <= self.penalty < math.inf:
            raise InputError(f"penalty must be a finite number >= 0, got {self.penalty}")
        if self.states not in ("chain", "forward"):
            raise InputError(f"states={self.states!r} is unknown; choose 'chain' or 'forward'")

    @property
    def consistent(self) -> bool:
        """No: see above."""
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
    def states_from(self) -> States:
        return self.states

    def losses(self, scores: EndScores) -> Float[Tensor, " R"]:
        return advantage_weighted(scores, self.penalty)


def advantage_weighted(
    scores: EndScores, penalty: float, gains: Float[Tensor, " R"] | None = None
) -> Float[Tensor, " R"]:
    """``-A λ + penalty · divergence``, A the ``gains`` (default the ``advantage``).

    Raises:
        InputError: no ``log_ratio``, or no ``divergence`` where it is penalised.
    """
    if scores.log_ratio is None or (penalty > 0 and scores.divergence is None):
        raise InputError("advantage-weighted matching needs scores.log_ratio and scores.divergence")
    loss = -(advantage(scores) if gains is None else gains) * scores.log_ratio[0]
    if penalty == 0 or scores.divergence is None:
        return loss
    return loss + penalty * scores.divergence


def advantage(scores: EndScores) -> Float[Tensor, " R"]:
    """``β log r`` less its mean over the other rows of a set; 0 where the reward is zero."""
    finite = torch.isfinite(scores.log_r)
    log_r = torch.where(finite, scores.log_r, 0.0)
    zeros = log_r.new_zeros(int(scores.group.max()) + 1)
    count = zeros.index_add(0, scores.group, finite.to(log_r))[scores.group]
    mean = zeros.index_add(0, scores.group, log_r)[scores.group] / count.clamp(min=1)
    # A mean over all K rows holds the row itself: K/(K-1) makes it the mean over the others.
    return torch.where(finite, (log_r - mean) * count / (count - 1).clamp(min=1), 0.0)
