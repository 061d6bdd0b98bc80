"""The linear-Gaussian problems: recursion, Doob kernels to machine precision, floors."""

import math

import pytest
import torch

from difftilt.chains.chain import Chain, InitialTilt, Path
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.noise import GeneratorNoise
from difftilt.tasks.exact.affine import AffineChain, OptimalKernel, TiltedAffineChain
from difftilt.tasks.exact.linear_gaussian import (
    LinearModel,
    anisotropic_model,
    closed_form_log_z,
    isotropic_model,
    linear_gaussian,
)
from difftilt.transitions.gaussian import GaussianTilt

STANDARD_ERRORS = 5  # two-sided false alarm 6e-7 each


def doob(model: LinearModel, steps: int) -> tuple[Chain, TiltedAffineChain]:
    """The exactly tilted chain in float64; exact where the model is isotropic."""
    prior = model.chain(steps, torch.float64)
    tilted = model.tilted(prior)
    initial = InitialTilt(prior.event_shape).double()
    initial.delta.data = tilted.initial.shift
    initial.log_scale.data = 0.5 * tilted.initial.covariance.diagonal().log()
    return prior.tilted(OptimalKernel(tilted.tilts, prior.diffusion), initial), tilted


def increments(chain: Chain, path: Path) -> torch.Tensor:
    """``(eps - delta) / scale`` of every step, from the stored states: (N, B, d)."""
    steps = []
    for n in range(1, chain.steps + 1):
        x = path.states[n]
        prediction = chain.predict(x, n)
        tilt = chain.tilt(x, n, prediction)
        assert isinstance(tilt, GaussianTilt)
        assert tilt.log_scale is not None
        eps = chain.law(prediction, x, n).standardise(path.states[n - 1])
        steps.append((eps - tilt.delta) * torch.exp(-tilt.log_scale))
    return torch.stack(steps)


@pytest.mark.parametrize("dimension", [2, 10, 50])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_recursion_equals_the_closed_form(dimension: int, steps: int):
    model = anisotropic_model(dimension)
    tilted = model.tilted(model.chain(steps))
    closed = closed_form_log_z(model, *tilted.prior.data_law())
    assert tilted.log_z == pytest.approx(closed, abs=1e-10)


def test_many_steps_reach_the_nominal_evidence():
    model = anisotropic_model(10)
    nominal = closed_form_log_z(model, model.mean, model.covariance)
    errors = [abs(model.tilted(model.chain(n)).log_z - nominal) for n in (50, 200, 800)]
    assert errors[2] < 0.3 * errors[1] < 0.1 * errors[0]
    assert errors[2] < 0.01


def test_posterior_equals_conditioning_of_the_data_law():
    model = anisotropic_model(10)
    tilted = model.tilted(model.chain(20))
    mean, covariance = tilted.prior.data_law()
    gram = model.matrix @ covariance @ model.matrix.T + 0.25 * torch.eye(5).double()
    gain = covariance @ model.matrix.T @ torch.linalg.inv(gram)
    found_mean, found_covariance = tilted.posterior()
    expected = mean + gain @ (model.y - model.matrix @ mean)
    assert torch.allclose(found_mean, expected, atol=1e-10)
    assert torch.allclose(found_covariance, covariance - gain @ model.matrix @ covariance)


@pytest.mark.parametrize(("dimension", "steps"), [(1, 5), (2, 20), (10, 20), (64, 10)])
def test_optimal_kernels_make_the_residual_constant(dimension: int, steps: int, generator):
    model = isotropic_model(dimension)
    chain, tilted = doob(model, steps)
    path = rollout(chain, 200, GeneratorNoise(generator))
    assert path.log_ratio is not None
    with torch.no_grad():
        recomputed = log_ratio(chain, path, chunk=777)
    for ratio in (path.log_ratio, recomputed):
        residual = model.log_reward(path.x_0) - ratio
        assert residual.std() < 1e-9
        assert residual.mean().item() == pytest.approx(tilted.log_z, abs=1e-9)


def test_a_kernel_off_by_a_thousandth_shows_in_the_residual(generator):
    model = isotropic_model(4)
    chain, _ = doob(model, 10)
    assert isinstance(chain.kernel, OptimalKernel)
    chain.kernel.shifts[3] += 1e-3
    path = rollout(chain, 200, GeneratorNoise(generator))
    assert path.log_ratio is not None
    assert (model.log_reward(path.x_0) - path.log_ratio).std() > 1e-4


@pytest.mark.parametrize("widen", [1.0, 1.3])
def test_increments_of_stored_states_are_standard_normal(widen: float, generator):
    chain, _ = doob(isotropic_model(4), 10)
    path = rollout(chain, 20_000, GeneratorNoise(generator), widen=widen)
    z = increments(chain, path) / widen
    count = z.shape[1]
    assert (z.mean(1) * math.sqrt(count)).abs().max() < STANDARD_ERRORS
    assert ((z.square().mean(1) - 1) * math.sqrt(count / 2)).abs().max() < STANDARD_ERRORS
    neighbours = (z[1:] * z[:-1]).mean(1) * math.sqrt(count)
    assert neighbours.abs().max() < STANDARD_ERRORS


def test_exact_paths_in_float32_have_a_constant_residual(generator):
    model = isotropic_model(10)
    chain, tilted = doob(model, 20)
    path = tilted.sample_paths(200, generator)
    wide = Path(path.states.double())
    with torch.no_grad():
        residual = model.log_reward(wide.x_0) - log_ratio(chain, wide)
    # The tolerance is that of states rounded to float32.
    assert (residual - tilted.log_z).abs().max() < 1e-3


@pytest.mark.parametrize(("dimension", "draws"), [(2, 10_000), (10, 10_000), (50, 1_000)])
def test_best_diagonal_kernel_reaches_its_floor_and_log_z(dimension: int, draws: int, generator):
    problem = linear_gaussian(dimension)
    tilted = anisotropic_model(dimension).tilted(problem.chain)
    chain = problem.chain.tilted(OptimalKernel(tilted.tilts, problem.chain.diffusion))
    exact = problem.truth.sample_paths
    assert exact is not None
    path = exact(draws, generator)
    gap = (problem.log_reward(path.x_0) - log_ratio(chain, path, 20_000)).double()
    gap = gap - problem.truth.log_z
    floors = problem.truth.floors
    expected = floors["diagonal_variance"] + floors["initial"]
    error = gap.std() / math.sqrt(draws)
    assert abs(gap.mean() - expected) < STANDARD_ERRORS * error
    path = rollout(chain, draws, GeneratorNoise(generator), record=False)
    assert path.log_ratio is not None
    w = (problem.log_reward(path.x_0) - path.log_ratio - problem.truth.log_z).double().exp()
    assert abs(w.mean() - 1) < STANDARD_ERRORS * w.std() / math.sqrt(draws)
    # About exp(-2 floor); the chosen numbers of steps allow the bar of 0.8.
    assert w.sum() ** 2 / w.square().sum() / draws > 0.82


@pytest.mark.parametrize("dimension", [2, 10, 50])
def test_exact_draws_have_the_posterior_mean_and_covariance(dimension: int, generator):
    truth, draws = linear_gaussian(dimension, 20).truth, 10_000
    assert truth.mean is not None
    assert truth.covariance is not None
    x = truth.sample(draws, generator).double()
    variance = truth.covariance.diagonal()
    z = (x.mean(0) - truth.mean) / (variance / draws).sqrt()
    assert z.abs().max() < STANDARD_ERRORS
    spread = (truth.covariance**2 + torch.outer(variance, variance)) / draws
    # 1,275 entries at d = 50: false alarm 7e-4 in all at 5 standard errors.
    assert ((x.T.cov() - truth.covariance) / spread.sqrt()).abs().max() < STANDARD_ERRORS


def test_chain_law_and_prior_ess_agree_with_rollouts(generator):
    problem, draws = linear_gaussian(2), 100_000
    prior = AffineChain(
        anisotropic_model(2).mean, anisotropic_model(2).covariance, problem.chain.diffusion
    )
    mean, covariance = prior.data_law()
    path = rollout(problem.chain, draws, GeneratorNoise(generator), record=False)
    z = (path.x_0.double().mean(0) - mean) / (covariance.diagonal() / draws).sqrt()
    assert z.abs().max() < STANDARD_ERRORS
    w = problem.log_reward(path.x_0).double().exp()
    ess = float(w.sum() ** 2 / w.square().sum() / draws)
    assert problem.truth.prior_ess == pytest.approx(ess, rel=0.02)
