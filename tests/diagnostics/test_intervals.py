"""Intervals for the mean: coverage, width, and the closed forms behind them."""

import math

import pytest
import torch

from difftilt.diagnostics.intervals import (
    Estimate,
    bernstein_half_width,
    betting_lower,
    betting_upper,
    mean_estimate,
    normal_quantile,
)
from difftilt.errors import InputError


def misses_allowed(trials: int, rate: float) -> float:
    """Five standard errors above the expected number: false alarm below 3e-7."""
    return trials * rate + 5 * math.sqrt(trials * rate * (1 - rate))


def test_normal_quantile_is_the_textbook_one():
    assert normal_quantile(0.95) == pytest.approx(1.959964, abs=1e-6)
    assert normal_quantile(0.99) == pytest.approx(2.575829, abs=1e-6)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 99.0, math.nan])
def test_confidence_must_be_a_probability(confidence: float):
    with pytest.raises(InputError, match="confidence"):
        normal_quantile(confidence)


def test_mean_estimate_matches_its_formula(generator):
    x = torch.randn(500, generator=generator, dtype=torch.float64)
    estimate = mean_estimate(x, 0.95)
    assert estimate.standard_error == pytest.approx(x.std().item() / math.sqrt(500))
    assert estimate.high - estimate.value == pytest.approx(1.959964 * estimate.standard_error)


def test_estimate_shows_the_digits_that_its_error_deserves():
    assert str(Estimate(0.124761, 0.0041, 0, 0, 0.99)) == "0.125 ± 0.004"
    assert str(Estimate(0.124761, 0.00041, 0, 0, 0.99)) == "0.1248 ± 0.0004"
    assert str(Estimate(-3.36, 0.27, 0, 0, 0.99)) == "-3.36 ± 0.27"
    assert str(Estimate(-math.inf, math.inf, 0, 0, 0.99)) == "-inf ± inf"


def test_bernstein_half_width_matches_its_formula():
    x = torch.tensor([0.0, 0.2, 0.4, 1.0], dtype=torch.float64)
    variance, tail = sum((v - 0.4) ** 2 for v in (0, 0.2, 0.4, 1)) / 3, math.log(2 / 0.005)
    expected = math.sqrt(2 * variance * tail / 4) + 7 * tail / (3 * 3)
    assert bernstein_half_width(x, 0.99) == pytest.approx(expected, rel=1e-12)


def rare(n: int, generator: torch.Generator) -> torch.Tensor:
    """Mean 0.02 + 0.98 / 100: mostly small, one draw in a hundred at the upper end."""
    return torch.where(torch.rand(n, generator=generator) < 0.01, 1.0, 0.02).double()


def two_laws(n: int, generator: torch.Generator) -> torch.Tensor:
    """Three quarters are uniform on [0, 1], a quarter is 0.9 or 1; mean 0.75/2 + 0.25 * 0.95."""
    x = torch.rand(n, generator=generator, dtype=torch.float64)
    x[: n // 4] = torch.where(x[: n // 4] < 0.5, 0.9, 1.0)
    return x


LAWS = {"rare": (rare, 0.02 + 0.98 / 100), "two laws": (two_laws, 0.375 + 0.2375)}


@pytest.mark.parametrize("law", LAWS)
def test_proven_intervals_cover_at_least_as_often_as_they_say(law: str, generator):
    draw, mean = LAWS[law]
    trials, error, missed = 100, 0.1, torch.zeros(3)
    for _ in range(trials):
        x = draw(120, generator)
        half = bernstein_half_width(x, 1 - 2 * error)
        low, high = betting_lower(x, error), betting_upper(x, error)
        missed += torch.tensor([low > mean, high < mean, abs(x.mean().item() - mean) > half])
    assert bool((missed <= misses_allowed(trials, error)).all()), missed


def test_betting_catches_what_the_central_limit_interval_does_not(generator):
    """60 draws of the rare law: the sample is constant with probability 0.55."""
    mean, trials, clt_missed, betting_missed = 0.02 + 0.98 / 100, 60, 0, 0
    for _ in range(trials):
        x = rare(60, generator)
        clt_missed += mean_estimate(x, 0.9).high < mean
        betting_missed += betting_upper(x, 0.05) < mean
    assert clt_missed > 0.4 * trials
    assert betting_missed <= misses_allowed(trials, 0.05)


def test_betting_is_exact_for_ones_and_zeros():
    """All zeros: the ruin of mean m is ``Σ_c prior_c (1 + c m / (1 - m))^n``, inverted by hand."""
    n, error = 50, 0.01
    high = betting_upper(torch.zeros(n), error)
    # Full stake alone (prior 1/4) gives (1 - m)^-n / 4 = 1 / error; the mixture is a bit sharper.
    full_stake = 1 - (error / 4) ** (1 / n)
    exact = 1 - error ** (1 / n)
    assert exact < high < full_stake + 1e-9
    assert betting_lower(torch.zeros(n), error) == 0.0
    assert betting_lower(torch.ones(n), error) == pytest.approx(1 - high, abs=1e-9)


def test_betting_bounds_grow_with_every_value(generator):
    x = torch.rand(60, generator=generator, dtype=torch.float64)
    for index in range(0, 60, 7):
        larger = x.clone()
        larger[index] = (x[index] + 0.3).clamp(max=1)
        assert betting_upper(larger, 0.05) >= betting_upper(x, 0.05)
        assert betting_lower(larger, 0.05) >= betting_lower(x, 0.05)


def test_betting_is_shorter_than_bernstein_where_a_rare_value_could_matter(generator):
    x = (0.3 * torch.randn(2000, generator=generator, dtype=torch.float64)).exp() / 50
    rise = betting_upper(x, 0.005) - x.mean().item()
    fall = x.mean().item() - betting_lower(x, 0.005)
    half = bernstein_half_width(x, 0.99)
    assert 0 < rise < half / 2
    assert 0 < fall < half / 5


def test_betting_is_near_the_central_limit_width_for_many_draws(generator):
    x = torch.rand(20_000, generator=generator, dtype=torch.float64)
    width = betting_upper(x, 0.005) - betting_lower(x, 0.005)
    estimate = mean_estimate(x, 0.99)
    assert 1 < width / (estimate.high - estimate.low) < 1.7


@pytest.mark.parametrize(
    "values", [torch.tensor([0.1, 1.2]), torch.tensor([0.1, math.nan]), torch.tensor([0.5])]
)
def test_values_outside_the_unit_interval_are_refused(values: torch.Tensor):
    with pytest.raises(InputError):
        betting_lower(values, 0.01)
    with pytest.raises(InputError):
        bernstein_half_width(values, 0.99)
