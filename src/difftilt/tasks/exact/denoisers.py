"""Denoisers in closed form: ``E[x_0 | x_t]`` of Gaussians and Gaussian mixtures.

For a component ``N(μ, v I)`` the noisy marginal is ``N(alpha μ, V I)`` with
``V = alpha² v + sigma²``, and the mean given ``x_t`` is ``(alpha v x_t + sigma² μ) / V``. A mixture
with one variance averages the ``μ`` by the responsibilities, whose logits are linear in ``x_t``.
A prior built on these is exact at every noise level, in any dimension, and needs no training.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.denoisers import Denoiser, Level


class GaussianDenoiser(Denoiser):
    """``E[x_0 | x_t] = m + alpha S (alpha² S + sigma² I)^{-1} (x_t - alpha m)`` for ``N(m, S)``.

    Arguments:
        mean: (d,).
        covariance: (d, d), symmetric and positive definite.
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(self, mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"]) -> None:
        super().__init__()
        values, vectors = torch.linalg.eigh(covariance.double())
        self.register_buffer("mean", mean)
        self.register_buffer("values", values.to(mean.dtype))
        self.register_buffer("vectors", vectors.to(mean.dtype))

    def forward(self, x_t: Float[Tensor, "B d"], level: Level) -> Float[Tensor, "B d"]:
        alpha, sigma = level.alpha, level.sigma
        gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
        centred = x_t - alpha * self.mean
        return self.mean + (centred @ self.vectors * gain) @ self.vectors.T


class ProductMixtureDenoiser(Denoiser):
    """Independent coordinates, each with the same 1-D mixture ``Σ_k w_k N(μ_k, v)``.

    Costs d K, not K^d: 25 modes in the plane are 2 × 5 components.

    Arguments:
        means: (K,).
        weights: (K,), positive; normalised here.
        variance: v, shared by the components.
    """

    means: Tensor
    log_weights: Tensor
    half_squares: Tensor

    def __init__(
        self, means: Float[Tensor, " K"], weights: Float[Tensor, " K"], variance: float
    ) -> None:
        super().__init__()
        self.variance = variance
        # Components come first: a softmax over a short last axis costs six times as much.
        self.register_buffer("means", means.reshape(-1, 1, 1))
        self.register_buffer("log_weights", (weights / weights.sum()).log().reshape(-1, 1, 1))
        self.register_buffer("half_squares", 0.5 * self.means**2)

    def forward(self, x_t: Float[Tensor, "B d"], level: Level) -> Float[Tensor, "B d"]:
        alpha, sigma = level.alpha, level.sigma
        total = alpha**2 * self.variance + sigma**2
        bias = self.log_weights - (alpha**2 / total) * self.half_squares
        logits = torch.addcmul(bias, (alpha / total) * x_t, self.means)
        share = torch.softmax(logits, 0)
        # In place where no gradient needs the shares themselves.
        share = share * self.means if share.requires_grad else share.mul_(self.means)
        centre = share.sum(0)
        return (alpha * self.variance / total) * x_t + (sigma**2 / total) * centre


class MixtureDenoiser(Denoiser):
    """The isotropic mixture ``Σ_k w_k N(μ_k, v I)`` in d dimensions.

    Arguments:
        means: (K, d).
        weights: (K,), positive; normalised here.
        variance: v, shared by the components.
    """

    means: Tensor
    log_weights: Tensor
    half_squares: Tensor

    def __init__(
        self, means: Float[Tensor, "K d"], weights: Float[Tensor, " K"], variance: float
    ) -> None:
        super().__init__()
        self.variance = variance
        # A column of ones gives the sum of the responsibilities in the same product.
        self.register_buffer("means", torch.cat([means, torch.ones_like(means[:, :1])], 1))
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("half_squares", 0.5 * means.square().sum(1))

    def forward(self, x_t: Float[Tensor, "B d"], level: Level) -> Float[Tensor, "B d"]:
        alpha, sigma = level.alpha, level.sigma
        total = alpha**2 * self.variance + sigma**2
        bias = self.log_weights - (alpha**2 / total) * self.half_squares
        logits = torch.addmm(bias, (alpha / total) * x_t, self.means[:, :-1].T)
        # Below e^-80 a float32 is denormal, and each operation on it ten times as slow.
        logits = logits.sub_(logits.detach().amax(1, keepdim=True)).clamp_(min=-80)
        share = logits.exp_() @ self.means
        centre = share[:, :-1] / share[:, -1:]
        return (alpha * self.variance / total) * x_t + (sigma**2 / total) * centre
