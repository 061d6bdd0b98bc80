"""What a certificate is made of: the numbers that a verdict and a layout read."""

from dataclasses import dataclass

from difftilt.diagnostics.closeness import TotalVariation
from difftilt.diagnostics.evidence import DefensiveEvidence
from difftilt.diagnostics.intervals import Estimate


@dataclass(frozen=True)
class Findings:
    """The numbers of a certificate, before anything is said of them.

    Attributes:
        n: all paths; ``n_prior`` of them were drawn by the prior, the others by the sampler.
        share: a, the prior's share.
        confidence: of every interval and bound, each by itself.
        beta: power of the reward.
        log_bound: declared upper bound of log r, nats, before the power β; None if unknown.
        elbo: ``E_q[log w]``.
        eubo: ``E_π[log w]``, from all paths weighted by ω.
        log_z: naive, from the sampler's paths alone.
        defensive: from all paths; the log Z to quote.
        ess: effective sample size of the sampler's weights, a fraction.
        k_hat: Pareto k-hat of the sampler's weights; sound below ``k_threshold``.
        total_variation: of the path laws.
        reverse_missing: share of the weighted prior paths that the sampler makes 20 times too
            rarely, or less often; None if no prior path has a positive reward.
        unseen: ``1 - Z_naive / Z``, the share of Z which the prior paths see and the sampler's
            do not.
        effective_prior: how many equally weighted prior paths the weighted ones are worth.
        detection_limit: smallest posterior mass of a missed mode that would have been seen; None
            without a bound.
        network_calls: that the paths cost, or None: not counted.
        reward_calls: likewise.
        reward_noise: standard deviation of repeated calls of log r on one x_0, nats, or None.
    """

    n: int
    n_prior: int
    share: float
    confidence: float
    beta: float
    log_bound: float | None
    elbo: Estimate
    eubo: Estimate
    log_z: Estimate
    defensive: DefensiveEvidence
    ess: float
    k_hat: float
    k_threshold: float
    total_variation: TotalVariation
    reverse_missing: Estimate | None
    unseen: Estimate
    effective_prior: float
    detection_limit: float | None
    network_calls: int | None
    reward_calls: int | None
    reward_noise: float | None
