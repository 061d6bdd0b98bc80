"""Evidence estimates on log-normal weights (closed form) and a discrete problem (sums)."""

import math

import pytest
import torch

from difftilt.diagnostics import evidence
from difftilt.diagnostics.weights import check_log_weights, check_pair
from difftilt.errors import InputError


def log_normal(n: int, sd: float, generator: torch.Generator) -> torch.Tensor:
    """log w ~ N(-sd²/2, sd²): log Z = 0, ELBO = -sd²/2, EUBO = sd²/2, ESS = exp(-sd²)."""
    return sd * torch.randn(n, generator=generator, dtype=torch.float64) - sd**2 / 2


def test_log_normal_weights_give_their_closed_forms(generator):
    n, sd = 40_000, 0.7
    log_w = log_normal(n, sd, generator)
    elbo, log_z = evidence.elbo(log_w), evidence.log_evidence(log_w)
    assert abs(elbo.value + sd**2 / 2) < 5 * elbo.standard_error
    assert elbo.standard_error == pytest.approx(sd / math.sqrt(n), rel=0.05)
    assert abs(log_z.value) < 5 * log_z.standard_error
    assert log_z.standard_error == pytest.approx(math.sqrt(math.expm1(sd**2) / n), rel=0.1)
    # sd of the ESS estimate is about 0.006 here.
    assert evidence.effective_sample_size(log_w) == pytest.approx(math.exp(-(sd**2)), abs=0.03)


def test_eubo_from_exact_and_from_weighted_draws_agree(generator):
    sd, n = 0.7, 40_000
    log_w = log_normal(n, sd, generator)
    exact = evidence.eubo(log_normal(n, sd, generator) + sd**2)  # the law of log w under π
    weighted = evidence.eubo(log_w, log_weights=log_w)
    assert abs(exact.value - sd**2 / 2) < 5 * exact.standard_error
    assert abs(weighted.value - sd**2 / 2) < 5 * weighted.standard_error
    assert weighted.standard_error > exact.standard_error


def test_effective_sample_size_at_its_ends():
    assert evidence.effective_sample_size(torch.full((7,), -900.0)) == pytest.approx(1.0)
    assert evidence.effective_sample_size(torch.tensor([0.0, -math.inf])) == pytest.approx(0.5)
    assert evidence.effective_sample_size(torch.full((7,), -math.inf)) == 0.0
    assert evidence.effective_sample_size(torch.tensor([5e4, -5e4, 0.0])) == pytest.approx(1 / 3)


def test_huge_log_weights_do_not_overflow():
    log_w = torch.tensor([1e5, 1e5 + math.log(3.0)], dtype=torch.float64)
    assert evidence.log_mean_exp(log_w) == pytest.approx(1e5 + math.log(2.0), abs=1e-9)
    assert evidence.log_evidence(log_w).value == pytest.approx(1e5 + math.log(2.0), abs=1e-9)


def test_zero_weights_are_weights(generator):
    log_w = torch.zeros(1000)
    log_w[torch.rand(1000, generator=generator) < 0.75] = -math.inf
    kept = (log_w == 0).double().mean().item()
    assert evidence.log_evidence(log_w).value == pytest.approx(math.log(kept))
    assert evidence.elbo(log_w).value == -math.inf
    nothing = evidence.log_evidence(torch.full((10,), -math.inf))
    assert (nothing.value, nothing.low, nothing.high) == (-math.inf, -math.inf, math.inf)


def test_lower_end_is_minus_infinity_when_the_mean_may_be_zero():
    log_w = torch.full((100,), -math.inf)
    log_w[0] = 0.0
    estimate = evidence.log_evidence(log_w)
    assert estimate.low == -math.inf
    assert estimate.value == pytest.approx(math.log(0.01))


def test_eubo_is_infinite_where_the_sampler_vanishes():
    assert evidence.eubo(torch.tensor([0.0, math.inf])).value == math.inf
    ignored = evidence.eubo(torch.tensor([1.0, 1.0, math.inf]), torch.tensor([0.0, 0, -math.inf]))
    assert ignored.value == pytest.approx(1.0)
    with pytest.raises(InputError, match="no draw"):
        evidence.eubo(torch.zeros(2), torch.full((2,), -math.inf))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_impossible_log_weights_are_named(bad: float):
    log_w = torch.tensor([0.0, bad, 0.0])
    for function in (evidence.elbo, evidence.log_evidence, evidence.effective_sample_size):
        with pytest.raises(InputError, match=r"log_w\[1\] = (nan|inf)"):
            function(log_w)


def test_shapes_are_checked():
    with pytest.raises(InputError, match="shape"):
        check_log_weights(torch.zeros(3, 1))
    with pytest.raises(InputError, match="dtype"):
        check_log_weights(torch.zeros(3, dtype=torch.long))
    with pytest.raises(InputError, match="log_ratio has shape"):
        check_pair(torch.zeros(3), torch.zeros(1))
    with pytest.raises(InputError, match="n ≥ 2"):
        evidence.log_evidence(torch.zeros(1))


# A discrete problem: the prior p on five points, a sampler q that misses the second, reward r ≤ 1.
P = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64)
R = torch.tensor([0.8, 1.0, 0.1, 0.0, 0.5], dtype=torch.float64)
Q = torch.tensor([0.799, 1e-9, 0.101, 0.05, 0.05], dtype=torch.float64)
Z = (P * R).sum().item()
LOG_RATIO, LOG_R = (Q / P).log(), R.log()


def draws(law: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.multinomial(law, n, replacement=True, generator=generator)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.9])
def test_defensive_weights_are_bounded_and_unbiased_by_enumeration(share: float):
    omega = evidence.defensive_log_weights(LOG_RATIO, LOG_R, share).exp()
    mixture = (1 - share) * Q + share * P
    assert (mixture * omega).sum().item() == pytest.approx(Z, rel=1e-12)
    assert omega.max().item() <= 1 / share
    assert omega[3] == 0


def test_defensive_weights_are_stable():
    log_ratio = torch.tensor([-math.inf, -1e5, 0.0, 1e5], dtype=torch.float64)
    log_omega = evidence.defensive_log_weights(log_ratio, torch.zeros(4), 0.2)
    expected = [math.log(5), math.log(5), 0.0, -1e5 - math.log(0.8)]
    assert log_omega.tolist() == pytest.approx(expected, rel=1e-12)


def stratified_omega(n_q: int, n_p: int, share: float, generator: torch.Generator):
    index = torch.cat([draws(Q, n_q, generator), draws(P, n_p, generator)])
    stratum = torch.arange(n_q + n_p) >= n_q
    log_omega = evidence.defensive_log_weights(LOG_RATIO[index], LOG_R[index], share)
    return log_omega, stratum


@pytest.mark.parametrize(("n_q", "n_p", "share"), [(160, 40, 0.2), (100, 100, 0.2)])
def test_stratified_estimate_is_unbiased_with_the_standard_error_it_states(
    n_q: int, n_p: int, share: float, generator
):
    values, variances = [], []
    for _ in range(700):
        log_omega, stratum = stratified_omega(n_q, n_p, share, generator)
        scaled = log_omega + evidence.strata_factors(stratum, share).log()
        values.append(math.exp(evidence.log_mean_exp(scaled)))
        variances.append(evidence._stratified_error(scaled.exp(), stratum) ** 2)
    values, variance = torch.tensor(values), torch.tensor(variances).mean().item()
    spread = values.std().item()
    assert abs(values.mean().item() - Z) < 5 * spread / math.sqrt(700)
    # Relative sd of a variance over 700 repetitions: sqrt(2 / 700) = 0.053.
    assert variance == pytest.approx(spread**2, rel=5 * 0.053)


def test_intervals_cover_although_the_sampler_misses_a_mode(generator):
    """Naive: blind. Central limit: nominal 95 %, at least 85 % here. Proven ones: at least 95 %."""
    trials, naive, hits = 40, 0, torch.zeros(4)
    for _ in range(trials):
        index = draws(Q, 400, generator)
        estimate = evidence.log_evidence(LOG_R[index] - LOG_RATIO[index], 0.95)
        naive += estimate.low <= math.log(Z) <= estimate.high
        coin = draws(0.8 * Q + 0.2 * P, 500, generator)
        log_omega = evidence.defensive_log_weights(LOG_RATIO[coin], LOG_R[coin], 0.2)
        by_coin = evidence.defensive_log_evidence(log_omega, 0.2, 0.0, 0.95)
        log_omega, stratum = stratified_omega(400, 100, 0.2, generator)
        fixed = evidence.defensive_log_evidence(log_omega, 0.2, 0.0, 0.95, stratum)
        found = [by_coin.clt, by_coin.betting, fixed.clt, fixed.betting]
        assert all(e is not None for e in found)
        hits += torch.tensor([e.low <= math.log(Z) <= e.high for e in found if e is not None])
    assert naive == 0
    assert bool((hits[[1, 3]] >= 0.95 * trials - 5 * math.sqrt(trials * 0.05 * 0.95)).all())
    assert bool((hits[[0, 2]] >= 0.85 * trials).all())


def test_stratifying_shortens_the_central_limit_interval_and_proven_ones_are_ordered(generator):
    log_omega, stratum = stratified_omega(1600, 400, 0.2, generator)
    fixed = evidence.defensive_log_evidence(log_omega, 0.2, 0.0, 0.99, stratum)
    pooled = evidence.defensive_log_evidence(log_omega, 0.2, 0.0, 0.99)
    assert fixed.clt.standard_error < pooled.clt.standard_error
    assert fixed.bernstein is not None and fixed.betting is not None
    assert fixed.bernstein.low < fixed.betting.low < fixed.clt.value
    assert fixed.clt.value < fixed.betting.high < fixed.bernstein.high
    assert fixed.best is fixed.betting


def test_without_a_bound_there_is_no_proven_interval(generator):
    log_omega, _ = stratified_omega(80, 20, 0.2, generator)
    found = evidence.defensive_log_evidence(log_omega, 0.2)
    assert found.bernstein is None and found.betting is None and found.best is found.clt


def test_a_wrong_bound_or_share_or_stratum_is_refused(generator):
    log_omega, stratum = stratified_omega(80, 20, 0.2, generator)
    with pytest.raises(InputError, match="declare a larger bound"):
        evidence.defensive_log_evidence(log_omega, 0.2, -1.0)
    with pytest.raises(InputError, match="share"):
        evidence.defensive_log_evidence(log_omega, 0.0)
    with pytest.raises(InputError, match="both kinds"):
        evidence.defensive_log_evidence(log_omega, 0.2, 0.0, 0.99, stratum & False)
    with pytest.raises(InputError, match="no path has a positive reward"):
        evidence.defensive_log_evidence(torch.full((9,), -math.inf), 0.2)
