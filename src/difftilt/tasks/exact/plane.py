"""Quadrature of any chain in the plane: the law of x_0 on a grid.

One step pushes a density through the kernel's mean and blurs it,

    p_{n-1} = N(0, s_n² I) * (m_n)_# p_n.

The pushed points are deposited on the next grid with the weights of cubic interpolation, which keep
their mass, mean, variance and skewness; the blur is a product with a Gaussian matrix along each
axis. A level's spacing is a fraction of the noise that its density holds, so noisy levels are
cheap. The data's cells are split, because rewards and labels jump inside them. The error shrinks
with ``fineness``; halving it is the check (the tests do).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain

Mass = Float[Tensor, " M"]
Points = Float[Tensor, "M 2"]

FINEST, COARSEST = 0.015, 0.06
SPLIT = 6


@dataclass(frozen=True)
class Cloud:
    """A law in the plane as weighted grid points; weights sum to 1.

    Arguments:
        x: points (M, 2), float64.
        mass: (M,), float64.
    """

    x: Points
    mass: Mass

    def expectation(self, values: Float[Tensor, "M ..."]) -> Tensor:
        """``E[f(x)]`` from the values of f at the points, (M,) or (M, k)."""
        return self.mass @ values

    def tilted(self, log_reward: Mass) -> "Cloud":
        """The law re-weighted by ``exp(log_reward)`` and normalised."""
        weighted = self.mass * log_reward.exp()
        return Cloud(self.x, weighted / weighted.sum())


def data_law(chain: Chain, fineness: float = 1.0, reach: float = 5.0) -> Cloud:
    """The law of a plane chain's x_0 by quadrature.

    Arguments:
        chain: a prior of 2-vectors, every step with a density.
        fineness: scale of all spacings; smaller is finer.
        reach: the grids cover [-reach, reach]².
    """
    axis = _axis(COARSEST * fineness, reach)
    column = torch.exp(-0.5 * (axis / chain.gaussian.base_std) ** 2)
    column = column / column.sum()
    mass = torch.outer(column, column)
    for n in range(chain.steps, 0, -1):
        x, weight = _points(axis, mass)
        std = float(chain.gaussian.tables.std[n])
        axis = _axis(fineness * min(max(std / 4, FINEST), COARSEST), reach)
        deposit = _deposit(_means(chain, x, n), weight, axis)
        if n == 1:
            return _split(axis, deposit, std)
        mass = _blurred(deposit, axis, std)
    raise AssertionError("a chain has at least one step")


def _split(axis: Float[Tensor, " G"], deposit: Float[Tensor, "G G"], std: float) -> Cloud:
    """The last blur, each node as SPLIT² points of its cell; their spread is part of the blur."""
    spacing = float(axis[1] - axis[0])
    inside = spacing * ((torch.arange(SPLIT, dtype=torch.float64) + 0.5) / SPLIT - 0.5)
    rest = math.sqrt(std**2 - float(inside.square().mean()))
    x, mass = _points(axis, _blurred(deposit, axis, rest))
    offsets = torch.cartesian_prod(inside, inside)
    points = (x[:, None] + offsets).reshape(-1, 2)
    return Cloud(points, (mass / len(offsets)).repeat_interleave(len(offsets)))


def _axis(spacing: float, reach: float) -> Float[Tensor, " G"]:
    count = round(reach / spacing)
    return torch.linspace(-reach, reach, 2 * count + 1, dtype=torch.float64)


def _points(axis: Float[Tensor, " G"], mass: Float[Tensor, "G G"]) -> tuple[Points, Mass]:
    """The grid points that hold mass, and their mass; what is dropped sums to less than 1e-5."""
    keep = mass.abs() > 1e-11
    row, column = keep.nonzero(as_tuple=True)
    weight = mass[keep]
    return torch.stack([axis[row], axis[column]], 1), weight / weight.sum()


def _means(chain: Chain, x: Points, n: int) -> Points:
    """The kernel's means at float64 points, by the chain's own dtype and in chunks."""
    parts = []
    for part in x.to(chain.like.dtype).split(1024):
        parts.append(chain.gaussian.reverse(chain.predict(part, n), part, n).mean)
    return torch.cat(parts).double()


def _deposit(x: Points, weight: Mass, axis: Float[Tensor, " G"]) -> Float[Tensor, "G G"]:
    """Spread point masses over the 4 × 4 nearest nodes with cubic Lagrange weights."""
    nodes = len(axis)
    place = (x - axis[0]) / (axis[1] - axis[0])
    left = place.floor().clamp(1, nodes - 3)
    first, second = _lagrange((place - left).T)
    left = left.long()
    mass = torch.zeros(nodes * nodes, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            index = (left[:, 0] + i - 1) * nodes + left[:, 1] + j - 1
            mass.index_add_(0, index, weight * first[i] * second[j])
    return mass.reshape(nodes, nodes)


def _lagrange(t: Float[Tensor, "2 M"]) -> tuple[list[Mass], list[Mass]]:
    """Cubic weights of the nodes -1, 0, 1, 2 at t in [0, 1), for each of the two axes."""
    weights = [
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    ]
    return [w[0] for w in weights], [w[1] for w in weights]


def _blurred(
    mass: Float[Tensor, "G G"], axis: Float[Tensor, " G"], std: float
) -> Float[Tensor, "G G"]:
    eps = (axis[:, None] - axis) / std
    kernel = torch.exp(-0.5 * eps**2).masked_fill_(eps.abs() > 9, 0)
    kernel = kernel / kernel[len(axis) // 2].sum()
    return kernel @ mass @ kernel
