"""Pseudoinverse guidance: linear measurements with Gaussian noise.

With ``y = A x_0 + std ε`` and ``x_0`` given ``x_n`` taken to be ``N(x̂_0(x_n), s_n² I)``,

    log h_n(x) = log N(y; A x̂_0(x), s_n² A Aᵀ + std²/β I),
    g = (∂x̂_0/∂x)ᵀ Aᵀ (s_n² A Aᵀ + std²/β I)^{-1} (y - A x̂_0),

by one vector-Jacobian product. The eigenvectors of ``A Aᵀ`` are found once: no step solves.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.errors import InputError
from difftilt.guidance.base import (
    NOT_DIFFERENTIABLE,
    Guidance,
    GuidedKernel,
    check_data_std,
    check_scale,
    clean_prediction,
    differentiable_reward,
    reconstruction_variance,
)
from difftilt.rewards.contract import LogReward, as_reward
from difftilt.rewards.wrappers import GaussianLikelihood

MOST_MEASUREMENTS = 4096


@dataclass(frozen=True)
class PiGDM(Guidance):
    """Pseudoinverse-guided diffusion (ΠGDM) for a linear ``GaussianLikelihood``.

    Arguments:
        likelihood: of the target; its operator linear (or affine) and differentiable. The reward
            given to ``kernel`` is not asked.
        scale: of the drift.
        data_std: standard deviation of the data, for ``s_n`` (``reconstruction_variance``).

    Raises:
        InputError: an argument out of range, more than 4096 measurements, or (in ``kernel``) an
            operator without a gradient or not linear.

    Source: Song et al. 2023, Pseudoinverse-guided diffusion models (ICLR 2023).
    """

    likelihood: GaussianLikelihood
    scale: float = 1.0
    data_std: float = 1.0

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_data_std(self.data_std)
        measured = self.likelihood.observation.numel()
        if measured > MOST_MEASUREMENTS:
            raise InputError(
                f"ΠGDM decomposes A Aᵀ, here {measured} by {measured}; it takes at most "
                f"{MOST_MEASUREMENTS} measurements: use DPS or LGDMC"
            )

    def kernel(self, chain: Chain, log_reward: LogReward, beta: float = 1.0) -> GuidedKernel:
        likelihood = self.likelihood
        rows = _matrix(likelihood, chain).double()
        spectrum, vectors = torch.linalg.eigh(rows @ rows.T)
        spectrum, noise = spectrum.clamp(min=0), likelihood.std**2 / beta

        def log_h(x: Tensor, n: int | Tensor, condition: Tensor | None) -> Float[Tensor, " B"]:
            measured = likelihood.forward_operator(clean_prediction(chain, x, n, condition))
            residual = (likelihood.observation.to(measured) - measured).flatten(1)
            spread = reconstruction_variance(chain, x, n, self.data_std).reshape(-1, 1)
            variance = spread * spectrum.to(residual) + noise
            return -0.5 * ((residual @ vectors.to(residual)) ** 2 / variance + variance.log()).sum(
                1
            )

        return GuidedKernel(chain, log_h, self.scale)


def _matrix(likelihood: GaussianLikelihood, chain: Chain) -> Float[Tensor, "m d"]:
    """A as a matrix: row j is the gradient of value j at sample j of one batch."""
    with torch.enable_grad():
        points = chain.empty(likelihood.observation.numel()).requires_grad_(True)
        # Asked as a reward first, for its own sentences about shape and gradient.
        if not differentiable_reward(as_reward(likelihood), points[:1], None).requires_grad:
            raise InputError(NOT_DIFFERENTIABLE)
        values = likelihood.forward_operator(points).flatten(1)
        (rows,) = torch.autograd.grad(values.diagonal().sum(), points)
    _check_linear(likelihood, chain, rows.flatten(1))
    return rows.flatten(1)


@torch.no_grad()
def _check_linear(likelihood: GaussianLikelihood, chain: Chain, rows: Tensor) -> None:
    probe = torch.randn((2, *chain.event_shape), generator=torch.Generator().manual_seed(0))
    probe = probe.to(chain.like)
    moved = likelihood.forward_operator(probe) - likelihood.forward_operator(0 * probe)
    if not torch.allclose(moved.flatten(1), probe.flatten(1) @ rows.T, rtol=1e-2, atol=1e-3):
        raise InputError(
            "the forward operator is not linear, so ΠGDM does not apply; use DPS or LGDMC"
        )
