"""Noise levels are what their schedules say, and impossible ones are refused."""

import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor

from difftilt.errors import InputError
from difftilt.schedules import (
    NoiseLevels,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    levels_from_log_snr,
    quantile_log_snr,
)

SCHEDULES = [VariancePreserving(), VarianceExploding(), RectifiedFlow()]


def table(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 37])
def test_levels_start_at_data_and_grow(schedule: Schedule, steps: int):
    levels = schedule.levels(steps)
    assert levels.steps == steps and len(levels.time) == steps + 1
    assert (float(levels.alpha[0]), float(levels.sigma[0])) == (1.0, 0.0)
    assert bool((levels.sigma.diff() > 0).all())
    assert levels.alpha.dtype == levels.sigma.dtype == levels.time.dtype == torch.float64


def test_variance_preserving_is_linear_in_log_snr():
    levels = VariancePreserving(clean=6.0, noisy=-4.0).levels(10)
    assert torch.allclose(levels.alpha**2 + levels.sigma**2, torch.ones(11, dtype=torch.float64))
    log_snr = 2 * (levels.alpha[1:] / levels.sigma[1:]).log()
    assert torch.allclose(log_snr, torch.linspace(5, -4, 10, dtype=torch.float64))


def test_variance_exploding_is_edms_schedule():
    alpha, sigma = VarianceExploding(0.01, 50.0, rho=7.0).alpha_sigma(table(0.0, 0.5, 1.0))
    middle = ((0.01 ** (1 / 7) + 50 ** (1 / 7)) / 2) ** 7
    assert torch.allclose(sigma, table(0.01, middle, 50.0))
    assert torch.equal(alpha, table(1, 1, 1))


def test_rectified_flow_is_a_straight_line():
    alpha, sigma = RectifiedFlow(t_max=0.9).alpha_sigma(table(0.0, 0.5, 1.0))
    assert torch.allclose(sigma, table(0.0, 0.45, 0.9))
    assert torch.allclose(alpha + sigma, table(1, 1, 1))


@given(st.lists(st.floats(-12, 12), min_size=1, max_size=20, unique_by=lambda x: round(x, 3)))
def test_log_snrs_come_back_from_their_levels(values: list[float]):
    log_snr = table(*sorted(values, reverse=True))
    levels = levels_from_log_snr(log_snr)
    assert torch.allclose(2 * (levels.alpha[1:] / levels.sigma[1:]).log(), log_snr, atol=1e-9)
    assert levels.time.tolist() == pytest.approx([n / len(values) for n in range(len(values) + 1)])


@pytest.mark.parametrize("steps", [2, 5, 40])
def test_quantile_log_snrs_are_quantiles(steps: int):
    """The share of the mixture below each log-SNR, by scipy, is n / (N - 1)."""
    log_snr = quantile_log_snr(steps, centre=1.0, spread=2.0, clean=7.0, noisy=-9.0).numpy()
    assert log_snr[0] == pytest.approx(7.0) and log_snr[-1] == pytest.approx(-9.0)

    def density(x: float) -> float:
        return 0.75 * stats.norm.pdf(x, 1.0, 2.0) + 0.25 / 16.0

    total = integrate.quad(density, -9, 7)[0]
    below = [integrate.quad(density, -9, x)[0] / total for x in log_snr]
    assert numpy.allclose(below, numpy.linspace(1, 0, steps), atol=1e-6)


def test_a_single_quantile_level_is_the_noisy_one():
    assert quantile_log_snr(1, noisy=-9.0).tolist() == pytest.approx([-9.0])


def test_pure_noise_may_be_the_last_level():
    assert NoiseLevels(table(0, 1, 2), table(1, 0.5, 0), table(0, 0.5, 1)).steps == 2


@pytest.mark.parametrize(
    ("alpha", "sigma", "sentence"),
    [
        (table(1), table(0), "one length N \\+ 1 >= 2"),
        (table(1, 1), table(0, 1, 2), "one length"),
        (table(1, 1, 1), table(0, 2, 1), "must grow with n"),
        (table(1, 1, 1), table(0, 1, 1), "must grow with n"),
        (table(1, 0.5, 0.9), table(0, 0.5, 0.6), "must grow with n"),
        (table(1, math.nan), table(0, 1), "must grow with n"),
    ],
)
def test_impossible_levels_are_refused(
    unchecked: None, alpha: Tensor, sigma: Tensor, sentence: str
):
    with pytest.raises(InputError, match=sentence):
        NoiseLevels(torch.zeros_like(alpha), alpha, sigma)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_chain_needs_a_step(schedule: Schedule):
    with pytest.raises(InputError, match="at least 1 step, got steps=0"):
        schedule.levels(0)
