"""How far draws of a policy are from its optimal law in the plane: by modes, and within them.

* the modes: total variation between shares of the draws and exact weights;
* within them: the largest deviation of the distribution functions along both axes of the plane,
  which a policy of right weights and wrong actions does not pass.

Draws come in parts. Where the shares are plainly too far off, no further ones are drawn: more of
them would only print another digit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.diagnostics.distances import mode_total_variation
from difftilt.tasks.bandits.line import LineLaw
from difftilt.tasks.exact.plane import Cloud

WITHIN = 0.02
"""The total variation that the bench asks for."""
PART = 4000
PLAIN = 3.0
"""In expected distances of the truth's own draws, which spread by less than a half of one."""


@dataclass(frozen=True)
class Judged:
    """How far a policy is from the optimal one, in one state for one β.

    Arguments:
        tv: total variation, of mode weights or of whole laws on the line.
        floor: what draws of the truth itself would show on average; 0 where nothing is drawn.
        marginal: largest deviation of a distribution function along an axis.
    """

    tv: float
    floor: float
    marginal: float


@dataclass(frozen=True)
class PlaneTruth:
    """What draws in the plane are held to.

    Arguments:
        weights: (K,) of the modes.
        marginals: along both axes.
    """

    weights: Float[Tensor, " K"]
    marginals: tuple[LineLaw, ...]


def marginals(cloud: Cloud) -> tuple[LineLaw, ...]:
    """The laws of both coordinates."""
    found = []
    for column in cloud.x.T:
        x, place = column.unique(return_inverse=True)
        found.append(LineLaw(x, torch.zeros_like(x).index_add(0, place, cloud.mass)))
    return tuple(found)


def deviation(masses: Float[Tensor, " G"], truth: LineLaw) -> float:
    """The largest deviation of the distribution functions of two laws on one grid."""
    return float((masses - truth.mass).cumsum(0).abs().max())


def counting_floor(masses: Float[Tensor, " K"], draws: int) -> float:
    """``E TV`` between the shares of n independent draws and their law, for large n.

    Each share errs like a Gaussian of variance ``p (1 - p) / n``, whose mean size is
    ``sqrt(2 / π)`` of its standard deviation.
    """
    return (
        0.5
        * float((masses * (1 - masses)).clamp(min=0).sqrt().sum())
        * math.sqrt(2 / (math.pi * draws))
    )


def counted(
    truth: PlaneTruth,
    draw: Callable[[int], tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]],
    draws: int,
) -> Judged:
    """Count draws, part by part.

    Arguments:
        truth: mode weights and marginals.
        draw: ``n -> (places in the plane, modes)`` of n new draws of the policy.
        draws: how many at most.
    """
    modes = torch.zeros_like(truth.weights)
    columns = [torch.zeros_like(law.mass) for law in truth.marginals]
    # Between grid points, so that a count is compared with a sum of masses.
    edges = [(law.x[1:] + law.x[:-1]) / 2 for law in truth.marginals]
    done, tv, floor = 0, 1.0, 1.0
    while done < draws:
        part = min(PART, draws - done)
        places, found = draw(part)
        modes += torch.bincount(found, minlength=len(modes))
        for count, edge, place in zip(columns, edges, places.double().T.contiguous(), strict=True):
            count += torch.bincount(torch.bucketize(place, edge), minlength=len(count))
        done += part
        tv, floor = mode_total_variation(modes, truth.weights), counting_floor(truth.weights, done)
        if tv > WITHIN + PLAIN * floor:
            break
    gaps = [deviation(c / done, law) for c, law in zip(columns, truth.marginals, strict=True)]
    return Judged(tv, floor, max(gaps))
