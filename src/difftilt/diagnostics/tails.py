"""How heavy the upper tail of the weights is: Pareto k-hat.

The largest weights of a sample are close to a generalised Pareto law of shape k. For ``k < 1/2``
the weights have a variance; towards ``k = 1`` the mean converges too slowly to be of use. A
bounded or constant tail has ``k ≤ 0``. Like every number made of the sampler's own paths, k-hat
is blind to a mode that the sampler never visits.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.diagnostics.weights import check_log_weights


def pareto_k_threshold(n: int) -> float:
    """``min(1 - 1 / log10 n, 0.7)``: above it n draws are too few for that tail; n ≥ 2.

    Source: Vehtari et al. 2024 (arXiv 1507.02646).
    """
    return min(1 - 1 / math.log10(max(n, 2)), 0.7)


def _fit_shape(excess: Float[Tensor, " m"]) -> float:
    """Shape of a generalised Pareto law by the posterior mean of Zhang and Stephens.

    With ``θ = -shape / scale`` given, ``k(θ) = mean log(1 - θ x)`` maximises the likelihood, whose
    profile is ``m (log(-θ / k) - k - 1)``; θ is averaged over it on the quantiles of a prior.

    Source: Zhang and Stephens 2009 (Technometrics 51, 316-325).
    """
    excess = excess.sort().values
    m, quartile = len(excess), excess[int(len(excess) / 4 + 0.5) - 1]
    count = 30 + int(math.sqrt(m))
    levels = torch.arange(1, count + 1, dtype=torch.float64) - 0.5
    theta = 1 / excess[-1] + (1 - (count / levels).sqrt()) / (3 * quartile)
    shape = torch.log1p(-theta[:, None] * excess).mean(1)
    # Where θ vanishes the law is exponential, and -θ / k tends to 1 / mean x.
    rate = torch.where(theta == 0, 1 / excess.mean(), -theta / shape)
    profile = m * (rate.log() - shape - 1)
    mean_theta = (torch.softmax(profile, 0) * theta).sum()
    return torch.log1p(-mean_theta * excess).mean().item()


def pareto_k(log_w: Float[Tensor, " n"]) -> float:
    """k-hat of the ``min(0.2 n, 3 sqrt(n))`` largest weights, shrunk a little towards 1/2.

    ``k = (m k* + 10 · 0.5) / (m + 10)``, k* the fit to the m weights above the threshold.

    Arguments:
        log_w: (n,) log-weights of independent paths.

    Returns:
        k-hat; -inf if the largest weights are all equal (to 1e-6: there is no tail), inf if fewer
        than 5 weights exceed the threshold (n < 25, or nearly all of the weight on a few paths).

    Source: Vehtari et al. 2024 (arXiv 1507.02646).
    """
    log_w = check_log_weights(log_w).cpu()
    n = len(log_w)
    count = min(math.ceil(0.2 * n), math.ceil(3 * math.sqrt(n)))
    ordered = log_w.sort(descending=True).values
    if n < 25:
        return math.inf
    if ordered[0] == -math.inf or ordered[0] - ordered[count] < 1e-6:
        return -math.inf
    weights = (ordered - ordered[0]).exp()
    excess = weights[weights > weights[count]] - weights[count]
    if len(excess) < 5:
        return math.inf
    return (len(excess) * _fit_shape(excess) + 5) / (len(excess) + 10)
