"""The law of one step of a chain of tokens, and how a posterior tilts it.

A step reveals a few masked positions: each draws its token from a categorical law, independently
given the state. Which positions they are is a part of the state (``diffusions.masked``) and costs
no log-ratio, unless a posterior chose them itself. The coordinates ``eps`` of a step are the drawn
tokens, (B, P); a sample that reveals fewer than P positions ignores the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from difftilt.errors import InputError
from difftilt.noise import Noise
from difftilt.transitions.base import Tilt, Transition


@dataclass(frozen=True)
class Reveal:
    """The positions that a step reveals.

    Arguments:
        positions: (B, P), all different within a sample.
        valid: (B, P) which of them count.
    """

    positions: Int[Tensor, "B P"]
    valid: Bool[Tensor, "B P"]

    def part(self, rows: Int[Tensor, " R"]) -> "Reveal":
        """That of some of the samples."""
        return Reveal(self.positions[rows], self.valid[rows])

    def total(self, values: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        """The sum over the positions that count."""
        return torch.where(self.valid, values, 0.0).sum(1)

    def tokens(self, x: Int[Tensor, "B L"]) -> Int[Tensor, "B P"]:
        """The tokens of x at the positions; 0 where a position does not count."""
        return torch.where(self.valid, read(x.gather(1, self.positions)), 0)

    def filled(self, x: Int[Tensor, "B L"], tokens: Int[Tensor, "B P"]) -> Int[Tensor, "B L"]:
        """x with tokens at the positions that count."""
        kept = x.gather(1, self.positions)
        return x.scatter(1, self.positions, torch.where(self.valid, tokens, kept))


def read(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """States as networks read them: a token v that is about to be masked again is ``-1 - v``."""
    return torch.where(x < 0, -1 - x, x)


def log_prob_of(
    log_probs: Float[Tensor, "B P V"], tokens: Int[Tensor, "B P"]
) -> Float[Tensor, "B P"]:
    """Log-probability of each token."""
    return log_probs.gather(2, tokens[..., None])[..., 0]


def drawn_tokens(
    log_probs: Float[Tensor, "B P V"], noise: Noise, widen: float = 1.0
) -> Int[Tensor, "B P"]:
    """Tokens by inversion in float64, at temperature ``widen``; one of probability 0 never comes.

    Arguments:
        log_probs: normalised.
        noise: a uniform number for each position.
        widen: temperature.

    A Gumbel maximum in float32 would cut the tail off (Zheng et al. 2024, arXiv 2409.02908).
    """
    log_probs = log_probs.detach()
    if widen != 1.0:
        log_probs = (log_probs / widen).log_softmax(2)
    cumulated = log_probs.exp().cumsum(2, dtype=torch.float64)
    threshold = noise.uniforms(cumulated[..., 0]) * cumulated[..., -1]
    found = torch.searchsorted(cumulated, threshold[..., None].contiguous(), right=True)
    return found[..., 0].clamp(max=log_probs.shape[2] - 1)


@dataclass(frozen=True)
class Categorical(Transition):
    """Tokens of the revealed positions, independent given the state.

    Arguments:
        x: states before the step, (B, L).
        reveal: the positions.
        log_probs: (B, P, V) normalised; or (B,), the log-probability of one known landing, which
            is all that a stored path keeps: then only ``standardise`` is of use.
    """

    x: Int[Tensor, "B L"]
    reveal: Reveal
    log_probs: Float[Tensor, "B ..."]

    @property
    def landing(self) -> Int[Tensor, "B L"]:
        raise AssertionError("every step of a chain of tokens has a density")

    def draw(self, noise: Noise, widen: float = 1.0) -> Int[Tensor, "B P"]:
        return drawn_tokens(self.log_probs, noise, widen)

    def at(self, eps: Int[Tensor, "B P"]) -> Int[Tensor, "B L"]:
        return self.reveal.filled(self.x, eps)

    def standardise(self, x: Int[Tensor, "B L"]) -> Int[Tensor, "B P"]:
        return self.reveal.tokens(x)

    def log_prob(self, x: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        """Log-probability in nats, summed over the revealed positions."""
        return self.reveal.total(log_prob_of(self.log_probs, self.reveal.tokens(x)))


@dataclass(frozen=True)
class CategoricalTilt(Tilt):
    """Another categorical law of the same positions.

    Arguments:
        reveal: the positions.
        log_probs: of the posterior, (B, P, V).
        reference: of the prior, (B, P, V), or (B,): of the path's own tokens alone.
        order: (B,) log-ratio of the choice of the positions, or None for the prior's own choice.
    """

    reveal: Reveal
    log_probs: Float[Tensor, "B P V"]
    reference: Float[Tensor, "B ..."]
    order: Float[Tensor, " B"] | None = None

    def draw(self, noise: Noise, widen: float = 1.0) -> Int[Tensor, "B P"]:
        return drawn_tokens(self.log_probs, noise, widen)

    def log_ratio(self, eps: Int[Tensor, "B P"]) -> Float[Tensor, " B"]:
        own = log_prob_of(self.log_probs, eps)
        if self.reference.ndim == 1:
            ratio = self.reveal.total(own) - self.reference
        else:
            ratio = self.reveal.total(own - log_prob_of(self.reference, eps))
        return ratio if self.order is None else ratio + self.order

    def divergence(self) -> Float[Tensor, " B"]:
        if self.reference.ndim == 1 or self.order is not None:
            raise InputError(
                "the KL of a step needs the prior's whole law and its choice of positions; use a "
                "posterior without learned order, and paths that were drawn anew"
            )
        probs = self.log_probs.exp()
        # A banned token has probability 0 under both, and counts for nothing.
        difference = torch.where(probs > 0, self.log_probs - self.reference, 0.0)
        return self.reveal.total((probs * difference).sum(2))


@dataclass(frozen=True)
class Placing(Transition):
    """The law of ``x_N``: a canvas whose masks are told when they will be revealed.

    The draw has no parameter, so that prior and posterior share it.

    Arguments:
        canvas: (B, L) tokens, with masks that stay.
        generated: (B, L) the positions to generate.
        vocab_size: V; a position of rank k is written as V + k.
        ranks: draws ranks (B, L) of the generated positions.
    """

    canvas: Int[Tensor, "B L"]
    generated: Bool[Tensor, "B L"]
    vocab_size: int
    ranks: Callable[[Tensor, Noise], Tensor]

    @property
    def landing(self) -> Int[Tensor, "B L"]:
        raise AssertionError("the law of x_N is drawn, not landed on")

    def draw(self, noise: Noise, widen: float = 1.0) -> Int[Tensor, "B L"]:
        return self.ranks(self.generated, noise)

    def at(self, eps: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        return torch.where(self.generated, self.vocab_size + eps, self.canvas)

    def standardise(self, x: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        return torch.where(self.generated, x - self.vocab_size, 0)

    def log_prob(self, x: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        raise InputError("the order of a masked chain has no density that methods may ask for")
