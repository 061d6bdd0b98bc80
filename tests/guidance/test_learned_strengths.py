"""Guidance whose strength is learned: its start, its optimum, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import difftilt as dt
from difftilt.chains.chain import Kernel
from difftilt.chains.rollouts import rollout
from difftilt.guidance.strengths import FARTHEST, LearnedGuidanceKernel, SlopeDirection
from difftilt.sampling.draws import sample_paths
from difftilt.tasks.exact.linear_gaussian import NOISE, isotropic_model
from difftilt.transitions.gaussian import GaussianTilt

STEPS = 20


def target() -> dt.Target:
    model = isotropic_model(2)
    likelihood = dt.GaussianLikelihood(model.y, lambda x: x @ model.matrix.T.to(x), NOISE)
    return dt.Prior(model.chain(STEPS)).tilt(likelihood)


def test_it_starts_at_the_prior_to_the_bit():
    posterior = target().posterior(dt.LearnedGuidance(along=dt.DPS()))
    own, prior = (
        sample_paths(chain, 32, 0, record=True)
        for chain in (posterior.chain, posterior.target.prior.chain)
    )
    assert torch.equal(own.states, prior.states)
    assert torch.equal(own.log_ratio, torch.zeros(32))  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
def test_balance_finds_strengths_that_guidance_alone_has_to_guess():
    """For an isotropic Gaussian the slope at x̂_0 points where ∇ log h does, and is too long."""
    problem = target()
    fitted = problem.fit(
        dt.RTB("batch"),
        form=dt.LearnedGuidance(along=dt.DPS()),
        steps=100,
        batch=128,
        warm_start=0.0,
        behaviour=dt.BehaviourWeights(on_policy=1.0, pool=0.0),
        optimisation=dt.Optimisation(learning_rate=0.1, ema=0.0),
        alarm=dt.Alarm(0.0),
    )
    learned, guessed = (one.certify(1000, seed=1).ess for one in (fitted, problem.guided(dt.DPS())))
    assert learned > max(0.8, guessed)


class Pushed(Kernel):
    """A shift of given length, whatever the state."""

    def __init__(self, length: float) -> None:
        super().__init__()
        self.length = length

    def forward(self, x, n, prediction, condition):
        return GaussianTilt(torch.tensor([self.length, 0.0]).to(x).expand(len(x), 2))


def test_a_direction_has_the_usual_size_of_its_first_states_and_a_longest():
    kernel = Pushed(40.0)
    direction = SlopeDirection(kernel, 3)
    x = torch.zeros(4, 2)

    def length(pushed: float) -> float:
        kernel.length = pushed
        return float(direction(x, 2, x, None)[0, 0])

    usual = (1 + FARTHEST**-2) ** -0.5
    assert length(40.0) == pytest.approx(usual)
    assert direction.usual.tolist() == [0, 0, 40, 0]
    assert length(4.0) == pytest.approx(0.1, rel=1e-2)
    assert FARTHEST * 0.99 < length(40e6) <= FARTHEST
    # Nothing is seen of a step without a slope, and nothing is moved.
    kernel.length = 0.0
    assert torch.equal(direction(x, torch.tensor([1, 1, 2, 2]), x, None), torch.zeros(4, 2))


def test_steps_of_a_batch_have_their_own_sizes_and_strengths():
    x = torch.zeros(3, 2)
    kernel = LearnedGuidanceKernel(SlopeDirection(Pushed(1.0), 3), 3)
    with torch.no_grad():
        kernel.strength.weight.copy_(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    tilt = kernel(x, torch.tensor([3, 1, 2]), x, None)
    ratio: Tensor = tilt.delta[:, 0] / tilt.delta[1, 0]
    torch.testing.assert_close(ratio, torch.tensor([3.0, 1.0, 2.0]))


def test_other_shifts_may_lie_beside_it_but_no_mixture():
    posterior = target().posterior(
        dt.LearnedGuidance(dt.Perceptron(components=1, learned_variance=True), along=dt.DPS())
    )
    assert rollout(posterior.chain, 4).batch == 4
    mixture = dt.LearnedGuidance(dt.Perceptron(components=3), along=dt.DPS())
    with pytest.raises(dt.InputError, match="several; use components=1"):
        rollout(target().posterior(mixture).chain, 4)


def test_a_black_box_has_no_slope():
    problem = target()
    box = replace(problem, log_reward=dt.Prior(problem.prior.chain).tilt(black_box).log_reward)
    with pytest.raises(dt.InputError, match="has none with respect to x_0"):
        rollout(box.posterior(dt.LearnedGuidance(along=dt.DPS())).chain, 4)
    with pytest.raises(dt.InputError, match=r"target\.posterior"):
        dt.LearnedGuidance(along=dt.DPS()).kernel(problem.prior.chain)


def black_box(x: Tensor) -> Tensor:
    return -torch.from_numpy(x.numpy()).square().sum(1)


def test_strengths_along_two_directions_add_up():
    form = dt.LearnedGuidance(dt.LearnedGuidance(along=dt.LGDMC()), along=dt.DPS())
    problem = target()
    kernel = problem.posterior(form).chain.kernel
    assert isinstance(kernel, LearnedGuidanceKernel)
    beside = kernel.beside
    assert isinstance(beside, LearnedGuidanceKernel)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    prediction = problem.prior.chain.predict(x, 5)
    assert torch.equal(kernel(x, 5, prediction, None).delta, torch.zeros(8, 2))
    for strength in (kernel.strength, beside.strength):
        torch.nn.init.constant_(strength.weight, 0.5)
    own, other = (k.direction(x, 5, prediction, None) for k in (kernel, beside))
    moved = kernel(x, 5, prediction, None).delta
    assert torch.allclose(moved, 0.5 * (own + other)) and float((own - other).norm()) > 1e-3
