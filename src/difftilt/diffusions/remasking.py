"""Masked chains that may change their mind: tokens are masked again and drawn anew.

From level t to s < t, with alpha the share of tokens and ``sigma <= (1 - alpha_s) / alpha_t``,

* a token is masked with probability ``sigma``, else it stays;
* a mask is revealed with probability ``(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)``.

The share of tokens at each level is alpha, whatever sigma. No parameter decides what is masked or
revealed, so the log-ratio of a path is the sum over all its *events* of ``log q - log p`` of the
token revealed; a position may be revealed several times.

Source: Wang et al. 2025, ReMDM (arXiv 2503.00307).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from difftilt.diffusions.orders import Order
from difftilt.errors import InputError
from difftilt.noise import Noise


@dataclass(frozen=True)
class Loop:
    """A stretch of the sampling that neither gains nor loses tokens, and masks only there.

    Arguments:
        start: time, in (0, 1), at which it begins; times fall from 1 to 0.
        end: time, in [0, start), at which it ends.
        alpha: share of tokens meanwhile, in (0, 1).

    Raises:
        InputError: an argument out of range.
    """

    start: float = 0.55
    end: float = 0.05
    alpha: float = 0.9

    def __post_init__(self) -> None:
        if not (0 <= self.end < self.start < 1 and 0 < self.alpha < 1):
            raise InputError(
                f"a loop wants 0 <= end < start < 1 and 0 < alpha < 1, got start={self.start}, "
                f"end={self.end}, alpha={self.alpha}"
            )

    def share(self, time: Float[Tensor, " levels"]) -> Float[Tensor, " levels"]:
        """alpha at each time: up to ``alpha``, constant, then up to 1."""
        before = self.alpha * (1 - time) / (1 - self.start)
        after = 1 - (1 - self.alpha) * time / max(self.end, 1e-12)
        shares = torch.where(time > self.start, before, self.alpha)
        return torch.where(time <= self.end, after, shares)

    def inside(self, time: Float[Tensor, " levels"]) -> Bool[Tensor, " steps"]:
        """Whether each step lies within the loop."""
        return (time[1:] <= self.start) & (time[:-1] >= self.end)


@dataclass(frozen=True)
class Remasking(Order):
    """The N-step sampler that also masks tokens again.

    ``sigma = min(cap, rescale * (1 - alpha_s) / alpha_t, 1)``; a cap or a scale of 0 is
    ``Parallel(count)``. Without a loop ``alpha = 1 - t``.

    Arguments:
        count: N.
        cap: largest probability of a token to be masked at a step, in [0, 1].
        rescale: share of the largest possible sigma, in [0, 1].
        loop: mask tokens only during a loop.

    Raises:
        InputError: an argument out of range.
    """

    count: int = 32
    cap: float = 1.0
    rescale: float = 1.0
    loop: Loop | None = None

    stepwise = True
    follows_state = True

    def __post_init__(self) -> None:
        if self.count < 1 or not (0 <= self.cap <= 1 and 0 <= self.rescale <= 1):
            raise InputError(
                "remasking wants count >= 1 and cap and rescale in [0, 1], got "
                f"count={self.count}, cap={self.cap}, rescale={self.rescale}"
            )

    @property
    def alpha(self) -> Float[Tensor, " levels"]:
        """Expected share of tokens at levels 0 ... N, float64."""
        return 1 - self._time if self.loop is None else self.loop.share(self._time)

    @property
    def sigma(self) -> Float[Tensor, " levels"]:
        """Probability of a token to be masked by step n, for n = 0 ... N (at 0: 0), float64."""
        alpha = self.alpha
        largest = ((1 - alpha[:-1]) / alpha[1:].clamp(min=1e-12)).clamp(max=1)
        sigma = (self.rescale * largest).clamp(max=self.cap)
        if self.loop is not None:
            sigma = torch.where(self.loop.inside(self._time), sigma, 0.0)
        return torch.cat([sigma.new_zeros(1), sigma])

    @property
    def reveal(self) -> Float[Tensor, " levels"]:
        """Probability of a mask to be revealed by step n, for n = 0 ... N (at 0: 0), float64."""
        alpha, sigma = self.alpha, self.sigma
        gained = alpha[:-1] - (1 - sigma[1:]) * alpha[1:]
        return torch.cat([sigma.new_zeros(1), gained / (1 - alpha[1:])])

    @property
    def _time(self) -> Float[Tensor, " levels"]:
        return torch.arange(self.count + 1, dtype=torch.float64) / self.count

    def steps(self, generated: int) -> int:
        return self.count

    def at_once(self, length: int) -> int:
        return length

    def time(self, step: Int[Tensor, " B"], generated: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        return (1 - self.alpha).float().to(step.device)[step]

    def ranks(self, generated: Bool[Tensor, "B L"], noise: Noise) -> Int[Tensor, "B L"]:
        raise AssertionError("a position has no one step at which it is revealed")

    def drawn(
        self, masked: Bool[Tensor, "B L"], shown: Bool[Tensor, "B L"], n: int, noise: Noise
    ) -> tuple[Bool[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Which masks step n reveals, and which tokens it masks again."""
        chance = noise.uniforms(masked)
        return masked & (chance < self.reveal[n]), shown & (chance < self.sigma[n])
