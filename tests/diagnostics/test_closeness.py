"""Total variation, reverse check and rejection on a discrete problem, against enumeration."""

import math
from itertools import pairwise

import pytest
import torch

from difftilt.diagnostics.closeness import (
    detection_limit,
    rejection_indices,
    reverse_check,
    total_variation,
)
from difftilt.diagnostics.evidence import (
    defensive_log_evidence,
    defensive_log_weights,
    log_evidence,
)
from difftilt.diagnostics.intervals import Estimate
from difftilt.errors import InputError

P = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64)
R = torch.tensor([0.8, 1.0, 0.1, 0.0, 0.5], dtype=torch.float64)
Z = (P * R).sum().item()
POSTERIOR = P * R / Z
SAMPLERS = {
    "near": torch.tensor([0.42, 0.45, 0.04, 0.01, 0.08], dtype=torch.float64),
    "collapsed": torch.tensor([0.799, 1e-9, 0.101, 0.05, 0.05], dtype=torch.float64),
    "exact": POSTERIOR.clone(),
    "prior": P.clone(),
}


def known(log_z: float, confidence: float = 0.999999) -> Estimate:
    return Estimate(log_z, 0.0, log_z, log_z, confidence)


def draws(law: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.multinomial(law, n, replacement=True, generator=generator)


def log_w_of(q: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return (P * R / q).log()[index]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_formula_is_the_total_variation(name: str, generator):
    """With the true Z the estimator's mean is TV by enumeration: 5 standard errors."""
    q = SAMPLERS[name]
    truth = 0.5 * (q - POSTERIOR).abs().sum().item()
    tv = total_variation(log_w_of(q, draws(q, 20_000, generator)), known(math.log(Z)), 0.99, True)
    assert abs(tv.value - truth) <= 5 * tv.standard_error + 1e-12
    assert truth <= tv.upper <= truth + 0.02
    assert tv.kind == "bound"


def test_grows_with_z(generator):
    q = SAMPLERS["near"]
    log_w = log_w_of(q, draws(q, 500, generator))
    found = [total_variation(log_w, known(math.log(Z) + d)) for d in (-0.2, -0.05, 0.0, 0.05, 0.2)]
    assert all(a.value <= b.value and a.upper <= b.upper for a, b in pairwise(found))
    assert {tv.kind for tv in found} == {"estimate"}


def test_the_upper_end_uses_the_upper_end_of_z(generator):
    q = SAMPLERS["near"]
    log_w = log_w_of(q, draws(q, 500, generator))
    z = math.log(Z)
    wide = total_variation(log_w, Estimate(z, 0.1, z - 0.3, z + 0.3, 0.999999))
    moved = total_variation(log_w, known(z + 0.3))
    assert wide.upper == pytest.approx(moved.upper, abs=1e-9)
    assert wide.value < moved.value


@pytest.mark.parametrize("name", ["near", "collapsed"])
def test_the_bound_holds_at_least_as_often_as_it_says(name: str, generator):
    """90 % bounds from the same paths for Z and TV; at most 10 % + 5 standard errors may fail."""
    q, share, trials, failed = SAMPLERS[name], 0.2, 40, 0
    truth = 0.5 * (q - POSTERIOR).abs().sum().item()
    for _ in range(trials):
        own, prior = draws(q, 240, generator), draws(P, 60, generator)
        both = torch.cat([own, prior])
        log_omega = defensive_log_weights((q / P).log()[both], R.log()[both], share)
        stratum = torch.arange(300) >= 240
        log_z = defensive_log_evidence(log_omega, share, 0.0, 0.9, stratum).betting
        assert log_z is not None
        failed += total_variation(log_w_of(q, own), log_z, 0.9, True).upper < truth
    assert failed <= trials * 0.1 + 5 * math.sqrt(trials * 0.09)


def test_a_collapsed_sampler_looks_perfect_with_its_own_z(generator):
    """Why Z must come from the defensive estimate."""
    q = SAMPLERS["collapsed"]
    q_on_modes = q.clone()
    q_on_modes[[1, 2, 3]] = 1e-12
    q_on_modes[[0, 4]] = POSTERIOR[[0, 4]] / POSTERIOR[[0, 4]].sum()
    log_w = log_w_of(q_on_modes, draws(q_on_modes, 2000, generator))
    blind = total_variation(log_w, log_evidence(log_w, 0.999))
    seeing = total_variation(log_w, known(math.log(Z)))
    assert blind.value < 1e-6
    assert seeing.value == pytest.approx(POSTERIOR[1:4].sum().item(), abs=1e-6)


def test_confidence_must_leave_room_for_the_mean():
    with pytest.raises(InputError, match="raise that of log Z"):
        total_variation(torch.zeros(9), known(0.0, confidence=0.9), 0.99)
    assert total_variation(torch.zeros(9), known(0.0, confidence=0.99), 0.99).value == 0
    with pytest.raises(InputError, match="positive evidence"):
        total_variation(torch.zeros(9), known(-math.inf))


def test_reverse_check_measures_the_missed_mass(generator):
    """The mass of the points whose π / q exceeds e^3; 0 for the sampler that covers."""
    index = draws(P, 20_000, generator)
    missed = reverse_check(
        (SAMPLERS["collapsed"] / P).log()[index], R.log()[index], math.log(Z), confidence=0.99
    )
    assert abs(missed.value - POSTERIOR[1].item()) < 5 * missed.standard_error
    assert missed.low < POSTERIOR[1].item() < missed.high
    covered = reverse_check((SAMPLERS["near"] / P).log()[index], R.log()[index], math.log(Z))
    assert covered.value == 0.0
    assert 0 < covered.high < 0.001


def test_reverse_check_states_what_few_paths_leave_open():
    """Ten equal paths that all pass leave 1 - 0.005^(1/10) open at 99 %."""
    passed = reverse_check(torch.zeros(10), torch.zeros(10), 0.0)
    assert passed.high == pytest.approx(1 - 0.005**0.1)
    with pytest.raises(InputError, match="none reaches the target"):
        reverse_check(torch.zeros(3), torch.full((3,), -math.inf), 0.0)


@pytest.mark.parametrize("missed", [0.05, 0.2])
def test_the_upper_end_of_the_reverse_check_covers_with_few_paths(missed: float):
    """30 equal paths, 99 %: the upper end fails in at most 1 of 100 by the binomial law."""
    failed = 0.0
    for count in range(31):
        log_ratio = torch.where(torch.arange(30) < count, -9.0, 0.0)
        high = reverse_check(log_ratio, torch.zeros(30), 0.0).high
        chance = math.comb(30, count) * missed**count * (1 - missed) ** (30 - count)
        failed += chance * (high < missed)
    assert failed <= 0.01


def test_reverse_check_sees_paths_that_the_sampler_cannot_make():
    log_ratio = torch.tensor([-math.inf, 0.0, -math.inf])
    log_r = torch.tensor([0.0, 0.0, -math.inf])
    assert reverse_check(log_ratio, log_r, 0.0).value == pytest.approx(0.5)


def test_detection_limit():
    """1000 prior paths, Z / M = 0.5: a mode of 1 % has 5 of them."""
    assert detection_limit(math.log(0.5), 0.0, 1000) == pytest.approx(0.01)
    assert detection_limit(-50.0, 0.0, 1000) == 1.0


def test_rejection_gives_exact_draws_at_the_stated_rate(generator):
    n = 40_000
    index = draws(P, n, generator)
    kept = index[rejection_indices(R.log()[index], 0.0, generator)]
    assert abs(len(kept) - n * Z) < 5 * math.sqrt(n * Z * (1 - Z))
    share = torch.bincount(kept, minlength=5) / len(kept)
    assert bool((share - POSTERIOR).abs().le(5 * (POSTERIOR / len(kept)).sqrt() + 1e-12).all())
    with pytest.raises(InputError, match="declare a larger bound"):
        rejection_indices(R.log()[index], -0.5, generator)
