"""What may be wanted of a shape besides its class: statistics of a cloud, and how near they are.

    symmetry   distance of the cloud to its mirror image in x = 0 (0 for a mirrored pair of halves)
    flatness   height over the longer side of the footprint (a table is flat, a lamp is not)
    volume     of the box around the cloud, cubic units
    hull       volume of the convex hull, cubic units; not differentiable, a black box

``wanted_shape`` makes a log-reward of one: a normal density around the wanted value, up to a
constant, so that log r is at most 0 and rejection gives the truth.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from difftilt.errors import InputError
from difftilt.rewards.wrappers import Bounded
from difftilt.tasks.shapes.distances import chamfer

Statistic = Literal["symmetry", "flatness", "volume", "hull"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)

MIRROR = (-1.0, 1.0, 1.0)
TRIM = 0.01


def wanted_shape(statistic: str, wanted: float, width: float) -> Bounded:
    """``log r = - (s(x) - wanted)² / (2 width²) <= 0``.

    Arguments:
        statistic: which statistic s.
        wanted: its value.
        width: standard deviation around it, above 0.

    Raises:
        InputError: an unknown statistic, or a width that is not positive.
    """
    if statistic not in STATISTICS:
        raise InputError(
            f"no statistic of shapes is called {statistic!r}; choose one of {', '.join(STATISTICS)}"
        )
    if not width > 0:
        raise InputError(f"the width of a statistic is a number above 0, got {width}")

    def log_reward(x_0: Tensor) -> Tensor:
        return -0.5 * ((SEEN[statistic](x_0) - wanted) / width).square()

    return Bounded(log_reward, 0.0)


def asymmetry(clouds: Float[Tensor, "B P 3"]) -> Float[Tensor, " B"]:
    """Chamfer distance of each cloud to its mirror image in x = 0.

    Two halves of independent points are never mirror images: this is what sampling leaves, plus
    what the shape's own lack of symmetry adds.
    """
    return chamfer(clouds, clouds * clouds.new_tensor(MIRROR))


def extents(clouds: Float[Tensor, "B P 3"]) -> Float[Tensor, "B 3"]:
    """Width, depth and height, between the 1 % and the 99 % quantiles of the coordinates."""
    ends = clouds.new_tensor([TRIM, 1 - TRIM])
    low, high = torch.quantile(clouds.float(), ends.float(), dim=1).to(clouds)
    return high - low


def flatness(clouds: Float[Tensor, "B P 3"]) -> Float[Tensor, " B"]:
    """Height over the longer side of the footprint."""
    width, depth, height = extents(clouds).unbind(1)
    return height / torch.maximum(width, depth).clamp(min=1e-6)


def box_volume(clouds: Float[Tensor, "B P 3"]) -> Float[Tensor, " B"]:
    """Volume of the box around each cloud, cubic units."""
    return extents(clouds).prod(1)


def hull_volume(clouds: Float[Tensor, "B P 3"]) -> Float[Tensor, " B"]:
    """Volume of each cloud's convex hull, cubic units; 0 where the points lie in a plane."""
    return clouds.new_tensor([_hull(cloud) for cloud in clouds.detach().cpu().double().numpy()])


def _hull(cloud: np.ndarray) -> float:
    try:
        return float(ConvexHull(cloud).volume)
    except QhullError:
        return 0.0


SEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "symmetry": asymmetry,
    "flatness": flatness,
    "volume": box_volume,
    "hull": hull_volume,
}
