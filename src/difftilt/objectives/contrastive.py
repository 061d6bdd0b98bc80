"""Contrastive energy prediction: ``log h`` from noised states and the rewards of their own ends.

K rows ``(x_n, end)`` are drawn independently, with weights w whose conditional mean is h:
``E[w | x_n] ∝ h_n(x_n)``. The cross-entropy

    - Σ_i w_i log( exp f_i / Σ_j exp f_j )

has, given the K states, the mean ``-Σ_i h_i log softmax(f)_i``, which is least at ``f = log h``
plus a constant: for every K >= 2, whatever law the states have, and with one constant for all n if
the rows of a set are of different n. That needs w to depend on its own row alone. Labels
``softmax(log w)``, as in the paper's code, do not: with small K, f differs too little between
states with rare high rewards (for two equally likely states with P(log r = 10) = 0.05 and 0.005,
else log r = 0, and K = 16 it differs by 0.6 instead of 2.3).

Source: Lu et al. 2023, Contrastive energy prediction (arXiv 2304.12824).
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.ends import Correction, EndObjective, EndScores, States, weights

Labels = Literal["unnormalised", "self_normalised"]
LABELS = ("unnormalised", "self_normalised")
STATES = ("chain", "forward")


@dataclass(frozen=True)
class CEP(EndObjective):
    """Contrastive energy prediction; trains the value of a posterior that is guided by it.

    With ``states="chain"`` and labels "unnormalised" f is exactly the discrete chain's ``log h`` at
    the optimum, on prior paths and on the posterior's own (whose labels are divided by the ratio
    q/p of the steps from x_n down). With "forward", or on given data, it is that of the reversed
    forward process. A value with β as an input sees β drawn uniformly in (0, largest_beta].

    The guided posterior is exact in the limit of many steps only.

    Arguments:
        labels: "unnormalised" (exact), or "self_normalised" (the paper's code; biased for small K).
        contrast: K, rows compared with each other; None: the whole batch.
        per_sample_time: n for each row by itself; False: one n per set (the official toy), which
            leaves f a constant of its own at each n.
        states: "chain" (the path's own states) or "forward" (the end noised afresh).

    Raises:
        InputError: fewer than 2 rows per contrast, or unknown labels or states.
    """

    labels: Labels = "unnormalised"
    contrast: int | None = None
    per_sample_time: bool = True
    states: States = "chain"

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            raise InputError(
                f"labels={self.labels!r} is unknown; choose one of {', '.join(LABELS)}"
            )
        if self.states not in STATES:
            raise InputError(
                f"states={self.states!r} is unknown; choose one of {', '.join(STATES)}"
            )
        if self.contrast is not None and self.contrast < 2:
            raise InputError(f"a contrast compares at least 2 rows, got contrast={self.contrast}")

    @property
    def consistent(self) -> bool:
        """With un-normalised labels; the paper's are biased for few rows per contrast."""
        return self.labels == "unnormalised"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_h"})

    @property
    def behaviours(self) -> frozenset[str]:
        own = {"on_policy"} if self.states == "chain" else set()
        return frozenset({"prior", "data"} | own)

    @property
    def starts_warm(self) -> bool:
        return False

    @property
    def paths_per_group(self) -> int:
        return 2 if self.contrast is None else self.contrast

    @property
    def states_from(self) -> States:
        return self.states

    @property
    def correction(self) -> Correction:
        return "below"

    @property
    def guides(self) -> bool:
        return True

    @property
    def contrast_size(self) -> int | None:
        return self.contrast

    @property
    def shared_time(self) -> bool:
        return not self.per_sample_time

    def losses(self, scores: EndScores) -> Float[Tensor, " R"]:
        return contrastive(scores, self.labels == "self_normalised")


def contrastive(scores: EndScores, self_normalised: bool = False) -> Float[Tensor, " R"]:
    """``-w_i log softmax(f)_i`` with ``f = log_h - log_scale``, the softmax over each row's set.

    Arguments:
        scores: with ``log_h``.
        self_normalised: labels that sum to K in each set.

    Raises:
        InputError: no ``log_h``, or a set of one row, whose loss is identically zero.

    Source: Lu et al. 2023 (arXiv 2304.12824).
    """
    if scores.log_h is None:
        raise InputError("a contrast needs a learned log h; scores.log_h is None")
    if bool((scores.set_sizes < 2).any()):
        raise InputError("a contrast compares at least 2 rows, got a set of one; raise batch")
    f = scores.log_h - scores.log_scale
    return weights(scores, self_normalised) * (scores.log_sum(f) - f)
