"""Atoms without a centre of mass, in closed form: log Z of a law on a subspace."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from difftilt.chains.rollouts import rollout
from difftilt.forms import Perceptron
from difftilt.noise import GeneratorNoise
from difftilt.objectives.balance import RTB
from difftilt.posteriors import Prior
from difftilt.tasks.exact import problems
from difftilt.tasks.exact.linear_gaussian import NOISE, centred_gaussian, centred_model
from difftilt.training.plan import BehaviourWeights, Optimisation

ATOMS = 4
ERROR = 0.02


def test_log_z_is_that_of_nine_dimensions():
    """In coordinates of the subspace the prior is N(0, 1.5 I_9), as the steps grow in number."""
    model = centred_model(ATOMS)
    values, vectors = torch.linalg.eigh(model.covariance)
    inside = vectors[:, values > 0.1]
    assert inside.shape == (3 * ATOMS, 3 * (ATOMS - 1))
    matrix = model.matrix @ inside
    spread = 1.5 * matrix @ matrix.T + NOISE**2 * torch.eye(3, dtype=torch.float64)
    nominal = MultivariateNormal(torch.zeros(3, dtype=torch.float64), spread).log_prob(model.y)
    for steps, error in ((20, 0.2), (500, 0.01)):
        found = centred_gaussian(ATOMS, steps).truth.log_z
        assert found == pytest.approx(float(nominal), abs=error)


def test_moving_all_atoms_changes_no_reward():
    problem = centred_gaussian(ATOMS)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, ATOMS, 3, generator=generator)
    shift = 5 * torch.randn(64, 1, 3, generator=generator)
    plain, shifted = (problem.log_reward(y.flatten(1)) for y in (x, x + shift))
    assert torch.allclose(plain, shifted, atol=1e-3)


def test_importance_and_a_trained_sampler_reach_log_z():
    """Both within 0.02 nats of the truth; a third of that is the largest standard error here."""
    problem = problems()["centred_gaussian_n4"]()
    truth, draws = problem.truth, 600_000
    noise = GeneratorNoise(torch.Generator().manual_seed(1))
    log_r = problem.log_reward(rollout(problem.chain, draws, noise, record=False).x_0).double()
    found = float(log_r.logsumexp(0)) - math.log(draws)
    assert truth.prior_ess is not None
    assert math.sqrt(1 / (draws * truth.prior_ess)) < ERROR / 3
    assert abs(found - truth.log_z) < ERROR
    target = Prior(problem.chain).tilt(problem.log_reward, log_bound=problem.log_bound)
    fitted = target.fit(
        RTB(),
        form=Perceptron(1, True, width=64, depth=2, frequencies=2, linear=True),
        steps=300,
        batch=128,
        warm_start=0.0,
        behaviour=BehaviourWeights(on_policy=1, pool=0),
        optimisation=Optimisation(learning_rate=1e-2, ema=0.95, decay_from=0.5),
    )
    path = rollout(fitted.chain, 160_000, noise, record=False)
    assert path.log_ratio is not None
    weight = (problem.log_reward(path.x_0) - path.log_ratio).double().exp()
    error = float(weight.std() / weight.mean()) / math.sqrt(len(weight))
    assert error < ERROR / 3
    assert abs(float(weight.mean().log()) - truth.log_z) < ERROR
