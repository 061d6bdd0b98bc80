"""Pareto k-hat against known shapes and an independent, slow reference."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from difftilt.diagnostics.tails import pareto_k, pareto_k_threshold


def reference_k(weights: np.ndarray) -> float:
    """Zhang and Stephens by loops over the likelihood itself, no profile formula."""
    ordered = np.sort(weights)
    tail = min(math.ceil(0.2 * len(weights)), math.ceil(3 * math.sqrt(len(weights))))
    excess = ordered[-tail:] - ordered[-tail - 1]
    count = 30 + int(math.sqrt(tail))
    log_likelihood, thetas = [], []
    for j in range(1, count + 1):
        quartile = excess[int(tail / 4 + 0.5) - 1]
        theta = 1 / excess[-1] + (1 - math.sqrt(count / (j - 0.5))) / (3 * quartile)
        shape = np.mean([math.log1p(-theta * x) for x in excess])
        scale = -shape / theta
        log_likelihood.append(stats.genpareto.logpdf(excess, shape, scale=scale).sum())
        thetas.append(theta)
    posterior = np.exp(np.array(log_likelihood) - max(log_likelihood))
    theta = float(np.dot(posterior / posterior.sum(), thetas))
    shape = np.mean(np.log1p(-theta * excess))
    return shape * tail / (tail + 10) + 0.5 * 10 / (tail + 10)


@pytest.mark.parametrize("shape", [-0.4, 0.2, 0.7, 1.5])
def test_equals_a_brute_force_fit(shape: float):
    weights = stats.genpareto.rvs(shape, size=400, random_state=3)
    fitted = pareto_k(torch.from_numpy(np.log(weights)))
    assert fitted == pytest.approx(reference_k(weights), abs=1e-9)


@pytest.mark.parametrize("shape", [-0.3, 0.3, 0.6, 1.0])
def test_finds_the_shape_of_generalised_pareto_draws(shape: float):
    """Such a law's tail has its shape; k-hat has a standard error of about (1 + k) / sqrt(m)."""
    n = 100_000
    weights = stats.genpareto.rvs(shape, size=n, random_state=0)
    allowed = 5 * (1 + abs(shape)) / math.sqrt(3 * math.sqrt(n))
    assert pareto_k(torch.from_numpy(np.log(weights))) == pytest.approx(shape, abs=allowed)


def test_does_not_change_with_the_scale_of_the_weights(generator):
    log_w = 2 * torch.randn(1000, generator=generator, dtype=torch.float64)
    assert pareto_k(log_w + 800) == pytest.approx(pareto_k(log_w), abs=1e-9)


def test_equal_weights_have_no_tail(generator):
    assert pareto_k(torch.full((1000,), -3.0)) == -math.inf
    assert pareto_k(torch.full((1000,), -math.inf)) == -math.inf
    assert pareto_k(-3 + 1e-7 * torch.randn(1000, generator=generator).double()) == -math.inf


def test_few_weights_or_a_dominant_one_are_the_worst_case(generator):
    assert pareto_k(torch.randn(24, generator=generator)) == math.inf
    log_w = torch.zeros(1000)
    log_w[0] = 50.0
    assert pareto_k(log_w) == math.inf


@pytest.mark.parametrize("modes", [2, 3, 5])
def test_is_a_number_for_tied_weights(modes: int, generator):
    """Discrete problems tie; at θ = 0 the profile needs its limit."""
    for n in (100, 1000, 3276):
        labels = torch.randint(0, modes, (n,), generator=generator)
        assert not math.isnan(pareto_k(labels.double()))
        assert not math.isnan(pareto_k(torch.where(labels == 0, -math.inf, labels.double())))


def test_threshold():
    assert pareto_k_threshold(100) == pytest.approx(0.5)
    assert pareto_k_threshold(1_000_000) == pytest.approx(0.7)
