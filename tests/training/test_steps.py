"""Training reaches the closed form by every route.

Statistical bounds are 5 standard errors (a false alarm in two million draws); seeds are fixed.
"""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import backward, log_ratio
from difftilt.errors import InputError, RewardError, TrainingError
from difftilt.models.labels import Labels
from difftilt.noise import GeneratorNoise
from difftilt.training.partitions import LogPartition
from difftilt.training.plan import RTB, BehaviourWeights, Replaying, Training
from difftilt.training.state import TrainingState, trainable
from difftilt.training.steps import Metrics, training_step
from tests.toys import (
    FragileKernel,
    Likelihood,
    gaussian_chain,
    linear_posterior,
    network_posterior,
    quick_plan,
    toy_state,
)

SMALL = Replaying(capacity=500, pool_capacity=1000, pool_fresh=48)


def trained(state: TrainingState) -> list[Metrics]:
    metrics = []
    while state.progress < 1:
        metrics.append(training_step(state))
    state.use_average()
    return metrics


def importance(state: TrainingState, label: int | None = None) -> tuple[float, float, float]:
    """Estimate of log Z with its standard error, and the effective sample size, of 4,000 paths."""
    n = 4000
    condition = None if label is None else torch.full((n,), label)
    noise = GeneratorNoise(torch.Generator().manual_seed(11))
    path = rollout(state.chain.given(condition), n, noise)
    assert path.log_ratio is not None
    log_w = state.beta * state.log_reward(path.x_0, condition) - path.log_ratio
    w = log_w.double().softmax(0) * n
    log_z = float(log_w.double().logsumexp(0)) - math.log(n)
    return log_z, float(w.std()) / math.sqrt(n), 1 / float((w**2).mean())


def assert_exact(state: TrainingState, ess: float = 0.9, label: int | None = None) -> None:
    assert isinstance(state.log_reward, Likelihood)
    truth = state.log_reward.log_z(state.chain.prior, label or 0, state.beta)
    log_z, error, effective = importance(state, label)
    assert abs(log_z - truth) <= 5 * error + 1e-5
    assert effective > ess


MIXES = {
    "on_policy": ({"on_policy": 1.0}, "uniform"),
    "widened": ({"widened": 1.0}, "uniform"),
    "prior": ({"prior": 1.0}, "uniform"),
    "pool": ({"pool": 1.0}, "uniform"),
    "data": ({"on_policy": 0.5, "data": 0.5}, "uniform"),
    "replay-uniform": ({"on_policy": 0.5, "replay": 0.5}, "uniform"),
    "replay-reward": ({"on_policy": 0.5, "replay": 0.5}, "reward"),
    "replay-residual": ({"on_policy": 0.5, "replay": 0.5}, "residual"),
    "local_search": ({"on_policy": 0.5, "local_search": 0.5}, "reward"),
}


@pytest.mark.parametrize("name", MIXES)
def test_every_behaviour_reaches_the_posterior(name: str):
    shares, priority = MIXES[name]
    weights = BehaviourWeights(**{"on_policy": 0.0, "pool": 0.0} | shares)
    plan = quick_plan(behaviour=weights, replaying=replace(SMALL, priority=priority))
    state = toy_state(plan, data=torch.linspace(-1, 2, 50)[:, None])
    metrics = trained(state)
    assert_exact(state)
    assert all(math.isnan(m.log_z) for m in metrics) == ("on_policy" not in shares)


def test_the_posterior_itself_is_right():
    state = toy_state(quick_plan(steps=100))
    trained(state)
    mean, variance = Likelihood().posterior(state.chain.prior)
    x = rollout(state.chain, 20_000, GeneratorNoise(torch.Generator().manual_seed(5))).x_0
    assert abs(float(x.mean()) - mean) < 5 * math.sqrt(variance / len(x))
    assert abs(float(x.var()) - variance) < 5 * variance * math.sqrt(2 / len(x))


def test_learned_log_z_reaches_the_truth():
    plan = quick_plan(steps=100, objective=RTB(log_z="learned"))
    state = toy_state(plan)
    trained(state)
    assert_exact(state)
    truth = Likelihood().log_z(state.chain.prior)
    assert float(state.log_z.value.detach()) == pytest.approx(truth, abs=0.01)


@pytest.mark.parametrize("log_z", ["learned", "batch"])
def test_labels_each_reach_their_posterior(log_z):
    def labels(count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, 3, (count,), generator=generator)

    reward = Likelihood((1.2, -0.3, 0.4))
    plan = quick_plan(steps=100, batch=96, objective=RTB(log_z=log_z), replaying=SMALL)
    state = toy_state(plan, linear_posterior(labels=3), reward, conditions=labels, labels=3)
    trained(state)
    for label in range(3):
        assert_exact(state, label=label)
        if log_z == "learned":
            truth = reward.log_z(state.chain.prior, label)
            assert float(state.log_z.value[label].detach()) == pytest.approx(truth, abs=0.05)


def test_log_partition_picks_its_label():
    module = LogPartition(Labels((3,)))
    with torch.no_grad():
        module.value.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert module(4, torch.tensor([2, 0, 1, 2])).tolist() == [3, 1, 2, 3]
    assert LogPartition()(2, torch.tensor([1, 0])).tolist() == [0, 0]


def test_beta_is_annealed_to_the_target():
    plan = quick_plan(steps=60, beta_start=0.25, beta_annealed=0.5)
    state = toy_state(plan, beta=2.0)
    betas = [m.beta for m in trained(state)]
    assert betas[0] == 0.25 and betas[15] == pytest.approx(1.125)
    assert betas[30:] == [2.0] * 30
    assert sorted(betas) == betas
    assert_exact(state)


def test_warm_start_goes_before_the_balance():
    plan = quick_plan(steps=120, warm_start=0.5, replaying=SMALL)
    state = toy_state(plan)
    metrics = trained(state)
    assert [m.phase for m in metrics] == ["warm start"] * 60 + ["balance"] * 60
    assert all(math.isnan(m.ess) for m in metrics[:60])
    assert metrics[60].ess > 0.9  # what the warm start reached
    assert_exact(state)


def test_a_network_with_muon_learns():
    plan = quick_plan(steps=100, learning_rate=0.01, hidden_learning_rate=0.05)
    state = toy_state(plan, network_posterior())
    before = importance(state)[2]
    trained(state)
    assert len(state.optimisers) == 2
    assert_exact(state, ess=max(0.8, before))


def test_without_averaging_the_average_is_the_present():
    state = toy_state(quick_plan(steps=3, ema=0.0))
    trained(state)
    for parameter, average in zip(state.parameters, state.average.average, strict=True):
        assert torch.equal(parameter, average) and bool(average.any())


def gradient(chunk: int) -> tuple[Tensor, Metrics]:
    """Gradient of one update from a posterior that is not the prior."""
    plan = quick_plan(batch=24, chunk=chunk, gradient_clip=None)
    state = toy_state(plan, moved_posterior())
    state.generator.manual_seed(1)
    metrics = training_step(state)
    grads = [p.grad.flatten() for p in state.parameters if p.grad is not None]
    return torch.cat(grads).clone(), metrics


def moved_posterior() -> Chain:
    """A posterior that is not its prior."""
    chain = linear_posterior()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in trainable(chain):
            parameter.normal_(std=0.1)
    return chain


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_the_gradient_does_not_depend_on_the_chunk(chunk: int):
    whole, metrics = gradient(10**6)
    chunked, same = gradient(chunk)
    assert float((chunked - whole).norm() / whole.norm()) < 1e-6
    assert same.loss == pytest.approx(metrics.loss, rel=1e-6)


@pytest.mark.parametrize("warm_start", [0.0, 1.0])
def test_too_little_memory_halves_the_chunk_and_keeps_the_update(warm_start: float):
    def update(limit: int, subset: int | None) -> TrainingState:
        chain = gaussian_chain()
        kernel = FragileKernel(1, chain.steps)
        plan = quick_plan(batch=20, warm_start=warm_start, subset=subset, replaying=SMALL)
        state = toy_state(plan, chain.tilted(kernel))
        training_step(state)
        kernel.limit = limit
        if limit < 1000:
            with pytest.warns(RuntimeWarning, match="out of memory at update 2; going on with"):
                training_step(state)
        else:
            training_step(state)
        return state

    for subset in (None, 2):
        free, tight = update(10**9, subset), update(15, subset)
        assert tight.plan.chunk <= 15 < free.plan.chunk
        assert torch.equal(free.generator.get_state(), tight.generator.get_state())
        for one, other in zip(free.parameters, tight.parameters, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_memory_too_small_for_one_state_is_an_error():
    kernel = FragileKernel(1, 3)
    kernel.limit = 0
    state = toy_state(quick_plan(batch=4), gaussian_chain().tilted(kernel))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            training_step(state)
    assert "going on with chunk=1" in str(told[-1].message)
    assert state.step == 0


def test_another_runtime_error_is_not_taken_for_memory():
    def broken(x_0: Tensor, condition: Tensor | None) -> Tensor:
        raise RuntimeError("the reward's own trouble")

    state = toy_state(log_reward=broken)
    with pytest.raises(RuntimeError, match="the reward's own trouble"):
        training_step(state)


def test_a_random_subset_of_steps_is_unbiased():
    state = toy_state(quick_plan(batch=24, subset=2, gradient_clip=None), moved_posterior())
    state.generator.manual_seed(1)
    path = rollout(state.chain, 24, GeneratorNoise(state.generator))
    with torch.no_grad():
        ratios = log_ratio(state.chain, path)
    gap = ratios - state.log_reward(path.x_0, None)
    coefficients = 2 * (gap - gap.mean()) / len(gap)

    def grads(subset: int | None) -> Tensor:
        for parameter in state.parameters:
            parameter.grad = None
        backward(state.chain, path, coefficients, 1000, subset, state.generator)
        return torch.cat([p.grad.flatten() for p in state.parameters if p.grad is not None])

    exact = grads(None)
    draws = torch.stack([grads(2) for _ in range(300)])
    error = draws.std(0) / math.sqrt(len(draws))
    assert bool(((draws.mean(0) - exact).abs() <= 5 * error + 1e-6).all())
    assert float(draws.std(0).max()) > 0


def test_zero_reward_on_some_paths_is_survived():
    def truncated(x_0: Tensor, condition: Tensor | None) -> Tensor:
        return torch.where(x_0[:, 0] > 1.0, 0.0, -math.inf)

    plan = quick_plan(steps=60, warm_start=0.5, replaying=SMALL)
    state = toy_state(plan, log_reward=truncated)
    trained(state)
    x = rollout(state.chain, 2000, GeneratorNoise(torch.Generator().manual_seed(0))).x_0
    prior = rollout(state.chain.prior, 2000, GeneratorNoise(torch.Generator().manual_seed(0))).x_0
    assert float((x > 1.0).float().mean()) > 2 * float((prior > 1.0).float().mean())


@pytest.mark.parametrize("clip", [None, 4.0])
@pytest.mark.parametrize("log_z", ["batch", "learned"])
def test_mass_leaves_forbidden_ground(clip, log_z):
    """Balance on the allowed paths alone is blind to a constant share of mass elsewhere."""

    def half_line(x_0: Tensor, condition: Tensor | None) -> Tensor:
        return torch.where(x_0[:, 0] > 0.5, 0.0, -math.inf)

    plan = quick_plan(steps=150, objective=RTB(log_z, clip), learning_rate=0.05)
    state = toy_state(plan, log_reward=half_line)
    trained(state)
    state.use_average()
    x = rollout(state.chain, 4000, GeneratorNoise(torch.Generator().manual_seed(0))).x_0
    prior = rollout(state.chain.prior, 4000, GeneratorNoise(torch.Generator().manual_seed(0))).x_0
    assert float((prior[:, 0] > 0.5).float().mean()) < 0.55
    assert float((x[:, 0] > 0.5).float().mean()) > 0.85


def nowhere(x_0: Tensor, condition: Tensor | None) -> Tensor:
    return torch.full((len(x_0),), -math.inf)


def test_zero_reward_everywhere_is_named():
    plan = quick_plan(warm_start=0.5, replaying=SMALL)
    with pytest.raises(RewardError, match=r"log r = -inf on all \d+ paths of the pool"):
        training_step(toy_state(plan, log_reward=nowhere))
    own = quick_plan(behaviour=BehaviourWeights(on_policy=1.0, pool=0.0))
    with pytest.raises(TrainingError, match="update 1: every path of the batch has log r = -inf"):
        training_step(toy_state(own, log_reward=nowhere))


def test_conditions_met_once_in_a_batch_are_left_out():
    def continuous(count: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, generator=generator)

    def reward(x_0: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        return -((x_0[:, 0] - condition) ** 2)

    chain = network_posterior(1)
    plan = quick_plan(batch=34, paths_per_condition=4, replaying=SMALL)  # 17 = 4 + 4 + 4 + 4 + 1
    state = toy_state(plan, chain, reward, conditions=continuous)
    assert all(math.isfinite(training_step(state).loss) for _ in range(3))


def test_a_batch_of_one_has_no_variance():
    with pytest.raises(InputError, match=r"RTB compares paths: it needs at least 2 paths"):
        Training(batch=1)
    learned = quick_plan(batch=1, steps=2, objective=RTB(log_z="learned"))
    learned = replace(learned, behaviour=BehaviourWeights(on_policy=1.0, pool=0.0))
    assert math.isfinite(training_step(toy_state(learned)).loss)


def test_replay_alone_has_nothing_to_start_from():
    plan = quick_plan(behaviour=BehaviourWeights(on_policy=0, pool=0, replay=1))
    with pytest.raises(InputError, match="replay and local search need ends to start from"):
        training_step(toy_state(plan))


def test_data_that_are_not_given_are_asked_for():
    plan = quick_plan(behaviour=BehaviourWeights(on_policy=0.5, pool=0.0, data=1.0))
    with pytest.raises(InputError, match=r"a share of 1 from data, and none is given; give Sourc"):
        toy_state(plan)


def test_a_seed_decides_everything():
    first, second, other = (toy_state(quick_plan(steps=3, seed=s)) for s in (1, 1, 2))
    for state in (first, second, other):
        trained(state)
    pairs = list(zip(first.parameters, second.parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.parameters[0], other.parameters[0])


def test_residuals_go_to_the_ends_they_belong_to(monkeypatch: pytest.MonkeyPatch):
    """New ends push others out of a full buffer; rows of replayed ones must be used before."""
    weights = BehaviourWeights(on_policy=0.4, pool=0.0, replay=0.3, local_search=0.3)
    plan = quick_plan(steps=5, behaviour=weights, replaying=Replaying(capacity=40))
    state = toy_state(plan)
    replay, checked = state.behaviours["replay"][0], []
    draw, update = replay.draw, state.buffer.update

    def drawn(*arguments):
        checked.append(draw(*arguments))
        return checked[-1]

    def updated(rows: Tensor, residual: Tensor) -> None:
        assert torch.equal(state.buffer.x_0[rows], checked[-1].path.x_0)
        update(rows, residual)

    monkeypatch.setattr(replay, "draw", drawn)
    monkeypatch.setattr(state.buffer, "update", updated)
    trained(state)
    assert len(state.buffer) == 40 and len(checked) == 4
