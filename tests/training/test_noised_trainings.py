"""Short trainings through the second door, to closed forms of a Gaussian chain."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.forms import ValueGuided
from difftilt.noise import GeneratorNoise
from difftilt.objectives.base import Objective
from difftilt.objectives.contrastive import CEP
from difftilt.objectives.forward import AdvantageWeighted
from difftilt.objectives.payoff import RGDM, RewardWeighted
from difftilt.posteriors import Prior
from difftilt.sampling.draws import sample
from difftilt.training.plan import BehaviourWeights, Optimisation, Training, suited
from difftilt.training.state import TrainingState
from difftilt.training.steps import training_step
from difftilt.values.kernel import ValueKernel
from gaussian_values import (
    LIKELIHOOD,
    PRIOR,
    SMALL,
    Parabola,
    exact_table,
    exact_tilt,
    exact_values,
    generator,
    guided,
    linear,
    log_likelihood,
    plan_of,
    state_of,
    step_of,
)
from toys import Likelihood, LinearKernel, gaussian_chain, toy_state

pytestmark = pytest.mark.usefixtures("unchecked")


def errors_of(state: TrainingState, beta: float = 1.0) -> tuple[float, float]:
    """Of the guidance in the steps' own units (rms of ``std ∇``), and of log h in nats (rms)."""
    chain, kernel = state.chain, state.chain.kernel
    assert isinstance(kernel, ValueKernel)
    kernel = kernel.at(beta) if kernel.value.largest_beta else kernel
    path = rollout(chain.prior, 2_000, GeneratorNoise(generator(9)))
    values = exact_values(chain.prior, LIKELIHOOD, beta)
    drift, height = [], []
    for n in range(1, chain.steps + 1):
        x = path.states[n]
        std = float(chain.diffusion.tables.std[n])
        with torch.no_grad():
            drift.append(std * (kernel.gradient(x, n) - values[n].slope(x)))
            log_h = kernel.value(x, n, chain.predict(x, n), None, beta)
            height.append(log_h - values[n](x))
    first, second = (float(torch.stack(e).square().mean().sqrt()) for e in (drift, height))
    return first, second


def trained_by(objective: Objective, chain: Chain, updates: int, **changes) -> TrainingState:
    options = {"batch": 256, "learning_rate": 1e-2, "ema": 0.98, **changes}
    state = state_of(objective, chain, steps=updates, **options)
    for _ in range(updates):
        training_step(state)
    state.use_average()
    return state


@pytest.mark.parametrize("behaviour", [PRIOR, BehaviourWeights(prior=0.5, on_policy=0.5, pool=0)])
def test_a_contrast_finds_log_h_and_its_gradient(behaviour: BehaviourWeights):
    """Closed form: the guidance moves a step by 0.27 std (rms), log h spans several nats."""
    torch.manual_seed(0)
    state = trained_by(CEP(contrast=32), guided(), 150, behaviour=behaviour)
    drift, height = errors_of(state)
    untrained = errors_of(toy_state(state.plan, guided(), LIKELIHOOD))
    assert untrained[0] > 0.25
    assert drift < 0.08
    assert height < 0.12
    assert state.value is not None
    evidence = float(state.value.anchor.evidence.value)
    assert evidence == pytest.approx(LIKELIHOOD.log_z(state.chain.prior), abs=0.05)


def test_one_value_serves_every_beta():
    torch.manual_seed(0)
    form = replace(SMALL, largest_beta=2.0)
    state = trained_by(CEP(), guided(form=form), 200)
    for beta in (0.5, 1.0, 2.0):
        drift, height = errors_of(state, beta)
        assert drift < 0.12 * max(1.0, beta)
        assert height < 0.15 * max(1.0, beta)


def test_self_normalised_labels_and_forward_states_train_too():
    torch.manual_seed(0)
    state = trained_by(CEP("self_normalised", 64, states="forward"), guided(12), 120, subset=4)
    # Another chain's log h: of the reversed forward process. For 12 steps the two are near.
    drift, _ = errors_of(state)
    assert drift < 0.15


def table_of(state: TrainingState) -> Tensor:
    assert isinstance(state.chain.kernel, LinearKernel)
    return state.chain.kernel.table[:, 0, 1:, 0].detach()


@pytest.mark.parametrize(
    "objective, behaviour",
    [
        (RewardWeighted(states="chain"), PRIOR),
        (
            RewardWeighted("unnormalised", "chain"),
            BehaviourWeights(on_policy=0.5, prior=0.5, pool=0),
        ),
        (RewardWeighted(states="chain"), BehaviourWeights()),
    ],
)
def test_weighted_likelihood_finds_the_exact_kernels(
    objective: RewardWeighted, behaviour: BehaviourWeights
):
    state = trained_by(objective, linear(), 150, behaviour=behaviour, learning_rate=4e-2)
    exact = exact_table(state.chain.prior, exact_values(state.chain.prior, LIKELIHOOD))
    assert torch.allclose(table_of(state), exact, atol=0.07)


def test_an_advantage_alone_finds_another_law():
    """Its fixed point, ``q ∝ p exp(E_q[β log r | x_{n-1}])``: a mean in the place of ``log h``."""
    objective = AdvantageWeighted(states="chain")
    state = trained_by(objective, linear(2), 300, batch=512, learning_rate=4e-2)
    prior = state.chain.prior
    values = [log_likelihood(LIKELIHOOD)]
    shift, slope, log_scale = exact_tilt(prior, 1, values[0])
    offset, gain, std = step_of(prior, 1)
    # log r of the tilted step's landing, averaged: a parabola of x_1.
    k, b, c = values[0].k, values[0].b, values[0].c
    offset, gain = offset + std * shift, gain + std * slope
    spread = (std * math.exp(log_scale)) ** 2
    mean = Parabola(
        k * gain**2, gain * (b - k * offset), c + b * offset - 0.5 * k * (offset**2 + spread)
    )
    found = table_of(state)
    own = exact_table(prior, [values[0], mean])
    posterior = exact_table(prior, exact_values(prior, LIKELIHOOD))
    assert torch.allclose(found, own, atol=0.05)
    assert float((own - posterior).abs().max()) > 0.12


def test_an_advantage_finds_the_posterior_of_an_affine_reward():
    """There the mean of log r and ``log h`` differ by a constant."""
    objective, line = AdvantageWeighted(states="chain"), Parabola(0.0, 0.8, -0.3)
    plan = plan_of(objective, steps=200, batch=512, learning_rate=4e-2, ema=0.98)
    state = toy_state(plan, linear(), lambda x, condition: line(x))
    for _ in range(200):
        training_step(state)
    state.use_average()
    prior, values = state.chain.prior, [line]
    for n in range(1, 4):
        values.append(values[-1].before(*step_of(prior, n)))
    assert torch.allclose(table_of(state), exact_table(prior, values), atol=0.05)


def test_rgdm_learns_its_value_along_the_way():
    torch.manual_seed(0)
    objective = RGDM(candidates=12, contrast=16)
    state = trained_by(objective, linear(), 120, batch=64, learning_rate=3e-2)
    exact = exact_table(state.chain.prior, exact_values(state.chain.prior, LIKELIHOOD))
    assert torch.allclose(table_of(state), exact, atol=0.15)


def test_the_face_fits_a_guided_posterior():
    torch.manual_seed(0)
    target = Prior(gaussian_chain(1, 12)).tilt(LIKELIHOOD)
    posterior = target.fit(CEP(), form=ValueGuided(), steps=100, batch=192)
    before = target.posterior(ValueGuided()).certify(1_000)
    after = posterior.certify(1_000)
    assert after.ess > 0.85 > 0.75 > before.ess
    mean, variance = LIKELIHOOD.posterior(target.prior.chain)
    x = posterior.sample(2_000)
    assert float(x.mean()) == pytest.approx(mean, abs=0.1)
    assert float(x.var()) == pytest.approx(variance, rel=0.25)


def test_a_value_inside_the_kernel_is_optimised_once():
    """Muon and Adam share the parameters without repeating one."""
    posterior = Prior(gaussian_chain()).tilt(Likelihood()).posterior(ValueGuided(width=32))
    plan = Training(
        objective=CEP(),
        **suited(CEP()),
        optimisation=Optimisation(hidden_learning_rate=0.01),
    )
    state = posterior.target.state(posterior, plan)
    seen = [id(p) for o in state.optimisers for g in o.param_groups for p in g["params"]]
    assert len(seen) == len(set(seen))
    assert len(state.optimisers) == 2


def test_given_data_are_weighted_by_their_reward():
    """RAML: ends that were drawn before, likelier the better they are, become the posterior's."""
    chain = linear(12)
    ends = sample(chain.prior, 20_000, seed=3).x_0
    objective = RewardWeighted(states="forward")
    given = BehaviourWeights(on_policy=0, pool=0, data=1.0)
    plan = plan_of(objective, steps=150, batch=512, behaviour=given, learning_rate=4e-2, ema=0.98)
    state = toy_state(plan, chain, LIKELIHOOD, data=ends)
    for _ in range(150):
        training_step(state)
    state.use_average()
    found = sample(chain, 20_000, seed=4).x_0
    mean, variance = LIKELIHOOD.posterior(chain.prior)
    before = abs(float(ends.mean()) - mean)
    assert before > 0.3
    assert abs(float(found.mean()) - mean) < 0.1 * before
    assert float(found.var()) == pytest.approx(variance, rel=0.15)
