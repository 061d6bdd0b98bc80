"""Weighted likelihood: forward Kullback-Leibler divergence on paths that cover the target.

``-Σ_b w_b log q(τ_b)`` with ``w ∝ r(x_0)^β`` on prior paths (or ``w = 1`` on paths already
resampled by their reward) is minimised by ``q = π``. It cannot lose a mode that its paths
contain, and it is relative trajectory balance's cheapest warm start.

Source: Peters & Schaal 2007 (reward-weighted regression); Norouzi et al. 2016 (arXiv 1609.00150).
"""

from jaxtyping import Float
from torch import Tensor

from difftilt.objectives.base import Scores


def weighted_likelihood(scores: Scores) -> Float[Tensor, " B"]:
    """``-w Λ``: the prior's log-density is constant in the posterior's parameters."""
    return -scores.log_ratio if scores.weight is None else -scores.weight * scores.log_ratio


def denoising(
    prediction: Float[Tensor, "R ..."], x_0: Float[Tensor, "R ..."], sigma: Tensor, alpha: Tensor
) -> Float[Tensor, " R"]:
    """``(alpha² + sigma²) / sigma²`` times the mean squared error of a clean prediction.

    On ends resampled by their reward this is the weighted likelihood with the forward process in
    the place of the chain's own paths (reward-weighted regression, the consistent pay-off of
    RGDM): far less noisy, and exact only for a prior whose chain reverses its forward process.
    The factor makes it the error of the v-prediction, of one size at every level.

    Arguments:
        prediction: of ``x_0`` at ``x_n``.
        x_0: the ends.
        sigma: noise scale of each row, broadcastable.
        alpha: signal scale of each row, broadcastable.

    Source: Zhang et al. 2023, eq. 9 (arXiv 2304.07132); Salimans & Ho 2022 for the weighting.
    """
    weight = (alpha**2 + sigma**2) / sigma**2
    return (weight * (prediction - x_0) ** 2).flatten(1).mean(1)
