"""Whether a sampler amortised over conditions is calibrated, where conditions have a prior.

Draw ``x* ~ p(x)`` and ``y ~ p(y | x*)``. Then x* is itself an exact posterior draw given y, so that
among L draws of an exact sampler for the same y its rank in any scalar f is uniform on 0 ... L
(simulation-based calibration), and any credible interval covers f(x*) as often as it says.

Source: Talts et al. 2018, theorem 1 (arXiv 1804.06788).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from difftilt.errors import InputError


@dataclass(frozen=True)
class Calibration:
    """What the ranks say.

    Arguments:
        ranks: (M,) rank of each f(x*) among its L draws, 0 ... L.
        draws: L.
        p_value: of the uniformity of the ranks, chi-squared on ``bins`` equal bins.
        bins: of that test.
    """

    ranks: Int[Tensor, " M"]
    draws: int
    p_value: float
    bins: int

    def coverage(self, level: float) -> float:
        """How often the central credible interval of ``level`` covers the truth, a share of M.

        Raises:
            InputError: ``level`` outside (0, 1).
        """
        if not 0 < level < 1:
            raise InputError(f"level must lie in (0, 1), got {level}")
        share = (self.ranks.double() + 0.5) / (self.draws + 1)
        inside = (share - 0.5).abs() <= level / 2
        return float(inside.double().mean())


def calibration(
    truth: Float[Tensor, " M"],
    draws: Float[Tensor, "M L"],
    bins: int = 10,
    generator: torch.Generator | None = None,
) -> Calibration:
    """Simulation-based calibration of one scalar statistic.

    Arguments:
        truth: f(x*) of M simulated pairs.
        draws: f of L posterior draws for each pair's y.
        bins: of the uniformity test; L + 1 should be a multiple of it.
        generator: ranks of ties are drawn at random.

    Raises:
        InputError: fewer than 5 pairs per bin, or bins that do not divide L + 1.
    """
    pairs, count = draws.shape
    if pairs < 5 * bins or (count + 1) % bins:
        raise InputError(
            f"calibration with {bins} bins needs at least {5 * bins} pairs and L + 1 draws that "
            f"{bins} divides; got {pairs} pairs of L = {count} draws"
        )
    below = (draws < truth[:, None]).sum(1)
    ties = (draws == truth[:, None]).sum(1)
    share = torch.rand(pairs, generator=generator, dtype=torch.float64)
    ranks = below + (share * (ties + 1)).long()
    seen = torch.bincount(ranks * bins // (count + 1), minlength=bins)
    return Calibration(ranks, count, float(stats.chisquare(seen.numpy()).pvalue), bins)
