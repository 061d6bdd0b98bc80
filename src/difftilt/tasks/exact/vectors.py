"""The chain that every exact problem runs on: DDPM on vectors, with a density at every step."""

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.denoisers import Denoiser
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.schedules import levels_from_log_snr


def vector_chain(
    denoiser: Denoiser,
    log_snr: Float[Tensor, " N"],
    dimension: int,
    dtype: torch.dtype = torch.float32,
    clip: float | None = None,
) -> Chain:
    """DDPM's chain on variance-preserving levels.

    Steps have the posterior variance, except step 1: its variance would be 0, which has no density,
    so it takes ``sigma_1² = 1 - alpha_1²``.

    Arguments:
        denoiser: in ``dtype``.
        log_snr: at n = 1 ... N, falling.
        dimension: d of the states (B, d).
        dtype: of the states.
        clip: bound of the clean prediction, or None.
    """
    levels = levels_from_log_snr(log_snr)
    diffusion = GaussianDiffusion(levels, clip=clip).with_std(1, float(levels.sigma[1]))
    return Chain(denoiser, diffusion, (dimension,), like=torch.zeros((), dtype=dtype))
