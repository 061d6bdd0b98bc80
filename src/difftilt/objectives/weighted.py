"""Weighted likelihood: forward Kullback-Leibler divergence on paths that cover the target.

``-Σ_b w_b log q(τ_b)`` with ``w ∝ r(x_0)^β`` on prior paths (or ``w = 1`` on paths already
resampled by their reward) is minimised by ``q = π``. It cannot lose a mode that its paths contain, and it is
relative trajectory balance's cheapest warm start.

Source: Peters & Schaal 2007 (reward-weighted regression); Norouzi et al. 2016 (arXiv 1609.00150).
"""

from jaxtyping import Float
from torch import Tensor

from difftilt.objectives.balance import Scores


def weighted_likelihood(scores: Scores) -> Float[Tensor, " B"]:
    """``-w Λ``: the prior's log-density is constant in the posterior's parameters."""
    return -scores.log_ratio if scores.weight is None else -scores.weight * scores.log_ratio
