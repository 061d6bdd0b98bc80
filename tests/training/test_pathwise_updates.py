"""The third door: its gradient, what it refuses, and where its trainings end."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import difftilt
from difftilt.chains.adjoint import Cost, pull_back
from difftilt.chains.chain import Chain, InitialTilt, Path
from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError, TrainingError
from difftilt.forms import Perceptron
from difftilt.objectives.base import Objective
from difftilt.objectives.pathwise import AdjointMatching, AlignProp, DRaFT, KLControl
from difftilt.posteriors import Prior
from difftilt.training.loop import train
from difftilt.training.pathwise import pathwise_updates, reward_gradient
from difftilt.training.plan import BehaviourWeights, Training, suited
from difftilt.training.state import TrainingState, trainable
from difftilt.transitions.gaussian import GaussianTilt
from small_chains import moved, noise
from toys import Likelihood, LinearKernel, gaussian_chain, quick_plan, toy_state

pytestmark = pytest.mark.usefixtures("unchecked")  # many small steps

OWN_PATHS = {"warm_start": 0.0, "behaviour": BehaviourWeights(on_policy=1.0, pool=0.0)}


class ShiftKernel(LinearKernel):
    """``LinearKernel`` at the prior's variance."""

    def forward(self, x: Tensor, n, prediction: Tensor, condition: Tensor | None) -> GaussianTilt:
        return GaussianTilt(super().forward(x, n, prediction, condition).delta)


def shift_posterior(steps: int = 3) -> Chain:
    return gaussian_chain(1, steps).tilted(ShiftKernel(1, steps), InitialTilt((1,)))


def trained(state: TrainingState) -> Chain:
    for _ in train(state):
        pass
    state.use_average()
    return state.chain


def log_weights(chain: Chain, reward: Likelihood, beta: float = 1.0, count: int = 4000) -> Tensor:
    path = rollout(chain, count, noise(9))
    assert path.log_ratio is not None
    return beta * reward(path.x_0, path.condition) - path.log_ratio


@pytest.mark.parametrize("chunk", [16_384, 7])
def test_an_update_is_the_mean_over_its_paths(chunk: int):
    """The door's gradient, against the adjoint of the paths that it hands back."""
    state = toy_state(quick_plan(objective=KLControl(), batch=32, chunk=chunk), beta=1.7)
    moved(state.chain.kernel)
    (outcome,) = pathwise_updates(state, 1.7)
    ours = [p.grad for p in trainable(state.chain)]
    scored = outcome.parts["on_policy"]
    for parameter in trainable(state.chain):
        parameter.grad = None
    end = -1.7 * reward_gradient(state.log_reward, scored.path)[1]
    pull_back(state.chain, scored.path, end / 32, torch.ones(4), Cost(1 / 32))
    for grad, parameter in zip(ours, trainable(state.chain), strict=True):
        assert torch.allclose(grad, parameter.grad, rtol=1e-4, atol=1e-7)
    assert outcome.losses.shape == (32,)
    assert torch.allclose(outcome.losses, outcome.ratios - 1.7 * scored.log_r)


@pytest.mark.parametrize(
    "objective", [KLControl(), KLControl("random"), KLControl(path_derivative=True)]
)
@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_kl_control_finds_an_exact_posterior(objective: Objective, beta: float):
    """Every weight ``β log r - Λ`` of the trained chain is log Z, to a few hundredths of a nat."""
    plan = quick_plan(objective=objective, steps=150, batch=64, learning_rate=0.1)
    chain = trained(toy_state(plan, beta=beta))
    log_w, log_z = log_weights(chain, Likelihood(), beta), Likelihood().log_z(chain, beta=beta)
    assert float(log_w.mean()) == pytest.approx(log_z, abs=0.01)
    assert float(log_w.std()) < 0.1


def test_kl_control_amortises_over_conditions():
    reward = Likelihood(y=(-1.0, 1.5))
    plan = quick_plan(objective=KLControl(), steps=150, batch=64, learning_rate=0.1)
    state = toy_state(
        plan,
        # The law of x_N is shared by the conditions, so it is left out.
        gaussian_chain(1, 6).tilted(LinearKernel(1, 6, labels=2)),
        reward,
        conditions=lambda count, generator: torch.randint(2, (count,), generator=generator),
    )
    chain = trained(state)
    for label in (0, 1):
        bound = chain.given(torch.full((4000,), label))
        log_w = log_weights(bound, reward)
        assert float(log_w.mean()) == pytest.approx(reward.log_z(chain, label), abs=0.02)
        assert float(log_w.std()) < 0.2


def test_adjoint_matching_finds_the_exact_means():
    """A kernel of the prior's variance ends at the posterior's mean, to 0.02."""
    plan = quick_plan(objective=AdjointMatching(), steps=200, batch=64, learning_rate=0.1)
    chain = trained(toy_state(plan, shift_posterior(4)))
    x_0 = rollout(chain, 20_000, noise(3)).x_0
    mean, variance = Likelihood().posterior(chain)
    assert float(x_0.mean()) == pytest.approx(mean, abs=5 * (variance / 20_000) ** 0.5 + 0.01)


@pytest.mark.filterwarnings("ignore::difftilt.training.watch.RewardHacking")
@pytest.mark.parametrize("objective", [DRaFT(), DRaFT(last=3), AlignProp(), AlignProp(2)])
def test_maximisers_overshoot_the_posterior(objective: Objective):
    """Their mean ends at the reward's peak, not at the posterior's mean."""
    plan = quick_plan(objective=objective, steps=120, batch=64, learning_rate=0.1)
    chain = trained(toy_state(plan, shift_posterior()))
    mean, peak = float(rollout(chain, 4000, noise()).x_0.mean()), Likelihood().y[0]
    assert mean == pytest.approx(peak, abs=0.05)
    assert abs(Likelihood().posterior(chain)[0] - peak) > 0.2


def test_a_maximiser_with_the_whole_divergence_is_kl_control():
    found = []
    for objective in (KLControl(), AlignProp(truncation=None, kl=1.0), DRaFT(3, kl=1.0)):
        state = toy_state(quick_plan(objective=objective))
        next(pathwise_updates(state, 1.0))
        found.append(torch.cat([p.grad.flatten() for p in trainable(state.chain)]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_losses_of_a_regression_are_its_own():
    state = toy_state(quick_plan(objective=AdjointMatching()), shift_posterior())
    (outcome,) = pathwise_updates(state, 1.0)
    assert bool((outcome.losses >= 0).all())
    before = float(outcome.losses.mean())
    trained(state)
    (outcome,) = pathwise_updates(state, 1.0)
    assert float(outcome.losses.mean()) < 0.7 * before


@pytest.mark.filterwarnings("ignore::difftilt.training.watch.RewardHacking")
@pytest.mark.parametrize("objective", [KLControl(), KLControl("random"), DRaFT(2), AlignProp()])
def test_the_facade(objective: Objective):
    target = Prior(gaussian_chain(2)).tilt(Likelihood())
    form = Perceptron(components=1, width=32, frequencies=2)
    posterior = target.fit(objective, form=form, steps=40, batch=64, **OWN_PATHS)
    before = target.posterior(form).draw(2000)
    after = posterior.draw(2000)
    assert before.log_r is not None and after.log_r is not None
    assert float(after.log_r.mean()) > float(before.log_r.mean()) + 0.1


def test_adjoint_matching_by_the_facade():
    target = Prior(gaussian_chain(2)).tilt(Likelihood())
    form = Perceptron(components=1, learned_variance=False, width=32, frequencies=2)
    posterior = target.fit(AdjointMatching(), form=form, steps=60, batch=64, **OWN_PATHS)
    assert posterior.certify(1000).elbo.value > target.posterior(form).certify(1000).elbo.value


def test_the_gradient_goes_through_a_generator():
    """A latent chain's reward sees decoded samples."""
    prior = difftilt.latent(lambda z: 2 * z + 1, (1,), steps=5)
    target = prior.tilt(lambda x: -0.5 * (x[:, 0] - 2) ** 2)
    path = rollout(prior.chain, 6, noise())
    log_r, slope = reward_gradient(target.score, path)
    assert torch.allclose(slope[:, 0], -2 * (2 * path.x_0[:, 0] + 1 - 2))
    assert torch.equal(log_r, target.score(path.x_0)) and not log_r.requires_grad


def test_a_checked_reward_keeps_its_graph_where_it_is_asked_for():
    target = Prior(gaussian_chain(1)).tilt(lambda x: -(x[:, 0] ** 2))
    x_0 = torch.ones(3, 1)
    assert not target.score(x_0).requires_grad
    assert target.score(x_0.requires_grad_()).requires_grad
    path = Path(x_0.detach()[None])
    for reward in (target.score, target.log_reward):
        assert torch.equal(reward_gradient(reward, path)[1], torch.full((3, 1), -2.0))


@pytest.mark.parametrize(
    "log_reward",
    [
        lambda x: -x.detach()[:, 0],
        lambda x: (-x[:, 0]).detach().numpy(),
        lambda x: torch.zeros(len(x)),
        lambda x: torch.zeros(len(x), requires_grad=True),
    ],
)
def test_a_black_box_is_refused(log_reward: Callable[[Tensor], object]):
    target = Prior(gaussian_chain(1)).tilt(log_reward)
    with pytest.raises(InputError, match=r"reward has none .* such as RTB\(\)"):
        target.fit(KLControl(), form=Perceptron(components=1), steps=1, batch=4, **OWN_PATHS)


def test_a_mixture_is_refused():
    target = Prior(gaussian_chain(1)).tilt(Likelihood())
    with pytest.raises(InputError, match="components=1"):
        target.fit(KLControl(), steps=1, batch=4, **OWN_PATHS)


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"warm_start": 0.0},
        {"behaviour": OWN_PATHS["behaviour"]},
        {"warm_start": 0.0, "behaviour": BehaviourWeights(0.5, widened=0.5, pool=0.0)},
    ],
)
def test_other_paths_than_the_posteriors_are_refused(plan: dict):
    with pytest.raises(InputError, match="KLControl is an on-policy objective"):
        Training(objective=KLControl(), **plan)


def test_a_random_subset_of_steps_is_refused():
    with pytest.raises(InputError, match=r"subset=2, .* \(--training.subset None\)"):
        quick_plan(objective=KLControl(), subset=2)
    assert suited(KLControl())["subset"] is None


def half_zero(x_0: Tensor, condition: Tensor | None = None) -> Tensor:
    return torch.where(x_0[:, 0] > 0.5, -x_0[:, 0], -math.inf)


def test_paths_of_zero_reward_are_left_out():
    state = toy_state(quick_plan(objective=KLControl()), log_reward=half_zero)
    (outcome,) = pathwise_updates(state, 1.0)
    log_r = outcome.parts["on_policy"].log_r
    assert 0 < len(outcome.losses) == int(log_r.isfinite().sum()) < 64
    assert all(bool(p.grad.isfinite().all()) for p in trainable(state.chain))


def test_no_reward_at_all_stops_the_training():
    state = toy_state(
        quick_plan(objective=KLControl()), log_reward=lambda x, _: x[:, 0] * 0 - math.inf
    )
    with pytest.raises(TrainingError, match="every path of the batch has log r = -inf"):
        next(pathwise_updates(state, 1.0))
