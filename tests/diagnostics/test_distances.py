"""Distances against closed forms, references of scipy, and the level and power of the tests."""

import math

import pytest
import torch
from scipy import stats

from difftilt.diagnostics.distances import (
    chi_square_cells,
    classifier_two_sample_test,
    energy_distance,
    energy_test,
    mode_masses,
    mode_total_variation,
    sliced_wasserstein,
)
from difftilt.errors import InputError


def normal(n: int, d: int, generator: torch.Generator, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def test_mode_masses_are_weighted_shares():
    labels = torch.tensor([0, 2, 2, 1])
    assert mode_masses(labels, 4).tolist() == [0.25, 0.25, 0.5, 0.0]
    log_w = torch.tensor([0.0, math.log(2), math.log(2), -math.inf])
    assert mode_masses(labels, 4, log_w).tolist() == pytest.approx([0.2, 0.0, 0.8, 0.0])
    with pytest.raises(InputError, match="labels"):
        mode_masses(labels, 2)
    with pytest.raises(InputError, match="-inf everywhere"):
        mode_masses(labels, 4, torch.full((4,), -math.inf))


def test_mode_total_variation_takes_counts_and_masses():
    exact = torch.tensor([0.5, 0.25, 0.25, 0.0])
    assert mode_total_variation(torch.tensor([5, 5, 0, 0]), exact) == pytest.approx(0.25)
    assert mode_total_variation(torch.tensor([0.0, 0, 0, 3.0]), exact) == pytest.approx(1.0)
    assert mode_total_variation(exact, exact) == 0.0
    with pytest.raises(InputError, match="masses but"):
        mode_total_variation(torch.ones(3), exact)
    with pytest.raises(InputError, match="masses must be"):
        mode_total_variation(torch.tensor([1.0, -1.0, 0, 0]), exact)


def test_energy_distance_equals_its_double_sums():
    x, y = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0]])
    between = (0 + 2 + 1 + 1 + 3 + 1) / 6
    within_x, within_y = 2 * (1 + 3 + 2) / 6, 2 * 2 / 2
    assert energy_distance(x, y) == pytest.approx(2 * between - within_x - within_y)


def test_energy_distance_is_unbiased_and_matches_its_closed_form(generator):
    """On a line it is 2 ∫ (F - G)²; N(0, 1) against N(1, 1) by quadrature; over 40 repetitions."""
    grid = torch.linspace(-10, 11, 20_001, dtype=torch.float64)
    gap = torch.special.ndtr(grid) - torch.special.ndtr(grid - 1)
    for shift, truth in ((0.0, 0.0), (1.0, 2 * torch.trapezoid(gap**2, grid).item())):
        found = torch.tensor(
            [
                energy_distance(normal(150, 1, generator), normal(100, 1, generator, shift))
                for _ in range(40)
            ]
        )
        assert abs(found.mean() - truth) < 5 * found.std() / math.sqrt(40)


def test_energy_test_has_its_level_and_power(generator):
    """Equal laws: p ≤ 0.1 in at most 10 % of 60 tests + 5 standard errors; shifted: least p."""
    p_values = []
    for _ in range(60):
        x, y = normal(40, 2, generator), normal(30, 2, generator)
        p_values.append(energy_test(x, y, 99, generator)[1])
    low = sum(p <= 0.1 for p in p_values)
    assert low <= 60 * 0.1 + 5 * math.sqrt(60 * 0.09)
    assert sum(p <= 0.5 for p in p_values) >= 60 * 0.5 - 5 * math.sqrt(60 * 0.25)
    statistic, p = energy_test(
        normal(100, 2, generator), normal(80, 2, generator, 1.0), 199, generator
    )
    assert p == pytest.approx(1 / 200)
    assert statistic > 0.3


def test_energy_test_reports_the_energy_distance_and_takes_images(generator):
    x, y = normal(60, 12, generator).reshape(60, 3, 2, 2), normal(50, 12, generator)
    y = y.reshape(50, 3, 2, 2).float()
    assert energy_test(x, y, 9, generator)[0] == pytest.approx(energy_distance(x, y), abs=1e-9)


def test_energy_test_of_identical_points_finds_nothing():
    assert energy_test(torch.ones(8, 2), torch.ones(8, 2), 19)[1] == 1.0


def test_sliced_wasserstein_on_a_line_is_that_of_scipy_moments(generator):
    """d = 1: a shift by c has W2 = c; unequal counts agree with repeated points."""
    x = normal(50, 1, generator)
    assert sliced_wasserstein(x, x + 3.0, 4, generator) == pytest.approx(3.0)
    y = normal(20, 1, generator)
    repeated = sliced_wasserstein(x.repeat(2, 1), y.repeat_interleave(5, 0), 4, generator)
    assert sliced_wasserstein(x, y, 4, generator) == pytest.approx(repeated, rel=1e-9)


def test_sliced_wasserstein_of_a_shift_in_the_plane(generator):
    """``E_θ[(θ·c)²] = |c|² / d``; 4000 directions leave a relative error of about 1 %."""
    x, c = normal(40, 3, generator), torch.tensor([1.0, 2.0, -2.0])
    found = sliced_wasserstein(x, x + c, 4000, generator)
    assert found == pytest.approx(3 / math.sqrt(3), rel=0.05)


def test_classifier_cannot_tell_equal_laws_and_can_tell_shifted_ones(generator):
    same = classifier_two_sample_test(normal(200, 2, generator), normal(200, 2, generator))
    assert abs(same.value - 0.5) < 5 * same.standard_error
    # The best possible accuracy for a shift of 2 in each of two coordinates is Φ(√2) = 0.921.
    other = classifier_two_sample_test(normal(200, 2, generator), normal(200, 2, generator, 2.0))
    assert 0.921 - 0.08 < other.value < 0.921 + 5 * other.standard_error


def test_classifier_is_not_fooled_by_unequal_counts(generator):
    found = classifier_two_sample_test(normal(400, 1, generator), normal(100, 1, generator))
    assert abs(found.value - 0.5) < 5 * found.standard_error


def test_samples_that_cannot_be_compared_are_refused():
    x = torch.zeros(5, 2)
    for y in (torch.zeros(5, 3), torch.zeros(1, 2), torch.full((5, 2), math.nan)):
        with pytest.raises(InputError, match="sample"):
            energy_distance(x, y)


def test_chi_square_without_rare_cells_is_that_of_scipy():
    counts, p = torch.tensor([30, 50, 20]), torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    found, reference = chi_square_cells(counts, p), stats.chisquare([30, 50, 20], [25, 50, 25])
    assert found.statistic == pytest.approx(reference.statistic)
    assert found.p_value == pytest.approx(reference.pvalue)
    assert (found.degrees, found.rare_expected) == (2, 0.0)


def test_chi_square_pools_rare_cells():
    p = torch.tensor([0.48, 0.48, 0.02, 0.02], dtype=torch.float64)
    found = chi_square_cells(torch.tensor([96, 96, 8, 0]), p)  # 4 + 4 expected: one cell of 8
    assert (found.degrees, found.rare_count) == (2, 0)
    assert found.statistic == pytest.approx(0.0, abs=1e-12)


def test_chi_square_sees_mass_in_dead_cells():
    p = torch.tensor([0.5, 0.5, 0.0, 1e-9], dtype=torch.float64)
    assert chi_square_cells(torch.tensor([500, 500, 0, 0]), p).p_value == 1.0
    leaked = chi_square_cells(torch.tensor([490, 490, 12, 8]), p)
    assert leaked.p_value < 1e-12
    assert leaked.rare_count == 20
    assert leaked.degrees == 1


def test_chi_square_has_its_level(generator):
    """Exact draws with a rare pool (0.5 expected): p ≤ 0.1 in at most 10 % + 5 standard errors."""
    p = torch.tensor([0.55, 0.3, 0.1475, 0.0015, 0.001], dtype=torch.float64)
    low = 0
    for _ in range(300):
        counts = torch.bincount(torch.multinomial(p, 200, True, generator=generator), minlength=5)
        low += chi_square_cells(counts, p).p_value <= 0.1
    assert 0 < low <= 30 + 5 * math.sqrt(27)


def test_chi_square_refuses_what_is_no_count():
    with pytest.raises(InputError, match="whole numbers"):
        chi_square_cells(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]))
    with pytest.raises(InputError, match="too few"):
        chi_square_cells(torch.tensor([2, 2]), torch.tensor([0.5, 0.5]))
