"""What holds of every exact problem, and of its truth against Monte Carlo of its chain."""

import math
from functools import partial

import pytest
import torch

from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise
from difftilt.tasks.exact import ExactProblem, Truth, problems, rejection_paths
from difftilt.tasks.exact.grid25 import cell25, gmm9of25, log_reward_corner, rare_corner
from difftilt.tasks.exact.neural import neural_ring8
from difftilt.tasks.exact.toys import ring8

STANDARD_ERRORS = 5  # two-sided false alarm 6e-7 for each of some 300 statistics
NAMES = (
    *(f"linear_gaussian_d{d}" for d in (2, 10, 50)),
    *(f"linear_gaussian_isotropic_d{d}" for d in (2, 10, 50)),
    "centred_gaussian_n4",
    *("gmm9of25", "ring8_alpha3", "ring8_alpha10", "ring8_alpha20"),
    *("rings", "moons", "checkerboard", "spirals", "swissroll"),
    *("wells_d8", "wells_d32", "rare_corner", "neural_ring8"),
)
DRAWS = 20_000
RARE = ("linear_gaussian_d50", "linear_gaussian_isotropic_d50", "rare_corner", "wells_d32")


def within(found: torch.Tensor, expected: torch.Tensor | float, error: torch.Tensor) -> bool:
    return bool(((found - expected).abs() <= STANDARD_ERRORS * error).all())


def cells_agree(labels: torch.Tensor, probability: torch.Tensor) -> bool:
    """Cell counts against exact masses; cells expected fewer than 20 times are pooled."""
    counts = torch.bincount(labels, minlength=len(probability)).double()
    big = probability * len(labels) >= 20
    counts = torch.cat([counts[big], counts[~big].sum()[None]])
    probability = torch.cat([probability[big], probability[~big].sum()[None]])
    expected = probability * len(labels)
    # One count of slack for a pool that is expected less than once.
    return within(counts, expected, (expected * (1 - probability)).clamp(min=0.2).sqrt())


def test_every_problem_is_listed():
    assert set(problems()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_problem_is_as_it_says(name: str, generator):
    problem = problems()[name]()
    assert problem.name == name
    assert problem.summary
    assert problem.chain.density_steps == list(range(1, problem.chain.steps + 1))
    path = rollout(problem.chain, 64, GeneratorNoise(generator))
    assert path.x_0.dtype == torch.float32
    log_r = problem.log_reward(path.x_0)
    assert log_r.shape == (64,)
    assert log_r.dtype == torch.float32
    assert problem.log_bound is not None
    assert log_r.max() <= problem.log_bound + 1e-4
    x = path.states[3]
    per_sample = problem.chain.predict(x, torch.full((64,), 3))
    assert torch.allclose(per_sample, problem.chain.predict(x, 3), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RARE])
def test_truth_agrees_with_prior_rollouts(name: str, generator):
    problem = problems()[name]()
    truth = problem.truth
    x = rollout(problem.chain, DRAWS, GeneratorNoise(generator), record=False).x_0
    w = problem.log_reward(x).double().exp() / math.exp(truth.log_z)
    assert within(w.mean(), 1.0, w.std() / math.sqrt(DRAWS))
    functionals = [value for value in truth.statistics.values()]
    for f, expected in functionals:
        error = (w * (f(x).double() - expected)).std() / math.sqrt(DRAWS)
        assert within((w * (f(x).double() - expected)).mean(), 0.0, error)
    if truth.mean is not None:
        residual = w[:, None] * (x.double() - truth.mean)
        assert within(residual.mean(0), 0.0, residual.std(0) / math.sqrt(DRAWS))


@pytest.mark.parametrize("name", NAMES)
def test_exact_draws_have_the_truth_s_law(name: str, generator):
    problem, draws = problems()[name](), 2_000
    truth = problem.truth
    x = truth.sample(draws, generator)
    assert x.shape == (draws, *problem.chain.event_shape)
    for f, expected in truth.statistics.values():
        value = f(x).double()
        assert within(value.mean(), expected, value.std() / math.sqrt(draws))
    if truth.label is not None:
        assert truth.label_probabilities is not None
        assert float(truth.label_probabilities.sum()) == pytest.approx(1, abs=1e-9)
        assert cells_agree(truth.label(x), truth.label_probabilities)
    if truth.mean is not None:
        wide = x.double()
        assert within(wide.mean(0), truth.mean, wide.std(0) / math.sqrt(draws))
    log_r = problem.log_reward(x).double()
    if truth.kl_to_prior is not None:
        # A mode of mass 5e-5 at log r = -10 adds 1e-3 that a sample without it does not show.
        error = (log_r.std() / math.sqrt(draws)).clamp(min=2e-3)
        assert within(log_r.mean() - truth.log_z, truth.kl_to_prior, error)


def test_rare_corner_s_evidence_by_coordinates(generator):
    x = rollout(rare_corner().chain, 200_000, GeneratorNoise(generator), record=False).x_0
    log_r = log_reward_corner(x.reshape(-1, 1)).double()
    w = log_r.exp() / math.exp(rare_corner().truth.log_z / 2)
    assert within(w.mean(), 1.0, w.std() / math.sqrt(len(w)))


def test_rare_corner_s_paths_agree_with_weighted_prior_coordinates(generator):
    problem = rare_corner()
    exact = problem.truth.sample_paths
    assert exact is not None
    path = exact(2_000, generator)
    prior = rollout(problem.chain, 100_000, GeneratorNoise(generator))
    flat = prior.states.flatten(1).double()
    weight = torch.softmax(log_reward_corner(flat[0][:, None]), 0)
    for level in (2, 8, 14):
        found, expected = path.states[level].double().flatten(), weight @ flat[level]
        spread = (weight**2 * (flat[level] - expected) ** 2).sum()
        assert within(found.mean(), expected, (found.var() / 4_000 + spread).sqrt())


def test_prior_cells_of_25_modes_differ_from_the_nominal_ones():
    """The chain's law is the prior: at N = 20 it is 0.075 off the posterior's nominal weights."""
    probability = gmm9of25().truth.label_probabilities
    assert probability is not None
    nominal = torch.zeros(25, dtype=torch.float64)
    for cell, weight in zip(
        (1, 5, 7, 21, 12, 13, 16, 17, 19), (4, 10, 4, 5, 10, 5, 4, 15, 4), strict=True
    ):
        nominal[cell] = weight / 61
    assert float((probability - nominal).abs().sum()) / 2 == pytest.approx(0.075, abs=1e-3)


def test_cells_are_cut_between_the_modes():
    centres = torch.tensor([-10.0, -5.0, 0.0, 5.0, 10.0]) / math.sqrt(50.3)
    assert torch.equal(cell25(torch.cartesian_prod(centres, centres)), torch.arange(25))


def test_the_trained_ring_is_not_the_nominal_one():
    trained, nominal = neural_ring8().truth, ring8(10.0).truth
    assert abs(trained.log_z - nominal.log_z) > 0.003


def test_rejection_refuses_a_bound_that_is_exceeded(generator):
    problem = ring8(3.0)
    sample = rejection_paths(problem.chain, problem.log_reward, -1.0)
    with pytest.raises(InputError, match="exceeds its stated bound"):
        sample(10, generator)


def test_rejection_gives_up_on_a_reward_that_is_too_rare(generator):
    problem = ring8(3.0)
    sample = rejection_paths(problem.chain, problem.log_reward, 60.0, batch=100, most=300)
    with pytest.raises(InputError, match="0 of 300 prior paths"):
        sample(10, generator)


def test_a_truth_without_a_sampler_says_so():
    with pytest.raises(InputError, match="no exact sampler"):
        Truth(log_z=0.0).sample(3)


def test_builders_are_lazy_and_cached():
    builder = problems()["ring8_alpha3"]
    assert isinstance(builder, partial)
    assert isinstance(builder(), ExactProblem)
    assert builder() is builder()
