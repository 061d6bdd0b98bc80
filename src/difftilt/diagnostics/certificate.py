"""The certificate: how near a sampler is to the posterior, in numbers and in words.

It is made of two sets of independent paths, some drawn by the sampler q and some by the prior p,
of which only ``Λ = log q/p`` and ``log r`` are kept. Together they are the defensive mixture
``(1 - a) q + a p`` with ``a = n_p / (n_q + n_p)``, from which log Z follows with an interval
that no missed mode can fool; from its upper end follows an upper bound of the total variation.
Where r has no known bound, the same numbers are estimates and are called so.

The numbers speak of path laws, which is more than x_0: the total variation of x_0 is at most
that of the paths, often several times smaller.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt._ops import above
from difftilt.diagnostics import evidence
from difftilt.diagnostics.closeness import detection_limit, reverse_check, total_variation
from difftilt.diagnostics.findings import Findings
from difftilt.diagnostics.intervals import Estimate, mean_estimate, normal_quantile
from difftilt.diagnostics.layout import render
from difftilt.diagnostics.tails import pareto_k, pareto_k_threshold
from difftilt.diagnostics.verdict import judge
from difftilt.diagnostics.weights import check_pair, log_weights
from difftilt.errors import InputError


@dataclass(frozen=True)
class PathScores:
    """What the certificate reads of a set of independent paths of one sampler.

    Arguments:
        log_ratio: (n,) ``Λ = log q(τ) / p(τ)``, nats; -inf where q vanishes.
        log_r: (n,) ``log r(x_0)``, nats, before the power β; -inf where the reward is zero.
    """

    log_ratio: Float[Tensor, " n"]
    log_r: Float[Tensor, " n"]


@dataclass(frozen=True)
class Expense:
    """What the paths cost, and how noisy the reward is.

    Arguments:
        network_calls: evaluations of a network on one state, or None: not counted.
        reward_calls: evaluations of the reward on one x_0, or None.
        reward_noise: standard deviation of repeated calls of log r on one x_0, nats, or None.
    """

    network_calls: int | None = None
    reward_calls: int | None = None
    reward_noise: float | None = None


@dataclass(frozen=True)
class Certificate(Findings):
    """How near a sampler is to the posterior. ``print`` it; ``to_dict`` for JSON.

    Attributes:
        verdict: one sentence.
        trust: the sampler passed, and the draws suffice to say so.
        warnings: what else to know.

    The others are those of ``Findings``.
    """

    verdict: str
    trust: bool
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries for strict JSON; a number that is not finite becomes None."""
        return _plain(dataclasses.asdict(self))

    def __str__(self) -> str:
        """The certificate as a block of plain text."""
        return render(self, self.verdict, self.warnings)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _tempered(paths: PathScores, beta: float, name: str) -> PathScores:
    """The same paths with ``β log r``, checked, in float64 on the CPU."""
    try:
        log_ratio, log_r = check_pair(paths.log_ratio, paths.log_r, at_least=2)
    except InputError as error:
        raise InputError(f"{name} paths: {error}") from None
    return PathScores(log_ratio.cpu(), beta * log_r.cpu())


def _check_settings(beta: float, log_bound: float | None, log_r: Float[Tensor, " n"]) -> None:
    if not 0 < beta < math.inf:
        raise InputError(f"beta = {beta} must be positive and finite")
    if log_r.max() == -math.inf:
        raise InputError("log r is -inf on every path: there is no posterior to certify")
    highest = log_r.max().item() / beta
    if log_bound is not None and not highest <= above(log_bound):
        raise InputError(
            f"log r reaches {highest:.6g}, above log_bound = {log_bound:.6g}: the proof would not "
            "hold; declare a larger bound, or None"
        )


def _unseen(
    q: PathScores, log_omega_prior: Float[Tensor, " n"], z: float, confidence: float
) -> Estimate:
    """``(Z - Z_naive) / Z`` by paired differences.

    The defensive minus the naive estimate is ``a (mean_p ω - mean_q ω e^-Λ)``: two estimates of
    ``E_p[ω]``, one from each sampler, which agree if q covers the target.
    """
    share = len(log_omega_prior) / (len(log_omega_prior) + len(q.log_r))
    log_omega = evidence.defensive_log_weights(q.log_ratio, q.log_r, share)
    by_prior = mean_estimate(share * (log_omega_prior - z).exp(), confidence)
    by_sampler = mean_estimate(share * (log_weights(q.log_ratio, log_omega) - z).exp(), confidence)
    value = by_prior.value - by_sampler.value
    error = math.hypot(by_prior.standard_error, by_sampler.standard_error)
    half = normal_quantile(confidence) * error
    return Estimate(value, error, value - half, value + half, confidence)


def certify_weights(
    posterior: PathScores,
    prior: PathScores,
    beta: float = 1.0,
    log_bound: float | None = None,
    confidence: float = 0.99,
    expense: Expense = Expense(),
) -> Certificate:
    """Certificate of a sampler from the scores of its paths and of prior paths.

    The two sets are one stratified sample of the defensive mixture with
    ``a = n_p / (n_q + n_p)``; about a fifth of prior paths is a good share. The EUBO is the
    self-normalised mean over this mixture, which uses every path and, unlike rejection, needs no
    bound.

    Arguments:
        posterior: n_q independent paths of the sampler, n_q ≥ 2.
        prior: n_p independent paths of the prior, n_p ≥ 2.
        beta: power of the reward, > 0.
        log_bound: upper bound of log r, nats, before the power β; None if none is known. Its
            rounding in float32, 1e-5 of 1 + |bound|, is allowed for.
        confidence: of every interval and bound, each by itself.
        expense: what the paths cost; copied into the certificate.

    Raises:
        InputError: a score is NaN or +inf, fewer than two paths of either kind, no path with a
            positive reward, or a reward above the declared bound.
    """
    q, p = _tempered(posterior, beta, "posterior"), _tempered(prior, beta, "prior")
    both = PathScores(torch.cat([q.log_ratio, p.log_ratio]), torch.cat([q.log_r, p.log_r]))
    _check_settings(beta, log_bound, both.log_r)
    n, n_prior = len(both.log_r), len(p.log_r)
    share, of_prior = n_prior / n, torch.arange(n) >= n - n_prior
    # What the reward's check lets pass above the bound belongs to the proof.
    log_m = None if log_bound is None else beta * above(log_bound)
    log_omega = evidence.defensive_log_weights(both.log_ratio, both.log_r, share)
    defensive = evidence.defensive_log_evidence(log_omega, share, log_m, confidence, of_prior)
    z, log_w = defensive.best.value, log_weights(q.log_ratio, q.log_r)
    reached, proven = p.log_r.max() > -math.inf, log_m is not None and not expense.reward_noise
    found = Findings(
        n=n,
        n_prior=n_prior,
        share=share,
        confidence=confidence,
        beta=beta,
        log_bound=log_bound,
        elbo=evidence.elbo(log_w, confidence),
        eubo=evidence.eubo(log_weights(both.log_ratio, both.log_r), log_omega, confidence),
        log_z=evidence.log_evidence(log_w, confidence),
        defensive=defensive,
        ess=evidence.effective_sample_size(log_w),
        k_hat=pareto_k(log_w),
        k_threshold=pareto_k_threshold(len(log_w)),
        total_variation=total_variation(log_w, defensive.best, confidence, proven),
        reverse_missing=reverse_check(p.log_ratio, p.log_r, z, confidence=confidence)
        if reached
        else None,
        unseen=_unseen(q, log_omega[of_prior], z, confidence),
        effective_prior=evidence.effective_sample_size(p.log_r) * n_prior,
        detection_limit=None if log_m is None else detection_limit(z, log_m, n_prior),
        **dataclasses.asdict(expense),
    )
    return Certificate(**vars(found), **judge(found)._asdict())
