"""Wake: forward Kullback-Leibler divergence by the weights of relative trajectory balance.

A posterior's own paths carry the weights ``w = r^β p/q``, which the balance works out anyway. Their
ends, so weighted, are draws of the target's ends, and noising them afresh gives the likelihood a
new state for every update. It covers modes where the balance seeks them, and since it asks for the
law of the ends alone, and not for a law of whole paths, it is right for every prior of tokens, also
for one whose conditionals belong to no joint law.

Source: the wake phase of Bornschein & Bengio 2015 (arXiv 1406.2751), on the paths of Venkatraman et
al. 2024 (arXiv 2405.20971).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.ends import Correction, EndObjective, EndScores
from difftilt.objectives.payoff import reward_weighted


@dataclass(frozen=True)
class Wake(EndObjective):
    """``-w λ`` of own ends noised afresh, ``w = r^β p/q`` normalised within each condition.

    It is ``RewardWeighted`` condition by condition, without the conditions whose weights rest on
    few ends; the bias of the normalisation is O(1 / paths of a condition).

    *Exact when* the forward process of an end is the prior's law given it, as for every chain of
    tokens, or for one that reverses its forward process.

    *Breaks when* the weights are uneven: then most conditions are left out; start from ``RTB``.

    Arguments:
        least_ess: conditions whose effective sample size is a smaller share of their paths teach
            nothing in that update; in [0, 1).

    Raises:
        InputError: ``least_ess`` outside [0, 1).
    """

    least_ess: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.least_ess < 1:
            raise InputError(f"least_ess must lie in [0, 1), got {self.least_ess}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_ratio"})

    @property
    def behaviours(self) -> frozenset[str]:
        return frozenset({"prior", "on_policy", "pool"})

    @property
    def correction(self) -> Correction:
        return "path"

    @property
    def within_condition(self) -> bool:
        return True

    @property
    def paths_per_group(self) -> int:
        return 2

    def losses(self, scores: EndScores) -> Float[Tensor, " R"]:
        trusted = effective_share(scores) >= self.least_ess
        return torch.where(trusted, reward_weighted(scores, self_normalised=True), 0.0)


def effective_share(scores: EndScores) -> Float[Tensor, " R"]:
    """``(Σ w)² / (K Σ w²)`` of each row's set; 0 where all of its weights are."""
    log_w = scores.log_w - scores.log_scale
    share = (2 * scores.log_sum(log_w) - scores.log_sum(2 * log_w)).exp() / scores.set_sizes
    return share.nan_to_num(0.0)
