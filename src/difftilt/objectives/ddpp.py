"""Discrete denoising posterior prediction: one random state of an end, all masks at once.

The law of ``x_0`` given ``x_n`` tilts to ``p(x_0 | x_n) r(x_0)^β / h_n(x_n)``, so that

    log h_n(x_n) + log q(x_0 | x_n) - log p(x_0 | x_n) - β log r(x_0)

vanishes at the posterior. One network call gives q and p as products over the masks, which cannot
hold what the reward couples.

Source: Rector-Brooks et al. 2024, eq. 11 (arXiv 2410.08134).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.balance import squared
from difftilt.objectives.ends import EndObjective, EndScores
from difftilt.ranges import POSITIVE, check_ranges


@dataclass(frozen=True)
class DDPP(EndObjective):
    """DDPP-LB: the squared residual above, with a learned ``log h_n(x_n)``, on ends from anywhere.

    **Not the posterior.** If ends given ``x_n`` are drawn from the product law p, the optimum is
    the product of ``q(x^i = v | x_n) ∝ p(x^i = v | x_n) exp(E_p[β log r | x^i = v, x_n])``: the
    geometric mean of the reward where the posterior has the arithmetic one. It is exact where
    log r is a sum over positions and the prior's tokens are independent.

    Arguments:
        residual_clip: beyond this many nats the squared residual goes on linearly; None: never.

    Raises:
        InputError: the clip is not above 0.

    Source: Rector-Brooks et al. 2024, eq. 11 (arXiv 2410.08134).
    """

    residual_clip: float | None = None

    def __post_init__(self) -> None:
        check_ranges(self, residual_clip=POSITIVE.or_none)

    @property
    def consistent(self) -> bool:
        """No: its likelihood is a product over positions."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_ratio", "log_h"})

    @property
    def leaps(self) -> bool:
        return True

    @property
    def contrasts(self) -> bool:
        return False

    def losses(self, scores: EndScores) -> Float[Tensor, " R"]:
        return posterior_prediction(scores, self.residual_clip)


def posterior_prediction(
    scores: EndScores, residual_clip: float | None = None
) -> Float[Tensor, " R"]:
    """``(log h + λ - β log r)²``; 0 where the reward is zero, whose residual is infinite.

    Raises:
        InputError: no ``log_ratio`` or no ``log_h``.
    """
    if scores.log_ratio is None or scores.log_h is None:
        raise InputError("posterior prediction needs scores.log_ratio and scores.log_h")
    finite = scores.log_r.isfinite()
    residual = scores.log_h + scores.log_ratio[0] - scores.log_r.where(finite, 0.0)
    return squared(residual, residual_clip).where(finite, 0.0)
