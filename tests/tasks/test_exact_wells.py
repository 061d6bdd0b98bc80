"""Coupled wells against enumeration, the published constants, and prior rollouts."""

import itertools
import math

import pytest
import torch

from difftilt.chains.rollouts import rollout
from difftilt.noise import GeneratorNoise
from difftilt.tasks.exact.wells import (
    draw_signs,
    log_evidence,
    log_reward,
    plus_law,
    spin_averages,
    wells,
)

STANDARD_ERRORS = 5


def enumerated(d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All sign patterns and their posterior probabilities."""
    patterns = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=torch.float64)
    return patterns, torch.softmax(log_reward(patterns), 0)


@pytest.mark.parametrize(
    ("d", "log_z", "correlation"),
    [(2, -0.565322, None), (8, -3.367560, 0.4819), (32, -14.564203, 0.4865)],
)
def test_published_constants(d: int, log_z: float, correlation: float | None):
    assert log_evidence(d) == pytest.approx(log_z, abs=1e-6)
    if correlation is not None:
        assert spin_averages(d)[0] / (d - 1) == pytest.approx(correlation, abs=1e-4)


@pytest.mark.parametrize("d", [1, 2, 5, 9])
def test_transfer_matrix_equals_enumeration(d: int):
    patterns, probability = enumerated(d)
    log_r = log_reward(patterns)
    assert log_evidence(d) == pytest.approx(float(log_r.exp().mean().log()), abs=1e-12)
    assert log_evidence(d, 2.0) == pytest.approx(float((2 * log_r).exp().mean().log()), abs=1e-12)
    counts = (patterns > 0).sum(1)
    law = torch.zeros(d + 1).double().index_add(0, counts, probability)
    assert torch.allclose(plus_law(d), law, atol=1e-12)
    pair, single = spin_averages(d) if d > 1 else (0.0, math.tanh(0.1))
    neighbours = (patterns[:, 1:] * patterns[:, :-1]).sum(1)
    assert pair == pytest.approx(float(probability @ neighbours), abs=1e-12)
    assert single == pytest.approx(float(probability @ patterns.sum(1)), abs=1e-12)


def test_drawn_signs_have_the_enumerated_law(generator):
    patterns, probability = enumerated(5)
    draws = draw_signs(5, 40_000, generator)
    index = ((draws > 0) * torch.tensor([16, 8, 4, 2, 1])).sum(1)
    counts = torch.bincount(index, minlength=32)
    assert torch.equal((patterns[3] > 0).double(), torch.tensor([0, 0, 0, 1, 1]).double())
    expected = 40_000 * probability
    z = (counts - expected) / (expected * (1 - probability)).sqrt()
    assert z.abs().max() < STANDARD_ERRORS  # 32 cells: false alarm 2e-5


def test_exact_paths_agree_with_weighted_prior_paths_at_every_level(generator):
    problem, n = wells(3), 40_000
    exact = problem.truth.sample_paths
    assert exact is not None
    states = exact(n, generator).states.double()
    prior = rollout(problem.chain, n, GeneratorNoise(generator))
    weight = torch.softmax(problem.log_reward(prior.x_0).double(), 0)
    for level in (0, 5, 10, 15):
        x, y = states[level], prior.states[level].double()
        for f in (lambda v: v[:, 0], lambda v: v[:, 0] * v[:, 1], lambda v: v[:, 1] * v[:, 2]):
            expected = weight @ f(y)
            error = (f(x).var() / n + (weight**2 * (f(y) - expected) ** 2).sum()).sqrt()
            assert abs(f(x).mean() - expected) < STANDARD_ERRORS * error
