"""The second door: identities of rows and weights, gradients, checkpoints, and refusals."""

import math
from dataclasses import replace
from pathlib import Path as FilePath

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain, InitialTilt, Path
from difftilt.chains.rollouts import bridge, rollout
from difftilt.errors import InputError, TrainingError
from difftilt.forms import ValueGuided
from difftilt.noise import GeneratorNoise
from difftilt.objectives.contrastive import CEP
from difftilt.objectives.ends import EndObjective
from difftilt.objectives.forward import AdvantageWeighted
from difftilt.objectives.payoff import RGDM, RewardWeighted
from difftilt.posteriors import Prior
from difftilt.training import noising
from difftilt.training.checkpoint import load_checkpoint, save_checkpoint
from difftilt.training.noising import end_updates
from difftilt.training.paths import draw_paths
from difftilt.training.plan import RTB, BehaviourWeights, Training, suited
from difftilt.training.rows import RowDrawing, Rows, draw_rows
from difftilt.training.state import TrainingState
from difftilt.training.steps import training_step
from difftilt.values.kernel import ValueKernel
from gaussian_values import (
    LIKELIHOOD,
    OWN,
    PRIOR,
    SMALL,
    ExactValue,
    exact_table,
    exact_values,
    generator,
    guided,
    linear,
    plan_of,
    state_of,
    tilted_exactly,
)
from toys import Likelihood, LinearKernel, gaussian_chain, toy_state


def rows_of(objective: EndObjective, chain: Chain, batch: int = 40, subset=None) -> Rows:
    path = rollout(chain.prior, batch, GeneratorNoise(generator(1)))
    return draw_rows(RowDrawing(chain, path, objective, generator(2), 13), subset, 1.0)


def test_noised_pairs_are_pairs_of_the_bridge():
    """Means and covariances of ``(x_n, x_{n-1})`` given ``x_0``, to 5 standard errors."""
    chain, count = gaussian_chain(1, 4), 40_000
    x_0 = torch.full((count, 1), 1.3)
    path = bridge(chain, x_0, GeneratorNoise(generator()))
    for k in range(1, 5):
        n = torch.full((count,), k)
        pair = torch.cat(chain.diffusion.noised_pairs(x_0, n, GeneratorNoise(generator(k))), 1)
        other = torch.cat([path.states[k], path.states[k - 1]], 1)
        spread = pair.std(0).clamp(min=1e-6) * math.sqrt(2 / count)
        assert bool(((pair.mean(0) - other.mean(0)).abs() <= 5 * spread).all())
        products = [
            torch.stack([p[:, 0] ** 2, p[:, 0] * p[:, 1], p[:, 1] ** 2]) for p in (pair, other)
        ]
        bound = 5 * products[0].std(1) * math.sqrt(2 / count) + 1e-6
        assert bool(((products[0] - products[1]).mean(1).abs() <= bound).all())


@pytest.mark.parametrize("objective", [CEP(contrast=8), CEP(contrast=8, states="forward")])
def test_a_set_never_holds_two_rows_of_a_path(objective: CEP):
    """They would share an end, and a label then tells of two states at once."""
    rows = rows_of(objective, guided())
    for label in range(int(rows.group.max()) + 1):
        paths = rows.path[rows.group == label]
        assert len(paths) == len(paths.unique()) == 8
    # Each path is seen once at each step.
    pairs = set(zip(rows.path.tolist(), rows.n.tolist(), strict=True))
    assert pairs == {(b, n) for b in range(40) for n in (1, 2, 3)}
    assert len(rows.n) == 120


def test_rows_of_the_chain_are_its_states():
    chain = guided()
    path = rollout(chain.prior, 40, GeneratorNoise(generator(1)))
    rows = rows_of(CEP(), chain)
    assert path.predictions is not None
    assert torch.equal(rows.x, path.states[rows.n, rows.path])
    assert torch.equal(rows.prediction, path.predictions[rows.n - 1, rows.path])
    bare = Path(path.states)
    again = draw_rows(RowDrawing(chain, bare, CEP(), generator(2), 13), None, 1.0)
    assert torch.equal(again.prediction, chain.predict(again.x, again.n))


def test_time_is_of_the_row_or_of_the_set():
    mixed = rows_of(CEP(contrast=8), guided(), subset=1)
    shared = rows_of(CEP(contrast=8, per_sample_time=False), guided(), subset=1)
    assert len(mixed.n) == len(shared.n) == 40
    counts = [len(r.n[r.group == label].unique()) for r in (mixed, shared) for label in range(5)]
    assert min(counts[:5]) > 1
    assert counts[5:] == [1] * 5


def test_a_rest_joins_the_last_set():
    rows = rows_of(CEP(contrast=7), guided(), batch=40, subset=1)
    assert torch.bincount(rows.group).tolist() == [7, 7, 7, 7, 12]


def test_landings_are_where_they_should_be():
    chain = linear()
    own = rows_of(RewardWeighted(states="chain"), chain, batch=500)
    near = rows_of(RGDM("reward", candidates=6, exploration_radius=0.2), chain, batch=500)
    drawn = rows_of(RGDM(candidates=6), chain, batch=500)
    path = rollout(chain.prior, 500, GeneratorNoise(generator(1)))
    assert own.eps is not None and near.eps is not None and drawn.eps is not None
    law = chain.law(own.prediction, own.x, own.n)
    assert torch.allclose(law.at(own.eps[0]), path.states[own.n - 1, own.path], atol=1e-5)
    std = chain.law(near.prediction, near.x, near.n).std
    # Moves are uniform in [-0.2, 0.2]: of variance 0.2²/3 around a common landing, and 5/6 of it
    # around the mean of six.
    moves = (near.eps - near.eps.mean(0)) * std
    assert float(moves.abs().max()) <= 0.4
    assert float(moves.var()) == pytest.approx(0.04 / 3 * 5 / 6, rel=0.1)
    assert float(drawn.eps.mean()) == pytest.approx(0, abs=5 / math.sqrt(drawn.eps.numel()))
    assert float(drawn.eps.std()) == pytest.approx(1, rel=0.05)


def test_steps_without_density_have_no_landing():
    prior = replace(gaussian_chain(), diffusion=gaussian_chain().diffusion.with_std(1, 0.0))
    chain = prior.tilted(LinearKernel(1, 3))
    assert set(rows_of(RewardWeighted(), chain).n.tolist()) == {2, 3}
    assert set(rows_of(CEP(), chain).n.tolist()) == {1, 2, 3}
    for subset in (0, 4):
        with pytest.raises(InputError, match=f"subset={subset} must lie between 1 and 3"):
            rows_of(CEP(), chain, subset=subset)


@pytest.mark.parametrize("behaviour", [PRIOR, OWN])
def test_labels_have_the_mean_of_h_whatever_chain_drew_the_path(behaviour: BehaviourWeights):
    """``E[exp(log_w) / h_n(x_n)] = 1`` at every n, to 5 standard errors."""
    chain = tilted_exactly(share=0.7)
    objective = CEP()
    state = state_of(RewardWeighted(), chain, batch=20_000, behaviour=behaviour)
    state.plan = replace(state.plan, objective=objective)
    parts = draw_paths(state, 1.0, ratio=True)
    batch = noising._Batch.of(state, parts, 1.0)
    rows = noising._rows(state, batch)
    values = exact_values(chain.prior, LIKELIHOOD)
    for n in range(1, 4):
        kept = rows.n == n
        ratio = (batch.log_w(rows)[kept] - values[n](rows.x[kept])).exp()
        assert float(ratio.mean()) == pytest.approx(
            1, abs=5 * float(ratio.std()) / math.sqrt(20_000)
        )


def test_own_and_pooled_paths_are_weighed_by_what_drew_them():
    """Whole-path weights: ``r^β p/q`` on own paths; what resampling left on pooled ones."""
    chain = tilted_exactly(share=0.7)
    state = state_of(RewardWeighted(states="chain"), chain, batch=4_000, behaviour=OWN)
    batch = noising._Batch.of(state, draw_paths(state, 1.0, ratio=True), 1.0)
    log_w = batch.log_w(noising._rows(state, batch))
    spread = float(log_w.exp().std()) / math.sqrt(4_000)
    exact = math.exp(LIKELIHOOD.log_z(chain.prior))
    assert float(log_w.exp().mean()) == pytest.approx(exact, abs=5 * spread)
    pooled = state_of(RewardWeighted(), chain, batch=500, behaviour=BehaviourWeights(on_policy=0))
    batch = noising._Batch.of(pooled, draw_paths(pooled, 1.0, ratio=True), 1.0)
    rows = noising._rows(pooled, batch)
    behaviour = pooled.behaviours["pool"][0]
    behaviour.exponent = 0.25  # pyright: ignore[reportAttributeAccessIssue]
    batch = noising._Batch.of(pooled, {"pool": draw_paths(pooled, 1.0)["pool"]}, 1.0)
    log_w = batch.log_w(rows)
    assert torch.allclose(log_w, 0.75 * batch.log_r[rows.path], atol=1e-5)
    # Their weights are scaled by their own mean.
    scale = noising._known_scale(pooled, batch, rows)
    assert float((log_w - scale).exp().mean()) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    "objective",
    [CEP(contrast=4), CEP(states="forward"), RewardWeighted(), RGDM(candidates=3), RGDM("reward")],
    ids=lambda o: f"{type(o).__name__}-{o.states_from}-{o.landings.kind}",
)
def test_chunks_give_the_same_gradient(objective: EndObjective):
    found = []
    for chunk in (5, 10_000):
        torch.manual_seed(0)
        chain = guided() if objective.guides else tilted_exactly(share=0.5)
        state = state_of(objective, chain, batch=12, chunk=chunk)
        modules = [chain.kernel, state.value]
        parameters = [p for m in modules if m is not None for p in m.parameters()]
        for p in parameters:
            p.data += 0.1 * torch.randn(p.shape, generator=generator(p.numel()))
        for outcome in end_updates(state, 1.0):
            assert bool(torch.isfinite(outcome.losses).all())
        found.append([p.grad.clone() for p in parameters if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    assert max(float(g.abs().max()) for g in found[0]) > 1e-3
    for chunked, whole in zip(*found, strict=True):
        assert torch.allclose(chunked, whole, rtol=1e-4, atol=1e-6)


def test_a_contrast_trains_f_and_not_through_the_tilt():
    """Own paths depend on the value by their tilt, and their labels too; f alone is trained."""
    state = state_of(CEP(), guided(), batch=32, behaviour=OWN)
    value = state.value
    assert value is not None and isinstance(state.chain.kernel, ValueKernel)
    assert value is state.chain.kernel.value
    for p in value.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator(p.numel()))
    start = state.generator.get_state()
    list(end_updates(state, 1.0))
    found = [p.grad.clone() for p in value.parameters() if p.grad is not None]
    state.generator.set_state(start)
    batch = noising._Batch.of(state, draw_paths(state, 1.0, ratio=True), 1.0)
    rows = noising._rows(state, batch)
    f = value.network(rows.x, rows.prediction, rows.n)[:, 0]  # pyright: ignore[reportCallIssue]
    w = (batch.log_w(rows) - value.anchor.scale(1.0)).exp()
    logits = f.unflatten(0, (3, 32))
    loss = -(w.unflatten(0, (3, 32)) * torch.log_softmax(logits, 1)).mean()
    expected = torch.autograd.grad(loss, list(value.parameters()))
    assert not batch.taken_off.requires_grad
    for own, other in zip(found, expected, strict=True):
        assert torch.allclose(own, other, rtol=1e-3, atol=1e-5)


def preferred_mean(objective: EndObjective, state: TrainingState) -> Tensor:
    """Per step, shift and slope of the landings that an objective would have likely."""
    batch = noising._Batch.of(state, draw_paths(state, 1.0, ratio=True), 1.0)
    rows = noising._rows(state, batch)
    preference = noising._preferences(state, batch, rows)
    assert preference is not None and rows.eps is not None
    share = torch.softmax(preference, 0)
    mean = (share[..., None] * rows.eps).sum(0)
    fits = []
    for n in range(1, 4):
        kept = rows.n == n
        design = torch.cat([torch.ones_like(rows.x[kept]), rows.x[kept]], 1)
        fits.append(torch.linalg.lstsq(design, mean[kept]).solution[:, 0])
    return torch.stack(fits, 1)


def test_landings_paid_by_log_h_are_exact_and_by_a_noisy_reward_are_not():
    chain = linear()
    exact = exact_table(chain.prior, exact_values(chain.prior, LIKELIHOOD))[:2]
    consistent = state_of(RGDM(candidates=64), chain, batch=4_000)
    consistent.value = ExactValue(chain.prior, LIKELIHOOD)
    found = preferred_mean(RGDM(candidates=64), consistent)
    assert float((found - exact).abs().max()) < 0.05
    literal = state_of(RGDM("reward", candidates=64), chain, batch=4_000, behaviour=PRIOR)
    found = preferred_mean(RGDM("reward", candidates=64), literal)
    assert float((found - exact).abs().max()) > 0.3


def test_conditions_have_sets_of_their_own_where_they_must():
    def conditions(count: int, source: torch.Generator) -> Tensor:
        return torch.randint(2, (count,), generator=source)

    likelihood = Likelihood(y=(1.2, -0.4))
    plan = plan_of(AdvantageWeighted(), batch=13, paths_per_condition=4)
    state = toy_state(plan, linear(labels=2), likelihood, conditions=conditions)
    batch = noising._Batch.of(state, draw_paths(state, 1.0, ratio=True), 1.0)
    assert batch.path.condition is not None
    rows = noising._rows(state, batch)
    label = batch.path.condition[rows.path]
    for each in rows.group.unique():
        own = label[rows.group == each]
        assert len(own.unique()) == 1
        assert len(own) > 1
    for outcome in end_updates(state, 1.0):
        assert bool(torch.isfinite(outcome.losses).all())


def test_a_condition_alone_has_nothing_to_be_compared_with():
    def conditions(count: int, source: torch.Generator) -> Tensor:
        return torch.arange(count)

    plan = plan_of(AdvantageWeighted(), batch=5, paths_per_condition=4)
    state = toy_state(plan, linear(labels=2), Likelihood(y=(1.2, -0.4)), conditions=conditions)
    batch = noising._Batch.of(state, draw_paths(state, 1.0, ratio=True), 1.0)
    rows = noising._rows(state, batch)
    assert set(rows.path.tolist()) == {0, 1, 2, 3}
    assert set(rows.group.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("largest_beta", [None, 2.0])
def test_a_resumed_contrast_goes_on_to_the_bit(tmp_path: FilePath, largest_beta: float | None):
    def fresh() -> TrainingState:
        torch.manual_seed(0)
        chain = guided(form=replace(SMALL, largest_beta=largest_beta))
        behaviour = BehaviourWeights(prior=0.5, on_policy=0.5, pool=0)
        return state_of(CEP(), chain, batch=32, behaviour=behaviour)

    state, other = fresh(), fresh()
    for _ in range(4):
        training_step(state)
    save_checkpoint(state, tmp_path, {})
    load_checkpoint(other, tmp_path, {})
    assert state.value is not None and other.value is not None
    assert bool(state.value.anchor.evidence.value.abs().sum() > 0)
    for name, tensor in state.value.state_dict().items():
        assert torch.equal(tensor, other.value.state_dict()[name]), name
    assert repr(training_step(state)) == repr(training_step(other))


@pytest.mark.parametrize("objective", [RewardWeighted("unnormalised"), RGDM(candidates=3)])
def test_a_resumed_pay_off_goes_on_to_the_bit(tmp_path: FilePath, objective: EndObjective):
    def fresh() -> TrainingState:
        torch.manual_seed(0)
        return state_of(objective, linear(), batch=16, behaviour=PRIOR)

    state, other = fresh(), fresh()
    for _ in range(3):
        training_step(state)
    save_checkpoint(state, tmp_path, {})
    load_checkpoint(other, tmp_path, {})
    running = (
        s.log_z.running if s.value is None else s.value.anchor.evidence for s in (state, other)
    )
    first, second = (float(each.value) for each in running)
    assert first == second != 0
    assert repr(training_step(state)) == repr(training_step(other))


def test_the_face_aims_a_value_at_the_targets_beta():
    target = Prior(gaussian_chain()).tilt(LIKELIHOOD, beta=0.5)
    kernel = target.posterior(ValueGuided(largest_beta=2.0)).chain.kernel
    assert isinstance(kernel, ValueKernel)
    assert kernel.beta == 0.5
    with pytest.raises(InputError, match=r"knows β in \(0, 0.25\], got beta=0.5"):
        target.posterior(ValueGuided(largest_beta=0.25))


def test_what_an_objective_asks_for_is_the_default():
    assert suited(RTB()) == {}
    assert suited(RewardWeighted()) == {}
    assert suited(CEP()) == {"warm_start": 0.0, "behaviour": PRIOR}
    assert suited(AdvantageWeighted()) == {"warm_start": 0.0, "behaviour": OWN}
    for objective in (CEP(), RGDM(), AdvantageWeighted(), RewardWeighted()):
        assert Training(objective=objective, **suited(objective)).objective == objective


def test_what_does_not_go_together_is_said():
    with pytest.raises(InputError, match=r"CEP trains a value.*use form=ValueGuided\(\)"):
        state_of(CEP(), linear())
    with pytest.raises(InputError, match="CEP sees single steps and does not train the law of x_N"):
        state_of(CEP(), replace(guided(), initial=InitialTilt((1,))))
    with pytest.raises(
        InputError, match=r"CEP has no warm start, got warm_start=0\.4; set it to 0"
    ):
        Training(objective=CEP(), behaviour=PRIOR)
    with pytest.raises(
        InputError, match="CEP is right on paths of data, on_policy, prior alone, got pool"
    ):
        Training(objective=CEP(), warm_start=0.0)
    with pytest.raises(InputError, match="paths of data, prior alone, got on_policy"):
        Training(objective=CEP(states="forward"), warm_start=0.0, behaviour=OWN)
    with pytest.raises(InputError, match="CEP compares paths: it needs at least 64 paths"):
        Training(objective=CEP(contrast=64), batch=32, warm_start=0.0, behaviour=PRIOR)


def test_a_reward_that_is_no_number_stops_the_training():
    def broken(x: Tensor, condition: Tensor | None) -> Tensor:
        return torch.full((len(x),), math.nan)

    state = toy_state(plan_of(CEP()), guided(), broken)
    with pytest.raises(TrainingError, match="log r is not a number"):
        training_step(state)


def test_rewards_of_zero_are_fine():
    def half(x: Tensor, condition: Tensor | None) -> Tensor:
        return torch.where(x[:, 0] > 0.5, 0.0, -math.inf)

    for objective in (CEP(), RewardWeighted(), RGDM(candidates=3), AdvantageWeighted()):
        chain = guided() if objective.guides else linear()
        behaviour = OWN if objective.on_policy else PRIOR
        state = toy_state(plan_of(objective, behaviour=behaviour), chain, half)
        for _ in range(3):
            assert math.isfinite(training_step(state).gradient_norm)
