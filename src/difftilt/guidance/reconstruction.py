"""Guidance through the prior's clean prediction, by a reward that has a gradient.

``x_0`` given ``x_n`` is taken to be a point (``DPS``) or a Gaussian around the clean prediction
``x̂_0(x_n)`` of variance ``s_n²`` (``LGDMC``, and ``PiGDM`` in closed form). Every gradient goes
through the prior's network: one more call per step with a graph, and a backward pass.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt._ops import log_mean_exp
from difftilt.chains.chain import Chain
from difftilt.errors import InputError
from difftilt.guidance.base import (
    Guidance,
    GuidedKernel,
    check_data_std,
    check_scale,
    clean_prediction,
    differentiable_reward,
    reconstruction_variance,
)
from difftilt.rewards.contract import LogReward, as_reward

LEAST_ENERGY = 1e-12


@dataclass(frozen=True)
class DPS(Guidance):
    """Diffusion posterior sampling: ``g = ∇_{x_n} β log r(x̂_0(x_n))``.

    As published, for a Gaussian likelihood, the mean moves by a length that the step's variance
    does not change, ``-ζ ∇|y - A x̂_0|² / |y - A x̂_0|``. With ``normalised`` this does the same for
    any reward of a known largest value M: with the energy ``E = β (M - log r(x̂_0))`` the mean moves
    by ``-scale ∇E / √E``. At β = 1 a Gaussian likelihood of noise ``std`` has
    ``|y - A x̂_0|² = 2 std² E``, so the paper's step is ``scale = √2 std ζ``.

    Arguments:
        scale: of the drift; 1 for the gradient itself.
        normalised: move by ``-scale ∇E / √E``; needs a bound of log r.

    Raises:
        InputError: a scale that is not finite; when sampling: the reward has no gradient.

    Source: Chung et al. 2023, algorithm 1 (arXiv 2209.14687).
    """

    scale: float = 1.0
    normalised: bool = False

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def kernel(self, chain: Chain, log_reward: LogReward, beta: float = 1.0) -> GuidedKernel:
        reward = as_reward(log_reward)
        bound = reward.bound
        if self.normalised and bound is None:
            raise InputError(
                "DPS(normalised=True) measures log r from its largest value; declare it with "
                "prior.tilt(log_reward, log_bound=...)"
            )

        def log_h(x: Tensor, n: int | Tensor, condition: Tensor | None) -> Float[Tensor, " B"]:
            log_r = differentiable_reward(
                reward, clean_prediction(chain, x, n, condition), condition
            )
            if not self.normalised or bound is None:
                return beta * log_r
            # Below the least energy the sample fits; √E has no gradient at 0.
            return -2 * (beta * (bound - log_r)).clamp(min=LEAST_ENERGY).sqrt()

        return GuidedKernel(chain, log_h, self.scale, fixed_step=self.normalised)


@dataclass(frozen=True)
class LGDMC(Guidance):
    """Loss-guided diffusion: ``g = ∇ log mean_k r^β(x̂_0(x_n) + s_n ξ_k)``.

    ``s_n² = data_std² sigma_n² / (alpha_n² data_std² + sigma_n²)``, the variance of ``x_0`` given
    ``x_n`` for Gaussian data of that standard deviation. The ``ξ_k`` are drawn once per kernel, in
    antithetic pairs, and shared by all states and steps: the density of a step has to be a function
    of its state.

    Arguments:
        samples: K, even; each step asks the reward K times per state.
        scale: of the drift.
        data_std: standard deviation of the data.
        seed: of the ``ξ_k``.

    Raises:
        InputError: an argument out of range; when sampling: the reward has no gradient.

    Source: Song et al. 2023, Loss-guided diffusion models for plug-and-play controllable generation
    (ICML 2023), Monte Carlo variant.
    """

    samples: int = 8
    scale: float = 1.0
    data_std: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_data_std(self.data_std)
        if self.samples < 2 or self.samples % 2:
            raise InputError(f"samples come in antithetic pairs: even, >= 2, got {self.samples}")

    def kernel(self, chain: Chain, log_reward: LogReward, beta: float = 1.0) -> GuidedKernel:
        reward, draws = as_reward(log_reward), self._draws(chain)

        def log_h(x: Tensor, n: int | Tensor, condition: Tensor | None) -> Float[Tensor, " B"]:
            std = reconstruction_variance(chain, x, n, self.data_std).sqrt()
            clean = clean_prediction(chain, x, n, condition)
            # K-major, so that K copies of the conditions line up.
            around = (clean + std * draws.to(x)).flatten(0, 1)
            repeated = None if condition is None else torch.cat([condition] * self.samples)
            log_r = differentiable_reward(reward, around, repeated)
            return log_mean_exp(beta * log_r.unflatten(0, (self.samples, -1)))

        return GuidedKernel(chain, log_h, self.scale)

    def _draws(self, chain: Chain) -> Float[Tensor, "K 1 ..."]:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.samples // 2, 1, *chain.event_shape)
        half = torch.randn(shape, generator=generator, dtype=torch.float64)
        return torch.cat([half, -half])
