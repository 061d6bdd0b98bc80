"""Supervised fine-tuning: the likelihood of given data, under their own conditions.

Source: Ho et al. 2020, section 3 (arXiv 2006.11239); of masked tokens, Sahoo et al. 2024
(arXiv 2406.07524).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.ends import EndObjective, EndScores


@dataclass(frozen=True)
class Supervised(EndObjective):
    """``-λ`` of given ends, noised afresh: the pre-training's bound of their likelihood, in nats.

    **Not the posterior**: its optimum is the law of the data, and the reward is not read. It is the
    baseline that posterior samplers are compared with where good ends are given, and a start for
    them. Give the data by ``Sources(data=..., data_conditions=...)``; for data weighted by their
    reward take ``RewardWeighted``.
    """

    @property
    def consistent(self) -> bool:
        """No: it fits the data, whatever the reward."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_ratio"})

    @property
    def behaviours(self) -> frozenset[str]:
        return frozenset({"data", "replay"})

    @property
    def starts_warm(self) -> bool:
        return False

    def losses(self, scores: EndScores) -> Float[Tensor, " R"]:
        return supervised(scores)


def supervised(scores: EndScores) -> Float[Tensor, " R"]:
    """``-λ``: the prior's log-density is constant in the posterior's parameters.

    Raises:
        InputError: no ``log_ratio``.
    """
    if scores.log_ratio is None:
        raise InputError("a likelihood needs landings; scores.log_ratio is None")
    return -scores.log_ratio[0]
