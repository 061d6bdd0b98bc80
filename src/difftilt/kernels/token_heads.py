"""Heads on the features of a prior of tokens, which a posterior learns beside its network."""

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.errors import InputError
from difftilt.kernels.networks import DenoiserKernel
from difftilt.models.heads import ZeroLinear
from difftilt.noise import GeneratorNoise
from difftilt.token_denoisers import TemperedDenoiser, TokenDenoiser, wide


def example_features(chain: Chain, wanted: str) -> Float[Tensor, "1 L d"]:
    """The features of one state of a prior, float32 or wider: their width, device and dtype.

    Arguments:
        chain: the prior.
        wanted: what needs them, for the error.

    Raises:
        InputError: the prior is not of tokens.
    """
    if not isinstance(chain.denoiser, TokenDenoiser):
        raise InputError(f"{wanted} needs a prior of tokens, a chain of a TokenDenoiser")
    first = chain.prior.given(None).base(1)
    x = first.at(first.draw(GeneratorNoise(torch.Generator())))
    with torch.no_grad():
        return wide(chain.denoiser.features(x, chain.diffusion.level(chain.steps, x)))


def tempered(kernel: DenoiserKernel, chain: Chain) -> DenoiserKernel:
    """A posterior of the same denoiser that also learns a temperature, the prior's at the start.

    Arguments:
        kernel: of a copy, or of adapters.
        chain: the prior.

    Raises:
        InputError: the prior is not of tokens.
    """
    hidden = example_features(chain, "a learned temperature")
    head = ZeroLinear(hidden.shape[-1]).to(hidden.device, hidden.dtype)
    return DenoiserKernel(TemperedDenoiser(kernel.denoiser, head), chain.diffusion)
