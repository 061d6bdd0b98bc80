"""Resampling: turn K weighted particles into n equally weighted ones.

Every scheme has the same face, ``(log_w, n, generator) -> indices``, and is unbiased: particle k
is drawn ``n W_k`` times on average, ``W = w / Σ w``. They differ in the noise that they add:

* ``multinomial``: n independent draws; the most noise.
* ``residual``: ``floor(n W_k)`` copies for sure, the rest multinomial.
* ``stratified``: one uniform in each of n equal intervals.
* ``systematic``: the same uniform in all of them; every count is within 1 of ``n W_k``. The usual
  choice, though its draws are dependent through the order of the particles.

``resample_systems`` does the same within each of M systems at once, ``(M, K) -> (M, n)``, by a
multinomial, stratified or systematic scheme, or by ``single``: one draw copied n times, which is
unbiased too and the noisiest of all (it is how SVDD picks a candidate).

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
from difftilt.noise import Noise

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


def _invert(weights: Float[Tensor, "*M K"], points: Float[Tensor, "*M n"]) -> Int[Tensor, "*M n"]:
    """Particle whose interval of the cumulative weights holds each point of [0, 1).

    The intervals are closed on the left, so that a particle of weight 0 is never drawn.
    """
    cumulative = weights.cumsum(-1)
    # The last point of a strided grid may round up to 1.
    points = points.clamp(max=1 - 2**-53) * cumulative[..., -1:]
    found = torch.searchsorted(cumulative, points.contiguous(), right=True)
    rank = torch.arange(weights.shape[-1], device=weights.device)
    last = torch.where(weights > 0, rank, 0).amax(-1, keepdim=True)
    return torch.minimum(found, last)


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


# How many uniforms a system's n draws take, given n, and whether its points lie on a grid.
_POINTS: dict[str, tuple[Callable[[int], int], bool]] = {
    "multinomial": (lambda n: n, False),
    "stratified": (lambda n: n, True),
    "systematic": (lambda n: 1, True),
    "single": (lambda n: 1, False),
}
SYSTEM_SCHEMES = tuple(_POINTS)


def resample_systems(
    log_w: Float[Tensor, "M K"], n: int, scheme: str, noise: Noise
) -> Int[Tensor, "M n"]:
    """Draw n particles of each of M systems, each system from its own weights.

    Arguments:
        log_w: (M, K) log-weights, nats, up to a constant of each system.
        n: how many to draw of each.
        scheme: "multinomial", "stratified", "systematic" or "single".
        noise: of the uniforms.

    Raises:
        InputError: an unknown scheme, or a system whose weights are all zero.
    """
    if scheme not in _POINTS:
        raise InputError(f"scheme {scheme!r} of systems is not one of {', '.join(_POINTS)}")
    log_w = log_w.detach().double()
    dead = int((log_w.amax(1) == -math.inf).sum())
    if dead:
        raise InputError(
            f"log_w is -inf for all {log_w.shape[1]} particles of {dead} systems; leave them out"
        )
    count, strided = _POINTS[scheme]
    points = noise.uniform(log_w.new_empty(len(log_w) * count(n))).unflatten(0, (len(log_w), -1))
    if strided:
        points = (torch.arange(n, dtype=points.dtype, device=points.device) + points) / n
    return _invert(torch.softmax(log_w, 1), points.expand(-1, n))
