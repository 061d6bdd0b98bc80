"""Distances between clouds of points, and what they say of two sets of clouds.

A cloud is an unordered set of points. Its two distances of the field:

    Chamfer   mean_a min_b |a - b|² + mean_b min_a |a - b|²
    EMD       min over couplings of E |a - b|: the exact optimal transport, no approximation

and, of a set S of samples beside a set R of references, from their (S, R) distances alone:

    MMD     mean over R of the distance to the nearest sample (smaller is nearer)
    COV     share of R that is the nearest reference of some sample (larger is more diverse)
    1-NNA   accuracy of the leave-one-out nearest-neighbour test between S and R (0.5 is best)

JSD is the Jensen-Shannon divergence between the two sets' occupancies of a grid of cubes.

Source: Achlioptas et al. 2018 (arXiv 1707.02392) for MMD, COV and JSD; Yang et al. 2019, PointFlow
(arXiv 1906.12320), for 1-NNA; Lopez-Paz and Oquab 2017 (arXiv 1610.06545) for the test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError, require

CloudDistance = Literal["chamfer", "emd"]
PAIRS = 256  # of clouds whose point distances are held at once


def chamfer(a: Float[Tensor, "B P 3"], b: Float[Tensor, "B Q 3"]) -> Float[Tensor, " B"]:
    """Chamfer distance of each pair, in squared units.

    Raises:
        InputError: the clouds are not (B, P, 3) and (B, Q, 3).
    """
    _check_clouds(a, b)
    if len(a) != len(b):
        raise InputError(f"chamfer compares pairs of clouds; these are {len(a)} and {len(b)}")
    # Differences, not the expanded square: near points keep their digits.
    squared = (a[:, :, None] - b[:, None]).square().sum(3)
    return squared.amin(2).mean(1) + squared.amin(1).mean(1)


def earth_movers(a: Float[Tensor, "B P 3"], b: Float[Tensor, "B Q 3"]) -> Float[Tensor, " B"]:
    """Exact earth mover's distance of each pair (1-Wasserstein, uniform weights), in units.

    Raises:
        InputError: the clouds are not (B, P, 3) and (B, Q, 3).
        MissingPackage: POT is not installed.
    """
    _check_clouds(a, b)
    transport = require("ot", "shapes")
    costs = torch.cdist(a.double(), b.double()).cpu().numpy()
    return a.new_tensor([transport.emd2([], [], cost) for cost in costs])


DISTANCES: dict[CloudDistance, Callable[[Tensor, Tensor], Tensor]] = {
    "chamfer": chamfer,
    "emd": earth_movers,
}


@torch.no_grad()
def cloud_distances(
    a: Float[Tensor, "S P 3"], b: Float[Tensor, "R Q 3"], kind: CloudDistance = "chamfer"
) -> Float[Tensor, "S R"]:
    """The distance of every cloud of one set to every cloud of another.

    Arguments:
        a: clouds.
        b: clouds.
        kind: which distance; exact transport takes milliseconds a pair.

    Raises:
        InputError: an unknown distance, or sets that are no clouds.
    """
    if kind not in DISTANCES:
        raise InputError(f"no distance of clouds is called {kind!r}; choose chamfer or emd")
    _check_clouds(a, b)
    i, j = (
        k.flatten()
        for k in torch.meshgrid(torch.arange(len(a)), torch.arange(len(b)), indexing="ij")
    )
    parts = zip(i.split(PAIRS), j.split(PAIRS), strict=True)
    return torch.cat([DISTANCES[kind](a[s], b[r]) for s, r in parts]).reshape(len(a), len(b))


@dataclass(frozen=True)
class SetDistances:
    """What all pairs of distances say of samples beside references.

    Arguments:
        mmd: minimum matching distance, in the distance's units.
        coverage: in (0, 1].
        nearest: accuracy of the nearest-neighbour test in [0, 1]; 0.5 is best, 1 is worst.
    """

    mmd: float
    coverage: float
    nearest: float


def compare_sets(
    samples: Float[Tensor, "S P 3"],
    references: Float[Tensor, "R Q 3"],
    kind: CloudDistance = "chamfer",
) -> SetDistances:
    """MMD, COV and 1-NNA of two sets; for 1-NNA's 0.5 to be best they should be of one size.

    Raises:
        InputError: a set has fewer than two clouds.
    """
    if min(len(samples), len(references)) < 2:
        raise InputError(
            f"sets of clouds are compared from 2 of each on; these have {len(samples)} and "
            f"{len(references)}"
        )
    across = cloud_distances(samples, references, kind)
    own = cloud_distances(samples, samples, kind)
    theirs = cloud_distances(references, references, kind)
    return SetDistances(
        minimum_matching(across), coverage(across), nearest_neighbour_accuracy(own, across, theirs)
    )


def minimum_matching(across: Float[Tensor, "S R"]) -> float:
    """MMD: mean over the references of the distance to the nearest sample."""
    return float(across.amin(0).double().mean())


def coverage(across: Float[Tensor, "S R"]) -> float:
    """COV: share of the references that are the nearest one of some sample."""
    return len(across.argmin(1).unique()) / across.shape[1]


def nearest_neighbour_accuracy(
    own: Float[Tensor, "S S"], across: Float[Tensor, "S R"], theirs: Float[Tensor, "R R"]
) -> float:
    """1-NNA: how often a cloud's nearest other cloud is of its own set.

    A tie counts as a half, so that two copies of one set have 0.5 or less and never look apart.
    """
    far = torch.inf
    own, theirs = own.clone().fill_diagonal_(far), theirs.clone().fill_diagonal_(far)
    right = (
        _nearer(own.amin(1), across.amin(1)).sum() + _nearer(theirs.amin(1), across.amin(0)).sum()
    )
    return float(right) / (len(own) + len(theirs))


def _nearer(same: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return (same < other).double() + 0.5 * (same == other).double()


def occupancy_divergence(
    a: Float[Tensor, "S P 3"], b: Float[Tensor, "R Q 3"], cells: int = 16, side: float = 6.0
) -> float:
    """JSD between two sets' shares of points in a grid of cubes, nats in [0, log 2].

    Arguments:
        a: clouds.
        b: clouds.
        cells: of the grid along each axis.
        side: of the grid, around the origin; points outside count in the outermost cubes.

    Raises:
        InputError: sets that are no clouds, or fewer than one cell.
    """
    _check_clouds(a, b)
    if cells < 1 or not side > 0:
        raise InputError(f"a grid needs cells >= 1 and side > 0, got {cells} and {side}")
    p, q = (_occupancy(clouds, cells, side) for clouds in (a, b))
    middle = (p + q) / 2
    # 0 log 0 is 0.
    return float(
        (
            torch.xlogy(p, p / middle.clamp(min=1e-300)).sum()
            + torch.xlogy(q, q / middle.clamp(min=1e-300)).sum()
        )
        / 2
    )


def _occupancy(clouds: Tensor, cells: int, side: float) -> Float[Tensor, " cubes"]:
    place = ((clouds.reshape(-1, 3) / side + 0.5) * cells).floor().long().clamp(0, cells - 1)
    cube = (place[:, 0] * cells + place[:, 1]) * cells + place[:, 2]
    return torch.bincount(cube, minlength=cells**3).double() / len(cube)


def _check_clouds(a: Tensor, b: Tensor) -> None:
    for clouds in (a, b):
        if clouds.ndim != 3 or clouds.shape[2] != 3 or 0 in clouds.shape:
            raise InputError(f"clouds of points are (B, P, 3); these are {tuple(clouds.shape)}")
