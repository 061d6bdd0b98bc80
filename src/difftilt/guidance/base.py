"""Training-free guidance as a chain: each step shifted along an estimate of ``∇ log h``.

    x_{n-1} ~ N(mean_n + std_n δ_n, std_n² I),      δ_n = scale · std_n · g(x_n),      g ≈ ∇ log h_n

with ``h_n(x_n) = E_p[r(x_0)^β | x_n]``. With the exact ``h`` this is the optimal kernel up to
O(1/N); with an estimate it is some kernel. Either way the density is known, so a guided sampler has
the same log-ratio, certificate and corrections as a trained one.

A method differs from another only in its ``LogValue``, the estimate of ``log h`` that it climbs:

| method | log h_n(x) is taken to be | exact when |
|---|---|---|
| ``DPS`` | ``β log r(x̂_0(x))`` | x_n determines x_0 |
| ``LGDMC`` | ``log mean_k r^β(x̂_0(x) + s_n ξ_k)`` | K → ∞, x_0 given x_n is ``N(x̂_0, s_n² I)`` |
| ``PiGDM`` | ``log N(y; A x̂_0(x), s_n² A Aᵀ + std²/β I)`` | the same, r linear-Gaussian |
| ``ClassifierGuidance`` | ``β log p(class given x_n)`` | the noisy classifier is Bayes', β = 1 |
| ``ValueGuidance`` | a learned ``Value`` | the value is |
| ``OracleGuidance`` | a formula | the formula is |
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Chain, Kernel
from difftilt.errors import InputError, RewardError
from difftilt.rewards.contract import CheckedReward, LogReward
from difftilt.transitions.gaussian import GaussianTilt

LogValue = Callable[[Tensor, int | Tensor, Tensor | None], Tensor]
"""``(x_n (B, *event), n, condition) -> log h_n (B,)``, differentiable in ``x_n``."""


class Guidance(ABC):
    """A method that needs no training: a recipe of kernels, as a frozen dataclass."""

    @abstractmethod
    def kernel(self, chain: Chain, log_reward: LogReward, beta: float = 1.0) -> Kernel:
        """The kernel that guides a prior.

        Arguments:
            chain: the prior.
            log_reward: ``x_0 -> log r`` or ``(x_0, condition) -> log r``, (B,), nats.
            beta: β of the target.
        """


@final
class GuidedKernel(Kernel):
    """``δ_n = scale · std_n · ∇ log h_n(x_n)``, without a graph: there is nothing to train.

    The prior is not a part of this module: its parameters are neither trained nor saved with it.

    Arguments:
        chain: the prior.
        log_h: estimate of ``log h``.
        scale: multiplies the drift.
        fixed_step: shift the mean by ``scale · ∇ log h_n`` whatever the variance of the step, so
            that ``δ_n = scale · ∇ log h_n / std_n``.
    """

    def __init__(
        self, chain: Chain, log_h: LogValue, scale: float = 1.0, fixed_step: bool = False
    ) -> None:
        super().__init__()
        _ = chain.gaussian  # raises the sentence about chains of tokens
        self.chain = chain.prior
        self.log_h = log_h
        self.scale = scale
        self.fixed_step = fixed_step

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> GaussianTilt:
        gradient = gradient_of(self.log_h, x, n, condition)
        std = self.chain.gaussian.reverse(prediction.detach(), x.detach(), n).std
        step = 1 / std if self.fixed_step else std
        return GaussianTilt(self.scale * step * gradient)


def gradient_of(
    log_h: LogValue,
    x: Float[Tensor, "B ..."],
    n: int | Int[Tensor, " B"],
    condition: Tensor | None,
    create_graph: bool = False,
) -> Float[Tensor, "B ..."]:
    """``∇_x log h_n(x)`` of each sample, zero where ``log h = -inf``.

    Arguments:
        log_h: of B states, each by itself.
        x: states, (B, *event); no gradient goes through them to their makers.
        n: the step, one int or one per sample.
        condition: (B, ...) or None.
        create_graph: keep the graph, for what ``log_h`` learns.

    Raises:
        InputError: ``log_h`` does not depend on x in a way that autograd sees, or the gradient is
            not finite.
    """
    with torch.enable_grad():
        state = x.detach().requires_grad_(True)
        value = log_h(state, n, condition)
        if not value.requires_grad:
            raise InputError(NOT_DIFFERENTIABLE)
        (gradient,) = torch.autograd.grad(
            value.sum(), state, create_graph=create_graph, allow_unused=True
        )
    if gradient is None:
        raise InputError(NOT_DIFFERENTIABLE)
    impossible = (value.detach() == -math.inf).reshape(-1, *[1] * (x.ndim - 1))
    gradient = gradient.masked_fill(impossible, 0.0)
    if not bool(gradient.detach().isfinite().all()):
        raise InputError(
            "the gradient of log h is not finite; guidance has run away or log r has no gradient "
            "there: lower the scale, take more steps, or give log r a floor (difftilt.Floored)"
        )
    return gradient


NOT_DIFFERENTIABLE = (
    "this guidance follows the gradient of log r, but what the reward returned has none with "
    "respect to x_0; write the reward in torch operations on x_0, or use a method for black-box "
    "rewards: relative trajectory balance (RTB), or particles (correct='smc')"
)


def differentiable_reward(log_reward: CheckedReward, x_0: Tensor, condition: Tensor | None):
    """``log r`` of clean predictions, (B,), with its graph.

    Raises:
        InputError: the reward works, but not on a tensor that requires a gradient.
        RewardError: the reward is at fault.
    """
    try:
        return log_reward.differentiable(x_0, condition)
    except RewardError as error:
        # A reward that goes through numpy fails only because of the graph.
        log_reward(x_0.detach(), condition)
        raise InputError(NOT_DIFFERENTIABLE) from error


def clean_prediction(
    chain: Chain, x: Float[Tensor, "B ..."], n: int | Tensor, condition: Tensor | None
) -> Float[Tensor, "B ..."]:
    """``x̂_0(x_n)`` as the chain's kernels use it: without variance channels, and clipped."""
    clean = chain.given(condition).predict(x, n, gradients=True)[:, : x.shape[1]]
    limit = chain.gaussian.clip
    return clean if limit is None else clean.clamp(-limit, limit)


def reconstruction_variance(
    chain: Chain, x: Tensor, n: int | Tensor, data_std: float
) -> Float[Tensor, "..."]:
    """``s_n² = data_std² sigma_n² / (alpha_n² data_std² + sigma_n²)``: variance given ``x_n``.

    That of ``x_0``, exact for data ``N(m, data_std² I)``. A scalar, or one per sample that
    broadcasts over the event.
    """
    level = chain.gaussian.level(n, x)
    alpha, sigma = (
        torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (level.alpha, level.sigma)
    )
    variance = data_std**2
    return variance * sigma**2 / (alpha**2 * variance + sigma**2)


def check_scale(scale: float) -> None:
    """A guidance scale has to be a number.

    Raises:
        InputError: it is not finite.
    """
    if not math.isfinite(scale):
        raise InputError(f"a guidance scale is a finite number, got {scale}")


def check_data_std(data_std: float) -> None:
    """The standard deviation of data has to be a positive number.

    Raises:
        InputError: it is not, or not finite.
    """
    if not 0 < data_std < math.inf:
        raise InputError(f"data_std is a positive finite number, got {data_std}")
