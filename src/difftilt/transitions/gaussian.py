"""Steps that are Gaussian, and their tilts.

With ``eps = (x' - mean) / std`` the prior draws ``eps ~ N(0, I)`` and a posterior from one of

* ``GaussianTilt``: ``N(delta, exp(2 log_scale))``, the shifted mean and, if wanted, the variance;
* ``MixtureTilt``: ``Σ_k π_k N(delta_k, exp(2 log_scale_k))``, for small dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from difftilt._ops import sum_event
from difftilt.errors import InputError
from difftilt.noise import Noise
from difftilt.transitions.base import Tilt, Transition

LOG_2_PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Gaussian(Transition):
    """``N(mean, std² I)`` of one step; ``std`` broadcasts over the event.

    A step whose std is zero is a map, not a law: chains never ask for its density.
    """

    mean: Float[Tensor, "B ..."]
    std: Tensor

    @property
    def landing(self) -> Float[Tensor, "B ..."]:
        return self.mean

    def draw(self, noise: Noise, widen: float = 1.0) -> Float[Tensor, "B ..."]:
        eps = noise.normal(self.mean)
        return eps if widen == 1.0 else eps * widen

    def at(self, eps: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """The state at standardised coordinates ``eps``: ``mean + std eps``."""
        return torch.addcmul(self.mean, eps, self.std)

    def standardise(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """``(x - mean) / std``."""
        return (x - self.mean) / self.std

    def log_prob(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        std = torch.as_tensor(self.std, dtype=x.dtype, device=x.device).expand_as(x)
        return sum_event(-0.5 * self.standardise(x) ** 2 - std.log() - 0.5 * LOG_2_PI)


@dataclass(frozen=True)
class GaussianTilt(Tilt):
    """``eps ~ N(delta, exp(2 log_scale))``.

    ``log q/p = δ·ε - |δ|²/2`` without a log-scale. With one, and ``z = (ε - δ) e^{-g}``, it is
    ``Σ (ε² - z²)/2 - g``, computed as ``(ε - z)(ε + z)/2``.

    Arguments:
        delta: standardised shift of the mean, (B, *event).
        log_scale: log of the std relative to the prior's, broadcastable to the event, or None.
    """

    delta: Float[Tensor, "B ..."]
    log_scale: Tensor | None = None

    def draw(self, noise: Noise, widen: float = 1.0) -> Float[Tensor, "B ..."]:
        normal = noise.normal(self.delta)
        scaled = normal if widen == 1.0 else normal * widen
        return self.delta + (scaled if self.log_scale is None else scaled * self.log_scale.exp())

    def log_ratio(self, eps: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        if self.log_scale is None:
            return sum_event(self.delta * torch.sub(eps, self.delta, alpha=0.5))
        # eps - z, for z = (eps - delta) / scale, keeps its digits where the tilt is small.
        moved = self.delta - (eps - self.delta) * torch.expm1(-self.log_scale)
        return sum_event(moved * torch.sub(eps, moved, alpha=0.5) - self.log_scale)

    def divergence(self) -> Float[Tensor, " B"]:
        if self.log_scale is None:
            return 0.5 * sum_event(self.delta**2)
        growth = torch.expm1(2 * self.log_scale) - 2 * self.log_scale
        return 0.5 * sum_event(self.delta**2 + growth)

    @classmethod
    def joined(cls, tilts: Sequence[Self]) -> Self:
        scales = [t.log_scale.expand_as(t.delta) for t in tilts if t.log_scale is not None]
        return cls(torch.cat([t.delta for t in tilts]), torch.cat(scales) if scales else None)


@dataclass(frozen=True)
class MixtureTilt(Tilt):
    """``eps ~ Σ_k softmax(logits)_k N(delta_k, exp(2 log_scale_k))``, one k for the event.

    At finite N the exactly tilted kernel is not Gaussian; a few components come near it. The batch
    is the last axis: sums over a short last axis cost several times as much.

    Arguments:
        parts: delta and log-scale of each component, (K, 2, *event, B).
        logits: (K, B).
    """

    parts: Float[Tensor, "K 2 ... B"]
    logits: Float[Tensor, "K B"]

    @property
    def delta(self) -> Float[Tensor, "K ... B"]:
        """Standardised shift of each component's mean."""
        return self.parts[:, 0]

    @property
    def log_scale(self) -> Float[Tensor, "K ... B"]:
        """Log of each component's std relative to the prior's."""
        return self.parts[:, 1]

    def draw(self, noise: Noise, widen: float = 1.0) -> Float[Tensor, "B ..."]:
        share = torch.softmax(self.logits, 0).cumsum(0)
        component = (share[:-1] < noise.uniform(self.logits.T)).sum(0)
        place = component.expand(1, *self.parts.shape[1:])
        delta, log_scale = self.parts.gather(0, place)[0].movedim(-1, 1).unbind()
        normal = noise.normal(delta)
        scaled = normal if widen == 1.0 else normal * widen
        return torch.addcmul(delta, scaled, log_scale.exp())

    def log_ratio(self, eps: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        moved = eps.movedim(0, -1).contiguous().flatten(0, -2)
        parts = self.parts.flatten(2, -2)
        return _MixtureLogRatio.apply(moved, parts, self.logits)  # pyright: ignore[reportReturnType]

    def divergence(self) -> Float[Tensor, " B"]:
        raise InputError(
            "a mixture kernel's KL to the prior has no closed form; use components=1, or an "
            "objective that takes the divergence from log-ratios (KL-regularised REINFORCE)"
        )

    @classmethod
    def joined(cls, tilts: Sequence[Self]) -> Self:
        both = zip(*((t.parts, t.logits) for t in tilts), strict=True)
        return cls(*(torch.cat(part, -1) for part in both))


class _MixtureLogRatio(torch.autograd.Function):
    """A mixture's log-ratio with its gradient by hand, in a third of autograd's operations.

    With ``z = (ε - δ) e^{-g}``, ``s_k = Σ_d (ε² - z²)/2 - g``, posterior shares
    ``ρ = softmax(logits + s)`` and prior shares ``π = softmax(logits)``:

        ∂/∂δ = ρ z e^{-g},   ∂/∂g = ρ (z² - 1),   ∂/∂logits = ρ - π,   ∂/∂ε = Σ_k ρ (ε - z e^{-g})

    Arguments:
        eps: (D, B).
        parts: δ and g, (K, 2, D, B).
        logits: (K, B).
    """

    @staticmethod
    def forward(ctx: Any, eps: Tensor, parts: Tensor, logits: Tensor) -> Tensor:
        delta, log_scale = parts.unbind(1)
        inverse = torch.exp(-log_scale)
        z = (eps - delta) * inverse
        joint = torch.addcmul(-log_scale, eps - z, eps + z, value=0.5).sum(1) + logits
        both = torch.stack([joint, logits])
        top = both.amax(1, keepdim=True)
        shares = both.sub_(top).exp_()
        sums = shares.sum(1, keepdim=True)
        total, prior = sums.log().add_(top)[:, 0]
        ctx.save_for_backward(eps, z, inverse, shares.div_(sums))
        return total - prior

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        eps, z, inverse, shares = ctx.saved_tensors
        share, prior = shares * grad
        by_parts = z.new_empty(len(z), 2, *z.shape[1:])
        by_delta, by_scale = by_parts.unbind(1)
        weighted = share[:, None] * z
        torch.mul(weighted, inverse, out=by_delta)
        torch.addcmul(-share[:, None], weighted, z, out=by_scale)
        by_eps = eps * grad - by_delta.sum(0) if ctx.needs_input_grad[0] else None
        return by_eps, by_parts, share - prior


def zero_tilt(like: Float[Tensor, "B ..."]) -> GaussianTilt:
    """The tilt that leaves the prior as it is."""
    return GaussianTilt(torch.zeros_like(like))
