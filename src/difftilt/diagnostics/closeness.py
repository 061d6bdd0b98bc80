"""How near a sampler q is to the target π, from log-weights alone.

*Total variation*: ``TV(q, π) = E_q[(1 - w / Z)_+]`` is an average of numbers in [0, 1] over
paths of q. It sees a missed mode as well, if Z is known from the defensive estimate: then the
weights of the paths that q does make are too small for Z. By data processing it bounds the total
variation of x_0, hence the error of every event's probability.

*Reverse check*: which share of the reward-weighted prior paths does q hardly ever make?

*Exact draws*: a prior path accepted with probability ``r^β / M`` is a draw of π.

Here ``log_r`` always means ``β log r``.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt._ops import above
from difftilt.diagnostics.evidence import effective_sample_size
from difftilt.diagnostics.intervals import (
    Estimate,
    betting_upper,
    check_confidence,
    normal_quantile,
)
from difftilt.diagnostics.weights import check_log_weights, check_pair, log_weights
from difftilt.errors import InputError


@dataclass(frozen=True)
class TotalVariation:
    """Total variation of the path laws q and π.

    Attributes:
        value: estimate, at the point estimate of Z.
        standard_error: of ``value``, the error of Z included at its worst correlation.
        upper: upper end, at the upper end of Z.
        kind: "bound" if ``upper`` is proven, "estimate" if the interval of Z is only asymptotic.
        confidence: that ``upper`` is not exceeded.
    """

    value: float
    standard_error: float
    upper: float
    kind: str
    confidence: float


def _shortfall(log_w: Float[Tensor, " n"], log_z: float) -> Float[Tensor, " n"]:
    """``(1 - w / Z)_+`` of each path, in [0, 1]; it grows with Z."""
    return 1 - (log_w - log_z).clamp(max=0).exp()


def total_variation(
    log_w: Float[Tensor, " n"],
    log_z: Estimate,
    confidence: float = 0.99,
    log_z_is_bound: bool = False,
) -> TotalVariation:
    """``TV(q, π) = E_q[(1 - w / Z)_+]``, with an upper end.

    The error ``1 - confidence`` is split: Z exceeds ``log_z.high`` with probability at most
    ``(1 - log_z.confidence) / 2``, one side of its interval; the rest is spent on the mean over
    paths (betting bound). Both integrand and bound grow with Z, so the upper end of Z may be
    plugged in and the two errors add (union bound), even when both were computed from the same
    paths.

    Arguments:
        log_w: (n,) log-weights of independent paths of q, n ≥ 2.
        log_z: interval for log Z that does not rely on q's coverage: the defensive one.
        confidence: of the upper end; at most ``(1 + log_z.confidence) / 2``, exclusive.
        log_z_is_bound: ``log_z`` holds for every n (a bound of r is known).

    Raises:
        InputError: the confidence asked for exceeds what the interval of Z leaves.
    """
    check_confidence(confidence)
    log_w = check_log_weights(log_w, at_least=2)
    error = (1 - confidence) - (1 - log_z.confidence) / 2
    if error <= 0:
        raise InputError(
            f"a total variation at confidence {confidence} needs log Z at more than "
            f"{2 * confidence - 1:.6g}, got {log_z.confidence}; raise that of log Z"
        )
    if not math.isfinite(log_z.value):
        raise InputError(f"log Z = {log_z.value}; the total variation needs a positive evidence")
    missing = _shortfall(log_w, log_z.value)
    error_mean = missing.std().item() / math.sqrt(len(missing))
    slope = (1 - missing)[missing > 0].sum().item() / len(missing)
    return TotalVariation(
        value=missing.mean().item(),
        standard_error=error_mean + slope * log_z.standard_error,
        upper=betting_upper(_shortfall(log_w, log_z.high), error),
        kind="bound" if log_z_is_bound else "estimate",
        confidence=confidence,
    )


def reverse_check(
    log_ratio: Float[Tensor, " n"],
    log_r: Float[Tensor, " n"],
    log_z: float,
    threshold: float = 3.0,
    confidence: float = 0.99,
) -> Estimate:
    """Share of the target whose paths q makes ``e^threshold`` times too rarely, from prior paths.

    ``Σ r^β 1[log w - log Z > threshold] / Σ r^β``: a target's path has ``q / π = Z / w``. It is
    0 up to the tails for a sampler that covers the target, and the mass of the missed modes
    otherwise.

    Arguments:
        log_ratio: (n,) ``Λ = log q/p`` of prior paths, -inf where q vanishes.
        log_r: (n,) ``β log r`` of the same paths.
        log_z: the defensive log Z, nats.
        threshold: nats; 3 means below 1/20 of the fair density.
        confidence: of the interval, clipped to [0, 1]. Its lower end is the central limit's, its
            upper end the score's (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212) with the effective
            number k of paths, and never below ``1 - ((1 - confidence) / 2)^(1 / k)``, the exact one
            of k paths that all pass.

    Raises:
        InputError: no prior path has a positive reward.
    """
    log_ratio, log_r = check_pair(log_ratio, log_r, at_least=2)
    if log_r.max() == -math.inf:
        raise InputError("log_r is -inf on every prior path: none reaches the target")
    share = torch.softmax(log_r, 0)
    missed = (log_weights(log_ratio, log_r) - log_z > threshold).double()
    value = (share * missed).sum().item()
    error = (share * (missed - value)).norm().item()
    z, effective = normal_quantile(confidence), effective_sample_size(log_r) * len(log_r)
    extra = z**2 / (2 * effective)
    score = (value + extra + math.hypot(z * error, extra)) / (1 + 2 * extra)
    high = min(1.0, max(score, 1 - ((1 - confidence) / 2) ** (1 / effective)))
    return Estimate(value, error, max(0.0, value - z * error), high, confidence)


def detection_limit(log_z: float, log_bound: float, n_prior: int, hits: float = 5.0) -> float:
    """Smallest posterior mass m of a missed mode that ``hits`` of the prior paths should show.

    A mode of posterior mass m has prior mass at least ``m Z / M``, so ``n_prior m Z / M`` paths
    fall into it; with 5 expected, none does with probability ``e^-5 = 0.7 %``. At most 1.

    Arguments:
        log_z: log Z, nats.
        log_bound: log M with ``r^β ≤ M``, nats.
        n_prior: number of prior paths, ≥ 1.
        hits: expected number of paths that make a detection.
    """
    return math.exp(min(0.0, math.log(hits / n_prior) + log_bound - log_z))


def rejection_indices(
    log_r: Float[Tensor, " n"], log_bound: float, generator: torch.Generator | None = None
) -> Int[Tensor, " k"]:
    """Indices of the prior paths that are exact, independent draws of π.

    Each is accepted with probability ``r^β / M``; on average ``Z / M`` of them are.

    Arguments:
        log_r: (n,) ``β log r`` of prior paths.
        log_bound: log M with ``r^β ≤ M``, nats.
        generator: of the uniforms; on the device of ``log_r``.

    Raises:
        InputError: a reward exceeds the bound.
    """
    log_r = check_log_weights(log_r, "log_r")
    if log_r.max().item() > above(log_bound):
        raise InputError(
            f"log r^β reaches {log_r.max().item():.6g}, above the declared bound {log_bound:.6g}; "
            "rejection would be biased: declare a larger bound"
        )
    uniform = torch.rand(len(log_r), generator=generator, dtype=torch.float64, device=log_r.device)
    return torch.nonzero(uniform.log() < log_r - above(log_bound)).flatten()
