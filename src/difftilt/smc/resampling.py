"""Resampling: turn K weighted particles into n equally weighted ones.

Every scheme has the same face, ``(log_w, n, generator) -> indices``, and is unbiased: particle k
is drawn ``n W_k`` times on average, ``W = w / Σ w``. They differ in the noise that they add:

* ``multinomial``: n independent draws; the most noise.
* ``residual``: ``floor(n W_k)`` copies for sure, the rest multinomial.
* ``stratified``: one uniform in each of n equal intervals.
* ``systematic``: the same uniform in all of them; every count is within 1 of ``n W_k``. The usual
  choice, though its draws are dependent through the order of the particles.

Source: Douc, Cappe and Moulines 2005 (arXiv cs/0507025); Chopin and Papaspiliopoulos 2020,
chapter 9.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.diagnostics.weights import check_log_weights
from difftilt.errors import InputError

Scheme = Callable[
    [Float[Tensor, " K"], int, torch.Generator | None],
    Int[Tensor, " n"],
]


def _weights(log_w: Float[Tensor, " K"], n: int) -> Float[Tensor, " K"]:
    """``W``, in float64.

    Raises:
        InputError: n < 1, a weight is NaN or infinite, or all are zero.
    """
    log_w = check_log_weights(log_w)
    if n < 1:
        raise InputError(f"n = {n} particles cannot be drawn; n must be at least 1")
    if log_w.max() == -math.inf:
        raise InputError(f"log_w is -inf for all {len(log_w)} particles: there is none to resample")
    return torch.softmax(log_w, 0)


def _uniform(n: int, like: Float[Tensor, " K"], generator: torch.Generator | None) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64, device=like.device)


def _invert(weights: Float[Tensor, " K"], points: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Particle whose interval of the cumulative weights holds each point of [0, 1).

    The intervals are closed on the left, so that a particle of weight 0 is never drawn.
    """
    cumulative = weights.cumsum(0)
    # The last point of a strided grid may round up to 1.
    points = points.clamp(max=1 - 2**-53) * cumulative[-1]
    found = torch.searchsorted(cumulative, points, right=True)
    return found.clamp(max=int(torch.nonzero(weights)[-1]))


def multinomial(
    log_w: Float[Tensor, " K"], n: int, generator: torch.Generator | None = None
) -> Int[Tensor, " n"]:
    """n independent draws, particle k with probability ``W_k``."""
    weights = _weights(log_w, n)
    return _invert(weights, _uniform(n, weights, generator))


def stratified(
    log_w: Float[Tensor, " K"], n: int, generator: torch.Generator | None = None
) -> Int[Tensor, " n"]:
    """Particles at the points ``(i + u_i) / n``, i = 0 ... n - 1; counts within 2 of ``n W_k``."""
    weights = _weights(log_w, n)
    rank = torch.arange(n, dtype=torch.float64, device=weights.device)
    return _invert(weights, (rank + _uniform(n, weights, generator)) / n)


def systematic(
    log_w: Float[Tensor, " K"], n: int, generator: torch.Generator | None = None
) -> Int[Tensor, " n"]:
    """Particles at the points ``(i + u) / n``, one u for all; counts within 1 of ``n W_k``."""
    weights = _weights(log_w, n)
    rank = torch.arange(n, dtype=torch.float64, device=weights.device)
    return _invert(weights, (rank + _uniform(1, weights, generator)) / n)


def residual(
    log_w: Float[Tensor, " K"], n: int, generator: torch.Generator | None = None
) -> Int[Tensor, " n"]:
    """``floor(n W_k)`` copies of each particle, the rest drawn from the remainders."""
    weights = _weights(log_w, n)
    # A weight meant as a whole number of copies may come out of the softmax a rounding below it.
    copies = (n * weights * (1 + 1e-12)).floor()
    rank = torch.arange(len(weights), device=weights.device)
    kept = torch.repeat_interleave(rank, copies.long())
    if len(kept) >= n:
        return kept[:n]
    rest = (n * weights - copies).clamp(min=0)
    return torch.cat([kept, _invert(rest / rest.sum(), _uniform(n - len(kept), rest, generator))])


SCHEMES: dict[str, Scheme] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
}


def resample(
    log_w: Float[Tensor, " K"],
    n: int | None = None,
    scheme: str = "systematic",
    generator: torch.Generator | None = None,
) -> Int[Tensor, " n"]:
    """Indices of n equally weighted particles by a named scheme.

    Arguments:
        log_w: (K,) log-weights, nats, up to a constant; -inf is a weight of 0.
        n: how many to draw; None for K.
        scheme: "multinomial", "stratified", "systematic" or "residual".
        generator: of the uniforms, on the device of ``log_w``.

    Raises:
        InputError: an unknown scheme, a NaN or +inf weight, or all weights zero.
    """
    if scheme not in SCHEMES:
        raise InputError(f"resampling scheme {scheme!r} is not one of {', '.join(SCHEMES)}")
    return SCHEMES[scheme](log_w, len(log_w) if n is None else n, generator)
