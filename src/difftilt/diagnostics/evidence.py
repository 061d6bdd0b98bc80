"""The normaliser log Z and what its estimates are worth, from log-weights alone.

A path τ of a sampler q has ``Λ = log q(τ) / p(τ)`` and the weight ``log w = β log r - Λ``, in
nats. Then ``E_q[w] = Z``, ``E_q[log w] ≤ log Z ≤ E_π[log w]``: the ELBO and the EUBO. All of
that is blind to a mode that q never visits. The *defensive* estimate is not: paths of
``(1 - a) q + a p`` have the weight ``ω = r^β / ((1 - a) e^Λ + a)``, bounded by ``M / a`` where
``r^β ≤ M``, whatever q is.

Here ``log_r`` always means ``β log r``. A weight may be zero (log-weight -inf), never NaN or +inf.
Everything is computed in float64.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from difftilt._ops import above
from difftilt.diagnostics.intervals import (
    Estimate,
    bernstein_half_width,
    betting_lower,
    betting_upper,
    check_confidence,
    mean_estimate,
    normal_quantile,
)
from difftilt.diagnostics.tails import pareto_k
from difftilt.diagnostics.weights import check_log_weights, check_pair
from difftilt.errors import InputError


def log_mean_exp(log_w: Float[Tensor, " n"]) -> float:
    """``log mean w``; -inf if every weight is zero."""
    log_w = check_log_weights(log_w)
    return (torch.logsumexp(log_w, 0) - math.log(len(log_w))).item()


def effective_sample_size(log_w: Float[Tensor, " n"]) -> float:
    """``(Σ w)² / (n Σ w²)``, a fraction in (0, 1]; 0 if every weight is zero.

    Breaks when the sampler misses a mode: the weights that it never draws do not count.
    """
    log_w = check_log_weights(log_w)
    if log_w.max() == -math.inf:
        return 0.0
    log_share = 2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)
    return min(1.0, log_share.exp().item() / len(log_w))


def elbo(log_w: Float[Tensor, " n"], confidence: float = 0.99) -> Estimate:
    """``E_q[log w] = log Z - KL(q || π)``, from posterior paths; -inf if a path has no reward.

    Arguments:
        log_w: (n,) log-weights of paths of q, n ≥ 2.
        confidence: of the central-limit interval.
    """
    return mean_estimate(check_log_weights(log_w, at_least=2), confidence)


def eubo(
    log_w: Float[Tensor, " n"],
    log_weights: Float[Tensor, " n"] | None = None,
    confidence: float = 0.99,
) -> Estimate:
    """``E_π[log w] = log Z + KL(π || q)``, from draws of the target π.

    With ``log_weights`` v the draws come from another law and the mean is the self-normalised one,
    ``Σ v log w / Σ v`` (bias of order 1/n), its standard error by the delta method.

    Arguments:
        log_w: (n,) log-weights ``β log r - Λ`` of the draws; +inf, a path that q cannot make, is
            allowed and makes the EUBO +inf.
        log_weights: (n,) their log importance weights, or None: exact draws of π.
        confidence: of the central-limit interval.

    Raises:
        InputError: no draw has a positive weight.
    """
    log_v = torch.zeros_like(log_w) if log_weights is None else log_weights
    log_v = check_log_weights(log_v, "log_weights", at_least=2)
    if log_v.max() == -math.inf:
        raise InputError("log_weights is -inf everywhere: no draw of the target to average over")
    share, counted = torch.softmax(log_v, 0), log_v > -math.inf
    share, log_w = share[counted], log_w.detach().double()[counted]
    value = (share * log_w).sum().item()
    if not math.isfinite(value):
        return Estimate(value, math.nan, value, value, confidence)
    error = (share * (log_w - value)).norm().item()
    half = normal_quantile(confidence) * error
    return Estimate(value, error, value - half, value + half, confidence)


def _log_estimate(value: float, error: float, confidence: float, log_scale: float) -> Estimate:
    """Estimate of ``log(scale * mean)`` from a mean and its standard error."""
    if value <= 0:
        return Estimate(-math.inf, math.inf, -math.inf, math.inf, confidence)
    half = normal_quantile(confidence) * error
    ends = _log_interval(value - half, value + half, log_scale)
    return Estimate(log_scale + math.log(value), error / value, *ends, confidence)


def _log_interval(low: float, high: float, log_scale: float) -> tuple[float, float]:
    def log(mean: float) -> float:
        return log_scale + math.log(mean) if mean > 0 else -math.inf

    return log(low), log(high)


def log_evidence(log_w: Float[Tensor, " n"], confidence: float = 0.99) -> Estimate:
    """``log Z ≈ log mean w``: central-limit interval of the mean, then the logarithm.

    Exact when q reaches all of the target; breaks, silently, when it misses a mode, or when the
    weights' variance is infinite (``pareto_k``). The lower end may be -inf. If every weight is
    zero nothing is known: value -inf, interval (-inf, inf).

    Arguments:
        log_w: (n,) log-weights of independent paths of q, n ≥ 2.
        confidence: of the interval.
    """
    log_w = check_log_weights(log_w, at_least=2)
    check_confidence(confidence)
    top = log_w.max().item()
    if top == -math.inf:
        return _log_estimate(0.0, 0.0, confidence, 0.0)
    weights = (log_w - top).exp()
    error = (weights.std() / math.sqrt(len(weights))).item()
    return _log_estimate(weights.mean().item(), error, confidence, top)


@dataclass(frozen=True)
class DefensiveEvidence:
    """log Z from the paths of the mixture ``(1 - a) q + a p``.

    Attributes:
        clt: with the central-limit interval.
        bernstein: with the empirical Bernstein interval, valid for every n; None without a bound
        M. betting: with the betting interval, valid for every n and shorter; None without M.
        ess: effective sample size of ω, a fraction.
        k_hat: Pareto k-hat of ω.
    """

    clt: Estimate
    bernstein: Estimate | None
    betting: Estimate | None
    ess: float
    k_hat: float

    @property
    def best(self) -> Estimate:
        """The proven interval where there is one, else the central-limit one."""
        return self.clt if self.betting is None else self.betting


def check_share(share: float) -> None:
    """Refuse a share of prior paths outside (0, 1)."""
    if not 0 < share < 1:
        raise InputError(f"share = {share} of prior paths must lie strictly between 0 and 1 (0.2)")


def defensive_log_weights(
    log_ratio: Float[Tensor, " n"], log_r: Float[Tensor, " n"], share: float
) -> Float[Tensor, " n"]:
    """``log ω = β log r - log((1 - a) e^Λ + a)``, at most ``log M - log a``.

    Arguments:
        log_ratio: (n,) ``Λ = log q/p`` of each path, drawn from q or from p; -inf where q
        vanishes. log_r: (n,) ``β log r``.
        share: a, the share of prior paths, in (0, 1).

    Source: Hesterberg 1995 (Technometrics 37, 185-194); Owen and Zhou 2000 (JASA 95, 135-143).
    """
    check_share(share)
    log_ratio, log_r = check_pair(log_ratio, log_r)
    log_share = torch.full_like(log_ratio, math.log(share))
    return log_r - torch.logaddexp(math.log1p(-share) + log_ratio, log_share)


def strata_factors(from_prior: Bool[Tensor, " n"], share: float) -> Float[Tensor, " n"]:
    """``(1 - a) n / n_q`` for a path of q, ``a n / n_p`` for one of p; 1 if ``n_p = a n``.

    The plain mean of ``factor * ω`` then estimates Z without bias whatever the two counts.
    """
    n, n_prior = len(from_prior), int(from_prior.sum())
    if n_prior in (0, n):
        raise InputError(
            f"stratum holds {n_prior} prior paths of {n}; it needs paths of both kinds"
        )
    of_q, of_p = (1 - share) * n / (n - n_prior), share * n / n_prior
    return torch.where(from_prior, of_p, of_q).double()


def _stratified_error(values: Float[Tensor, " n"], from_prior: Bool[Tensor, " n"] | None) -> float:
    """Standard error of the mean of all values, each stratum varying about its own mean."""
    n = len(values)
    if from_prior is None:
        return (values.std() / math.sqrt(n)).item()
    parts = [values[from_prior], values[~from_prior]]
    return math.sqrt(sum(len(part) * part.var().item() for part in parts if len(part) > 1)) / n


def _proven(
    values: Float[Tensor, " n"], clt: Estimate, log_scale: float
) -> tuple[Estimate, Estimate]:
    """The Bernstein and betting intervals of ``log(scale * mean)``, values in [0, 1]."""
    mean, confidence, tail = values.mean().item(), clt.confidence, (1 - clt.confidence) / 2
    half = bernstein_half_width(values, confidence)
    bernstein = _log_interval(mean - half, min(1.0, mean + half), log_scale)
    betting = (betting_lower(values, tail), betting_upper(values, tail))
    head = (clt.value, clt.standard_error)
    return (
        Estimate(*head, *bernstein, confidence),
        Estimate(*head, *_log_interval(*betting, log_scale), confidence),
    )


def defensive_log_evidence(
    log_omega: Float[Tensor, " n"],
    share: float,
    log_bound: float | None = None,
    confidence: float = 0.99,
    stratum: Bool[Tensor, " n"] | None = None,
) -> DefensiveEvidence:
    """``log Z = log E[ω]`` over paths of ``(1 - a) q + a p``, with intervals that no q can fool.

    Without ``stratum``, each path came from p with probability a, by its own coin. With it, the
    two counts are fixed (any counts: see ``strata_factors``) and the central-limit interval
    takes its variance within the strata. The two proven intervals hold in both cases, with the
    same formulas: they need independence and a common bound, not a common law. No union over
    strata is needed.

    Arguments:
        log_omega: (n,) from ``defensive_log_weights``, independent paths, n ≥ 2.
        share: a, in (0, 1).
        log_bound: log M with ``r^β ≤ M``, nats; None if no bound is known: then no proven
        interval. confidence: of each interval.
        stratum: (n,) True for a path of p, or None.

    Raises:
        InputError: a weight exceeds ``M / a``: the declared bound is wrong.
    """
    check_share(share)
    check_confidence(confidence)
    log_omega = check_log_weights(log_omega, "log_omega", at_least=2)
    if stratum is not None:
        log_omega = log_omega + strata_factors(stratum, share).log()
    log_top = log_omega.max().item()
    if log_top == -math.inf:
        raise InputError("log_omega is -inf everywhere: no path has a positive reward")
    weights = (log_omega - log_top).exp()
    error = _stratified_error(weights, stratum)
    clt = _log_estimate(weights.mean().item(), error, confidence, log_top)
    bernstein = betting = None
    if log_bound is not None:
        log_scale = _log_largest_weight(above(log_bound), share, stratum)
        if log_top > log_scale:
            raise InputError(
                f"a defensive weight of {log_top:.6g} nats exceeds its bound {log_scale:.6g}: "
                f"log r^β ≤ {log_bound:.6g} does not hold; declare a larger bound, or None"
            )
        unit = (log_omega - log_scale).exp()
        bernstein, betting = _proven(unit, clt, log_scale)
    ess, k_hat = effective_sample_size(log_omega), pareto_k(log_omega)
    return DefensiveEvidence(clt, bernstein, betting, ess, k_hat)


def _log_largest_weight(
    log_bound: float, share: float, from_prior: Bool[Tensor, " n"] | None
) -> float:
    """``log (M / a)``, times the larger of the strata's factors."""
    factor = 1.0 if from_prior is None else strata_factors(from_prior, share).max().item()
    return log_bound - math.log(share) + math.log(factor)
