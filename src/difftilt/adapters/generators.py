"""A generator ``x = f(z)`` of standard normal noise, as a chain over its noise."""

import torch

from difftilt.chains.chain import Chain
from difftilt.diffusions.latent import StandardNormalDenoiser, latent_diffusion
from difftilt.errors import InputError
from difftilt.schedules import NoiseLevels, VariancePreserving


def latent_chain(
    event_shape: tuple[int, ...],
    steps: int = 20,
    levels: NoiseLevels | None = None,
    device: torch.device | str | None = None,
) -> Chain:
    """A chain of ``steps`` stochastic steps whose ``z_0`` is exactly ``N(0, I)``.

    Its posterior under the reward ``r(f(z))`` is a sampler of the generator's posterior; decoding
    ``x = f(z)`` is the caller's.

    Arguments:
        event_shape: shape of one z.
        steps: number of steps N.
        levels: other variance-preserving levels of N steps; default a linear log-SNR.
        device: where the chain lives.

    Raises:
        InputError: an empty shape, fewer than one step, or levels that do not fit.

    Source: Venkatraman et al. 2025 (arXiv 2502.06999).
    """
    if any(size < 1 for size in event_shape):
        raise InputError(f"event_shape needs positive sizes, got {event_shape}")
    levels = VariancePreserving().levels(steps) if levels is None else levels
    if levels.steps != steps:
        raise InputError(f"the levels given have {levels.steps} steps, not steps={steps}")
    like = torch.zeros((), device=device)
    return Chain(StandardNormalDenoiser(), latent_diffusion(levels), event_shape, like=like)
