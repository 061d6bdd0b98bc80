"""Noise levels: how much data and how much noise a state holds.

A forward process has the marginals ``x_t = alpha_t x_0 + sigma_t eps``. A ``Schedule`` gives
``(alpha_t, sigma_t)`` for a continuous time ``t`` in [0, 1] (0 is data, 1 is noise); a sampler
needs only finitely many of them, so ``Schedule.levels(steps)`` makes ``NoiseLevels``, the table on
which a chain runs. Index ``n`` falls while sampling, ``n = N, ..., 1, 0``; level 0 is data.

* variance preserving (DDPM, DDIM): ``alpha² + sigma² = 1``
* variance exploding (EDM, Euler): ``alpha = 1``
* rectified flow: ``alpha = 1 - t``, ``sigma = t``

What a network is *told* about a level (``time``) is kept apart from what the level *is*.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError


@dataclass(frozen=True)
class NoiseLevels:
    """The levels ``n = 0 ... N`` of a discretised process, in float64.

    Arguments:
        time: what the network is told at level n, shape (N + 1,); entry 0 is never used.
        alpha: signal scale, shape (N + 1,).
        sigma: noise scale, shape (N + 1,), strictly increasing relative to ``alpha``.

    Raises:
        InputError: shapes differ, fewer than one step, or the noise does not grow with n.
    """

    time: Float[Tensor, " levels"]
    alpha: Float[Tensor, " levels"]
    sigma: Float[Tensor, " levels"]

    def __post_init__(self) -> None:
        if not (self.time.shape == self.alpha.shape == self.sigma.shape) or len(self.alpha) < 2:
            raise InputError(
                "noise levels need time, alpha and sigma of one length N + 1 >= 2, got "
                f"{tuple(self.time.shape)}, {tuple(self.alpha.shape)}, {tuple(self.sigma.shape)}"
            )
        ratio = self.sigma / self.alpha
        if not bool((ratio[1:] > ratio[:-1]).all()):
            raise InputError(
                "noise levels must grow with n: sigma/alpha has to increase strictly from data "
                "(n = 0) to noise (n = N)"
            )

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return len(self.alpha) - 1


class Schedule(ABC):
    """A continuous noise schedule ``t -> (alpha_t, sigma_t)`` on [0, 1]."""

    @abstractmethod
    def alpha_sigma(self, t: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
        """Signal and noise scale at times ``t`` in [0, 1], same shape as ``t``."""

    def levels(self, steps: int) -> NoiseLevels:
        """``steps`` equal steps in t; level 0 is exactly data.

        Raises:
            InputError: ``steps`` is below 1.
        """
        if steps < 1:
            raise InputError(f"a chain needs at least 1 step, got steps={steps}")
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        alpha, sigma = self.alpha_sigma(t)
        alpha[0], sigma[0] = 1.0, 0.0
        return NoiseLevels(t, alpha, sigma)


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """Linear log-SNR between two ends: ``log alpha²/sigma²`` falls from ``clean`` to ``noisy``.

    Source: Kingma et al. 2021, Variational Diffusion Models, eq. 3 (arXiv 2107.00630).
    """

    clean: float = 8.0
    noisy: float = -10.0

    def alpha_sigma(self, t: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
        log_snr = self.clean + (self.noisy - self.clean) * t
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """``alpha = 1``, sigma by the rho-schedule of EDM.

    Source: Karras et al. 2022, eq. 5 (arXiv 2206.00364).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def alpha_sigma(self, t: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.ones_like(t), (low + (high - low) * t) ** self.rho


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """``x_t = (1 - s) x_0 + s eps`` with ``s = t_max t``.

    ``t_max`` below 1 keeps sigma/alpha finite; the network is told ``s``.
    Source: Liu et al. 2022 (arXiv 2209.03003).
    """

    t_max: float = 0.999

    def alpha_sigma(self, t: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
        return 1 - self.t_max * t, self.t_max * t


@dataclass(frozen=True)
class Polynomial(Schedule):
    """``alpha² = (1 - 2 precision) (1 - t^power)² + precision``, variance preserving.

    Source: Hoogeboom et al. 2022, appendix B (arXiv 2203.17003), whose power is 2.
    """

    power: float = 2.0
    precision: float = 1e-5

    def alpha_sigma(self, t: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
        square = (1 - 2 * self.precision) * (1 - t**self.power) ** 2 + self.precision
        return square.sqrt(), (1 - square).sqrt()


def levels_from_log_snr(log_snr: Float[Tensor, " N"]) -> NoiseLevels:
    """Variance-preserving levels ``1 ... N`` from falling log-SNRs; level 0 is data.

    Arguments:
        log_snr: ``log alpha²/sigma²`` in nats at n = 1 ... N, strictly decreasing.
    """
    log_snr = log_snr.to(torch.float64)
    alpha = torch.cat([torch.ones(1, dtype=torch.float64), torch.sigmoid(log_snr).sqrt()])
    sigma = torch.cat([torch.zeros(1, dtype=torch.float64), torch.sigmoid(-log_snr).sqrt()])
    time = torch.arange(len(alpha), dtype=torch.float64) / (len(alpha) - 1)
    return NoiseLevels(time, alpha, sigma)


def quantile_log_snr(
    steps: int, centre: float = 2.0, spread: float = 1.5, clean: float = 7.8, noisy: float = -10.0
) -> Float[Tensor, " N"]:
    """log-SNRs that spend most steps where the modes of unit-variance data are decided.

    Quantiles, from ``clean`` down to ``noisy``, of ``3/4 N(centre, spread²) + 1/4 U(noisy, clean)``
    truncated to [noisy, clean].
    """
    grid = torch.linspace(noisy, clean, 20_001, dtype=torch.float64)
    normal = torch.exp(-0.5 * ((grid - centre) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
    density = 0.75 * normal + 0.25 / (clean - noisy)
    cumulative = torch.cumulative_trapezoid(density, grid)
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), cumulative])
    cumulative = cumulative / cumulative[-1]
    # A single level is the noisy one.
    wanted = torch.arange(steps - 1, -1, -1, dtype=torch.float64) / max(steps - 1, 1)
    right = torch.searchsorted(cumulative, wanted).clamp(1, len(grid) - 1)
    share = (wanted - cumulative[right - 1]) / (cumulative[right] - cumulative[right - 1])
    return grid[right - 1] + share * (grid[right] - grid[right - 1])
