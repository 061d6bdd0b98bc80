"""The noise space of a generator as a diffusion: standard normal data, known exactly.

A deterministic or few-step generator ``x = f(z)``, ``z ~ N(0, I)``, has no chain to tilt, but its
noise can be given one. The Ornstein-Uhlenbeck process leaves ``N(0, I)`` as it is, and its exact
reverse step is

    z_{n-1} = ρ z_n + sqrt(1 - ρ²) ε,       ρ = alpha_n / alpha_{n-1},

so that the chain's ``z_0`` is exactly ``N(0, I)`` for every number of steps. Every step is
stochastic. In DDPM's terms it is the ancestral kernel of the exact denoiser
``E[z_0 | z_n] = alpha_n z_n`` with the variance of the forward step ("fixed_large").

Source: Venkatraman et al. 2025, Outsourced diffusion sampling (arXiv 2502.06999).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.denoisers import Denoiser, Level
from difftilt.diffusions.gaussian import GaussianDiffusion, ancestral_tables
from difftilt.errors import InputError
from difftilt.schedules import NoiseLevels


class StandardNormalDenoiser(Denoiser):
    """``E[x_0 | x_t] = alpha x_t / (alpha² + sigma²)``: exact for ``x_0 ~ N(0, I)``."""

    def forward(self, x_t: Float[Tensor, "B ..."], level: Level) -> Float[Tensor, "B ..."]:
        return x_t * (level.alpha / (level.alpha**2 + level.sigma**2))


def latent_diffusion(levels: NoiseLevels) -> GaussianDiffusion:
    """The diffusion under which ``StandardNormalDenoiser`` keeps ``N(0, I)`` at every level.

    Arguments:
        levels: variance-preserving noise levels, level 0 being data.

    Raises:
        InputError: ``alpha² + sigma²`` is not 1, or level 0 is not data.
    """
    square = levels.alpha**2 + levels.sigma**2
    if not torch.allclose(square, torch.ones_like(square), rtol=0, atol=1e-9):
        raise InputError(
            "the levels of a latent chain have to preserve the variance (alpha² + sigma² = 1); "
            "use VariancePreserving().levels(steps) or levels_from_log_snr"
        )
    if float(levels.sigma[0]) != 0:
        raise InputError(f"level 0 of a latent chain is data, so sigma 0, got {levels.sigma[0]}")
    ratio = levels.alpha[1:] / levels.alpha[:-1]
    std = torch.cat([torch.zeros(1, dtype=torch.float64), (1 - ratio**2).sqrt()])
    return GaussianDiffusion(levels, ancestral_tables(levels, std), base_std=1.0)
