"""Quadrature of a chain that factorises over coordinates: one coordinate on a grid.

With a kernel matrix ``A_n[i, j] = h N(x_j; m_n(x_i), s_n²)``, the marginals run down,
``p_{n-1} = p_n A_n``, and expected rewards run up, ``h_n = A_n h_{n-1}`` with
``h_n(x) = E[h_0(x_0) | x_n = x]``. Each sum is the trapezoid rule, which converges geometrically
for smooth integrands once the spacing is below the smallest std of a step.

A reward in the plane of the form ``r(x, y) = Σ_ij C_ij f_i(x) f_j(y)`` keeps that form at every
level (``PlaneReward``), so a two-dimensional problem needs one-dimensional matrices only.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.denoisers import Denoiser
from difftilt.diffusions.gaussian import GaussianDiffusion


class Line:
    """One coordinate of a product chain on a grid, in float64.

    Arguments:
        denoiser: the prior's, in float64; coordinates must not interact.
        diffusion: levels and reverse kernels, every step with a density.
        spacing: h of the levels 1 ... N, over [-reach, reach].
        data_spacing: h of level 0, over [-data_reach, data_reach]: rewards may have kinks.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        diffusion: GaussianDiffusion,
        spacing: float = 0.01,
        data_spacing: float = 0.002,
        reach: float = 6.0,
        data_reach: float = 3.0,
    ) -> None:
        self.noisy = _grid(spacing, reach)
        self.x = _grid(data_spacing, data_reach)
        self.spacing, self.data_spacing = spacing, data_spacing
        self.chain = Chain(denoiser, diffusion, (1,), like=self.x.new_zeros(()))

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return self.chain.steps

    def kernel(self, n: int) -> tuple[Float[Tensor, "G to"], Float[Tensor, "G to"]]:
        """``A_n`` and the standardised increments ``(x_j - m_n(x_i)) / s_n``."""
        column = self.noisy[:, None]
        law = self.chain.gaussian.reverse(self.chain.predict(column, n), column, n)
        landed, spacing = (self.x, self.data_spacing) if n == 1 else (self.noisy, self.spacing)
        eps = (landed - law.mean) / law.std
        # Beyond 12 std there are only denormal numbers, which cost a hundred times as much.
        density = torch.exp(-0.5 * eps**2).masked_fill_(eps.abs() > 12, 0)
        return density.mul_(spacing / (float(law.std) * math.sqrt(2 * math.pi))), eps

    @cached_property
    def marginals(self) -> list[Float[Tensor, " G"]]:
        """Point masses of ``x_0, ..., x_N`` on their grids; each sums to 1."""
        std = self.chain.gaussian.base_std
        mass = torch.exp(-0.5 * (self.noisy / std) ** 2)
        rows = [mass / mass.sum()]
        for n in range(self.steps, 0, -1):
            rows.append(rows[-1] @ self.kernel(n)[0])
        return rows[::-1]

    def overlap(self, low: float, high: float) -> Float[Tensor, " G"]:
        """Share of each data cell that lies in [low, high]: an indicator for trapezoid sums."""
        left, right = self.x - self.data_spacing / 2, self.x + self.data_spacing / 2
        inside = right.clamp(max=high) - left.clamp(min=low)
        return (inside / self.data_spacing).clamp(0, 1)


def _grid(spacing: float, reach: float) -> Float[Tensor, " G"]:
    count = round(reach / spacing)
    return spacing * torch.arange(-count, count + 1, dtype=torch.float64)


@dataclass(frozen=True)
class PlaneReward:
    """``r(x, y) = Σ_ij coupling_ij f_i(x) f_j(y)`` on two copies of a line.

    Arguments:
        line: the coordinate chain.
        factors: ``f_i`` on the line's data grid, (G, K).
        coupling: C, (K, K).
    """

    line: Line
    factors: Float[Tensor, "G K"]
    coupling: Float[Tensor, "K K"]

    def moment(self, f: Float[Tensor, " G"], g: Float[Tensor, " G"], power: int = 1) -> float:
        """``E_p[r^power f(x) g(y)]`` over the chain's own p(x_0), for power 1 or 2."""
        mass = self.line.marginals[0]
        if power == 1:
            left, right = (mass * f) @ self.factors, (mass * g) @ self.factors
            return float(left @ self.coupling @ right)
        value = self.factors @ self.coupling @ self.factors.T
        return float((mass * f) @ value**power @ (mass * g))

    @property
    def z(self) -> float:
        """``E_p[r]``."""
        one = torch.ones_like(self.line.x)
        return self.moment(one, one)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Posterior mean (2,) and covariance (2, 2) of x_0."""
        x, one, z = self.line.x, torch.ones_like(self.line.x), self.z
        mean = x.new_tensor([self.moment(x, one), self.moment(one, x)]) / z
        cross = self.moment(x, x)
        square = [self.moment(x * x, one), self.moment(one, x * x)]
        second = x.new_tensor([[square[0], cross], [cross, square[1]]]) / z
        return mean, second - torch.outer(mean, mean)

    def cells(self, indicators: Float[Tensor, "G cells"]) -> Float[Tensor, "cells cells"]:
        """Posterior mass of each product of two cells."""
        weighted = indicators.T * self.line.marginals[0] @ self.factors
        return weighted @ self.coupling @ weighted.T / self.z

    def kl_to_prior(self) -> float:
        """``KL(π ‖ p) = E_π[log r] - log Z``."""
        return self._mean_log(self.line.marginals[0], self.factors) - self._log_z

    def prior_ess(self) -> float:
        """``E_p[r]² / E_p[r²]``."""
        one = torch.ones_like(self.line.x)
        return self.z**2 / self.moment(one, one, power=2)

    def floors(self) -> dict[str, float]:
        """Least path-KL ``KL(π ‖ q)`` of the Gaussian kernel families, see ``Truth.floors``.

        The exactly tilted kernel k* has mean shift δ* and variance v* in the prior's standardised
        coordinates. The best shift leaves ``KL(k* ‖ p) - |δ*|²/2``; a free diagonal also saves
        ``Σ_i (v*_i - 1 - log v*_i) / 2``. The sum of ``E_π KL(k* ‖ p)`` telescopes to
        ``E_π[log r] - E_π[log h_N]``.
        """
        total = self._mean_log(self.line.marginals[0], self.factors)
        shift = spread = 0.0
        top = self.factors
        for n in range(1, self.line.steps + 1):
            kernel, eps = self.line.kernel(n)
            shifted, squared = (kernel * eps) @ top, (kernel * eps**2) @ top
            top = kernel @ top
            gains = self._gains(self.line.marginals[n], top, shifted, squared)
            shift, spread = shift + gains[0], spread + gains[1]
        start = self._mean_log(self.line.marginals[-1], top)
        prior_variance = total - start - shift
        return {
            "prior_variance": prior_variance,
            "diagonal_variance": prior_variance - spread,
            "initial": start - self._log_z,
        }

    @property
    def _log_z(self) -> float:
        return float(torch.tensor(self.z, dtype=torch.float64).log())

    def _mean_log(self, mass: Tensor, top: Tensor) -> float:
        """``E_π[log h_n(x_n)]``."""
        keep = _matters(mass, top)
        mass, top = mass[keep], top[keep]
        value = top @ self.coupling @ top.T
        return float(mass @ torch.xlogy(value, value.clamp(min=1e-300)) @ mass) / self.z

    def _gains(
        self, mass: Tensor, top: Tensor, shifted: Tensor, squared: Tensor
    ) -> tuple[float, float]:
        """``E_π[Σ_i δ*_i²/2]`` and ``E_π[Σ_i (v*_i - 1 - log v*_i)/2]`` of one step."""
        keep = _matters(mass, top)
        mass, top, shifted, squared = mass[keep], top[keep], shifted[keep], squared[keep]
        shift = spread = 0.0
        for coupling in (self.coupling, self.coupling.T):
            other = coupling @ top.T
            value = (top @ other).clamp(min=1e-300)
            delta = (shifted @ other) / value
            variance = ((squared @ other) / value - delta**2).clamp(min=1e-12)
            posterior = mass[:, None] * value * mass / self.z
            shift += float((posterior * delta**2).sum()) / 2
            spread += float((posterior * (variance - 1 - variance.log())).sum()) / 2
        return shift, spread


def _matters(mass: Float[Tensor, " G"], top: Float[Tensor, "G K"]) -> Tensor:
    """Where the posterior has more than 1e-14 of its mass: elsewhere there is only underflow."""
    tilted = mass * top.sum(1)
    return tilted > 1e-14 * tilted.sum()
