"""When a masked chain reveals which position.

An order never looks at what a posterior says, so that it is the same for prior and posterior and
drops out of every log-ratio. ``ranks`` tells each generated position the step n at which it is
revealed (N first, 1 last); an order that depends on the state decides step by step (``planned``).

| order | positions per step | balance reachable |
|---|---|---|
| ``AnyOrder()`` | one, uniform (first-hitting) | if the prior is order-consistent |
| ``LeftToRight()`` | one, the leftmost | yes |
| ``Blocks(size)`` | one, uniform within the leftmost block | nearly |
| ``Parallel(steps)`` | each on its own, the T-step sampler | up to a floor of order 1 / steps |
| ``Stepwise()`` | one, uniform, drawn as it comes: a posterior may choose instead | yes, then |
| ``LeastEntropy(denoiser)`` | one, where the frozen prior is surest | yes |
| ``Remasking(steps)`` | each on its own; tokens are masked again | as ``Parallel`` |

``tokens_per_step`` > 1 reveals several at once; that is no longer exact.

Sources: Ou et al. 2024 (arXiv 2406.03736) and Zheng et al. 2024 (arXiv 2409.02908) for any-order
and first-hitting; Nie et al. 2025 (arXiv 2502.09992) and Ye et al. 2025 (arXiv 2508.15487) for
blocks and entropy.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise, Noise

Mask = Bool[Tensor, "B L"]


class Order(ABC):
    """When each generated position is revealed."""

    stepwise = False
    """Whether positions are chosen as the chain runs, ``planned``, and not at its start."""

    follows_state = False
    """Whether a bridge has to be led through the states, one after another."""

    @abstractmethod
    def steps(self, generated: int) -> int:
        """N for so many generated positions."""

    @abstractmethod
    def ranks(self, generated: Bool[Tensor, "B L"], noise: Noise) -> Int[Tensor, "B L"]:
        """The step of each generated position, 1 ... N; anything elsewhere."""

    def at_once(self, length: int) -> int:
        """Most positions that one step reveals, of ``length`` generated ones."""
        return 1

    def time(self, step: Int[Tensor, " B"], generated: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Expected share of a canvas's own masks at each step: what networks are told as time.

        Arguments:
            step: n; where it is beyond the canvas's last step, nothing is revealed.
            generated: positions that each canvas generates.
        """
        return (step / generated.clamp(min=1)).clamp(max=1)

    def chosen(
        self, masked: Bool[Tensor, "B L"], x: Int[Tensor, "B L"], level: Any, noise: Noise
    ) -> Int[Tensor, " B"]:
        """The position that a stepwise order reveals next."""
        raise AssertionError("this order is drawn at the start")

    def log_next(
        self, masked: Mask, generated: Mask, x: Int[Tensor, "B L"], level: Any
    ) -> Float[Tensor, "B L"]:
        """Log-probability of each position to be revealed next, where a step reveals one.

        Arguments:
            masked: the positions still to be revealed.
            generated: those that were masked at the start.
            x: the states.
            level: what a denoiser is told of them.

        Raises:
            InputError: the order has no such law.
        """
        raise InputError(
            f"{type(self).__name__} does not reveal one position after another, so that no "
            "marginal follows from its partial states; use AnyOrder(), LeftToRight(), Blocks() or "
            "Stepwise()"
        )


def _evenly(candidates: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Log-probabilities of a uniform choice, float64."""
    share = -candidates.sum(1, keepdim=True).double().log()
    return torch.where(candidates, share, -math.inf)


def _ranked(
    keys: Float[Tensor, "B L"], generated: Bool[Tensor, "B L"], tokens_per_step: int
) -> Int[Tensor, "B L"]:
    """Ranks by keys: the smallest key of a sample is revealed last."""
    order = torch.where(generated, keys, math.inf).argsort(1).argsort(1)
    return order // tokens_per_step + 1


@dataclass(frozen=True)
class _Counted(Order):
    """Orders of a fixed number of tokens per step.

    Arguments:
        tokens_per_step: positions revealed at once; 1 is exact.
    """

    tokens_per_step: int = 1

    def __post_init__(self) -> None:
        if self.tokens_per_step < 1:
            raise InputError(f"tokens_per_step must be at least 1, got {self.tokens_per_step}")

    def steps(self, generated: int) -> int:
        return max(1, math.ceil(generated / self.tokens_per_step))

    def at_once(self, length: int) -> int:
        return min(self.tokens_per_step, length)

    def time(self, step: Int[Tensor, " B"], generated: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        own_steps = (generated + self.tokens_per_step - 1) // self.tokens_per_step
        return super().time(step, own_steps)


@dataclass(frozen=True)
class AnyOrder(_Counted):
    """Uniform over all orders of the masked positions."""

    def ranks(self, generated: Bool[Tensor, "B L"], noise: Noise) -> Int[Tensor, "B L"]:
        return _ranked(noise.uniforms(generated), generated, self.tokens_per_step)

    def log_next(
        self, masked: Mask, generated: Mask, x: Int[Tensor, "B L"], level: Any
    ) -> Float[Tensor, "B L"]:
        return _evenly(masked)


@dataclass(frozen=True)
class LeftToRight(_Counted):
    """From left to right, as an autoregressive model would."""

    def ranks(self, generated: Bool[Tensor, "B L"], noise: Noise) -> Int[Tensor, "B L"]:
        place = torch.arange(generated.shape[1], device=generated.device)
        return _ranked(-place.double().expand(generated.shape), generated, self.tokens_per_step)

    def log_next(
        self, masked: Mask, generated: Mask, x: Int[Tensor, "B L"], level: Any
    ) -> Float[Tensor, "B L"]:
        return _evenly(masked & (masked.cumsum(1) == 1))


@dataclass(frozen=True)
class Blocks(_Counted):
    """Blocks of neighbouring masks from left to right, any order inside a block.

    Arguments:
        size: masks per block; at least 1.
        aligned: count all positions of the canvas from its start, not the masks alone, as a network
            that reads in blocks does (BD3-LM).
    """

    size: int = 8
    aligned: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise InputError(f"size must be at least 1 position per block, got {self.size}")

    def ranks(self, generated: Bool[Tensor, "B L"], noise: Noise) -> Int[Tensor, "B L"]:
        keys = noise.uniforms(generated) - self._block(generated)
        return _ranked(keys, generated, self.tokens_per_step)

    def log_next(
        self, masked: Mask, generated: Mask, x: Int[Tensor, "B L"], level: Any
    ) -> Float[Tensor, "B L"]:
        block = torch.where(masked, self._block(generated), generated.shape[1])
        return _evenly(masked & (block == block.amin(1, keepdim=True)))

    def _block(self, generated: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        if self.aligned:
            place = torch.arange(generated.shape[1], device=generated.device)
            return (place // self.size).expand(generated.shape)
        return (generated.long().cumsum(1) - 1).div(self.size, rounding_mode="floor")


@dataclass(frozen=True)
class Parallel(Order):
    """Each position on its own at one of N steps, as the T-step ancestral sampler does.

    Under the log-linear schedule (alpha = 1 - t on a uniform grid) each step is equally likely.

    Arguments:
        count: N.
    """

    count: int = 16

    def steps(self, generated: int) -> int:
        return self.count

    def at_once(self, length: int) -> int:
        return length

    def time(self, step: Int[Tensor, " B"], generated: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        return step / self.count

    def ranks(self, generated: Bool[Tensor, "B L"], noise: Noise) -> Int[Tensor, "B L"]:
        return (noise.uniforms(generated) * self.count).long().clamp(max=self.count - 1) + 1


@dataclass(frozen=True)
class Stepwise(Order):
    """The law of ``AnyOrder()``, each position drawn when it is due: a posterior may choose it."""

    stepwise = True

    def steps(self, generated: int) -> int:
        return max(1, generated)

    def ranks(self, generated: Bool[Tensor, "B L"], noise: Noise) -> Int[Tensor, "B L"]:
        return _ranked(noise.uniforms(generated), generated, 1)

    def chosen(
        self, masked: Bool[Tensor, "B L"], x: Int[Tensor, "B L"], level: Any, noise: Noise
    ) -> Int[Tensor, " B"]:
        return torch.where(masked, noise.uniforms(masked), -1.0).argmax(1)

    def log_next(
        self, masked: Mask, generated: Mask, x: Int[Tensor, "B L"], level: Any
    ) -> Float[Tensor, "B L"]:
        return _evenly(masked)


@runtime_checkable
class Reader(Protocol):
    """What a planner asks of a denoiser of tokens (``token_denoisers.TokenDenoiser``)."""

    def features(self, x: Int[Tensor, "B L"], level: Any) -> Float[Tensor, "B L d"]:
        """Features of whole states."""
        ...

    def log_probs(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... V"]:
        """Log-probabilities from features."""
        ...


@dataclass(frozen=True)
class LeastEntropy(Order):
    """The masked position of which a frozen denoiser is surest; ties go to the leftmost.

    The choice depends on the state alone and not on who asks, prior or posterior. It costs one more
    pass of the denoiser per step, and a bridge follows it through the states that it leads to.

    Arguments:
        denoiser: the prior's own; it must stay as it is.
        surest: by "entropy", the smallest, or by "margin", the largest difference between the
            probabilities of the two likeliest tokens.
        chunk: positions whose probabilities are held at once.

    Raises:
        InputError: another measure, or chunk < 1.
    """

    denoiser: Reader
    surest: Literal["entropy", "margin"] = "entropy"
    chunk: int = 1024

    stepwise = True
    follows_state = True

    def __post_init__(self) -> None:
        if self.surest not in ("entropy", "margin"):
            raise InputError(f"surest={self.surest!r} must be 'entropy' or 'margin'")
        if self.chunk < 1:
            raise InputError(f"chunk must be at least 1 position, got {self.chunk}")

    def steps(self, generated: int) -> int:
        return max(1, generated)

    def ranks(self, generated: Bool[Tensor, "B L"], noise: Noise) -> Int[Tensor, "B L"]:
        raise AssertionError("this order needs the tokens of the states")

    @torch.no_grad()
    def chosen(
        self, masked: Bool[Tensor, "B L"], x: Int[Tensor, "B L"], level: Any, noise: Noise
    ) -> Int[Tensor, " B"]:
        rows = masked.any(1).nonzero().flatten()
        sureness = torch.full(x.shape, -math.inf, device=x.device)
        if not len(rows):
            return rows.new_zeros(len(x))
        hidden = self.denoiser.features(x[rows], level.part(rows))[masked[rows]]
        parts = [self._sureness(self.denoiser.log_probs(h)) for h in hidden.split(self.chunk)]
        return sureness.masked_scatter(masked, torch.cat(parts).to(sureness)).argmax(1)

    def log_next(
        self, masked: Mask, generated: Mask, x: Int[Tensor, "B L"], level: Any
    ) -> Float[Tensor, "B L"]:
        place = self.chosen(masked, x, level, GeneratorNoise())
        return _evenly(torch.zeros_like(masked).scatter(1, place[:, None], True))

    def _sureness(self, log_probs: Float[Tensor, "M V"]) -> Float[Tensor, " M"]:
        probs = log_probs.exp()
        if self.surest == "entropy":
            return -torch.special.entr(probs).sum(1)
        best = torch.cat([probs, torch.zeros_like(probs[:, :1])], 1).topk(2, 1).values
        return best[:, 0] - best[:, 1]
