"""Short trainings of token chains: consistent objectives reach the enumerated posterior.

The others reach what their docstrings say they do.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import difftilt as dt
from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import step_scores
from difftilt.diffusions.masked import GENERATED, GIVEN, SUFFIX, MaskedDiffusion, canvas, completed
from difftilt.errors import InputError
from difftilt.forms import FullCopy, Perceptron, ValueGuided
from difftilt.kernels.networks import DenoiserKernel
from difftilt.noise import GeneratorNoise
from difftilt.objectives.base import Objective
from difftilt.objectives.contrastive import CEP
from difftilt.objectives.ddpp import DDPP
from difftilt.objectives.forward import AdvantageWeighted
from difftilt.objectives.group_policy import GroupPolicyGradient
from difftilt.objectives.payoff import RGDM, RewardWeighted
from difftilt.objectives.policy import DDPO, DPOK, Reinforce
from difftilt.objectives.subtrajectory import PathConsistency, SubTrajectoryBalance
from difftilt.objectives.supervised import Supervised
from difftilt.objectives.wake import Wake
from difftilt.posteriors import Posterior, Prior, Sources
from difftilt.token_denoisers import TokenDenoiser
from difftilt.training.plan import BehaviourWeights, Optimisation, Training, suited
from difftilt.training.state import TrainingState
from difftilt.training.steps import training_step
from difftilt.values.functions import TokenValue
from tabular import (
    ENDS,
    LENGTH,
    STATES,
    K,
    TableValue,
    arbitrary,
    conditionals,
    coupled,
    distance,
    ends_law,
    joint,
    product,
    state_codes,
    tilted,
    token_chain,
)
from toys import gaussian_chain

pytestmark = pytest.mark.usefixtures("unchecked")

PRIOR = BehaviourWeights(prior=1, on_policy=0, pool=0)
OWN = BehaviourWeights(on_policy=1, pool=0)
FAST = Optimisation(learning_rate=0.1, log_z_learning_rate=0.2, decay_from=0.3, ema=0.9)


def log_reward(x: Tensor, condition: Tensor | None = None) -> Tensor:
    """Of ends with their suffix."""
    return coupled(completed(x, condition))


def fitted(chain: Chain, objective: Objective, **options: Any) -> Posterior:
    torch.manual_seed(0)
    usual = {"steps": 60, "batch": 256, "optimisation": FAST, "form": FullCopy()}
    return Prior(chain).tilt(log_reward).fit(objective, **(usual | options))


def error_of(posterior: Posterior) -> float:
    """Total variation between the ends' law and the enumerated posterior."""
    exact, _ = tilted(ends_law(posterior.chain.prior))
    return distance(ends_law(posterior.chain), exact)


@pytest.mark.parametrize("logits", [conditionals(joint()), arbitrary()], ids=["law", "no law"])
def test_wake_reaches_the_posterior_of_any_prior(logits: Tensor):
    """Also where a balance of whole paths in a uniform order cannot: it is 0.12 away then."""
    posterior = fitted(token_chain(logits), Wake(), warm_start=0.0, behaviour=OWN, steps=120)
    assert error_of(posterior) < 0.04
    assert error_of(replace(posterior, chain=posterior.target.posterior().chain)) > 0.4


def test_fresh_masks_start_as_wake_does():
    posterior = fitted(
        token_chain(arbitrary()),
        dt.RTB(),
        warm_start=1.0,
        warm_start_loss="denoising",
        anchor=1e-3,
    )
    assert error_of(posterior) < 0.06


CONSISTENT = [
    (Reinforce(), 0.05, {}),
    (DDPO(clip=0.2, kl=True, updates=3), 0.06, {}),
    (PathConsistency(), 0.08, {"warm_start": 0.2, "batch": 64}),
    (RewardWeighted(), 0.06, {}),
]


@pytest.mark.parametrize("objective, error, options", CONSISTENT, ids=lambda o: type(o).__name__)
def test_consistent_objectives_reach_the_posterior(
    objective: Objective, error: float, options: dict[str, Any]
):
    assert error_of(fitted(token_chain(conditionals(joint())), objective, **options)) < error


def trained(objective: Objective, chain: Chain, **options: Any) -> Posterior:
    """With a table for a value."""
    options = {"optimisation": FAST} | options
    plan = Training(**(suited(objective) | options), objective=objective)
    posterior = Prior(chain).tilt(coupled).posterior(FullCopy())
    state = TrainingState(posterior.chain, posterior.target.score, 1.0, plan, value=TableValue())
    for _ in range(plan.steps):
        training_step(state)
    state.use_average()
    return posterior


def test_pieces_of_a_path_balance_with_a_value_of_tokens():
    chain = token_chain(conditionals(joint()))
    posterior = trained(SubTrajectoryBalance(), chain, steps=60, batch=128)
    assert error_of(posterior) < 0.1


def test_landings_preferred_by_a_value_of_tokens_come_nearer():
    """The loss of J candidates is biased by O(1/J)."""
    chain = token_chain(conditionals(joint()))
    options = {"steps": 40, "batch": 64, "warm_start": 0.0, "behaviour": PRIOR}
    assert error_of(trained(RGDM(candidates=6), chain, **options)) < 0.12


@pytest.mark.parametrize("objective", [DPOK(), AdvantageWeighted(states="chain")], ids=repr)
def test_penalised_policies_come_nearer_than_the_prior(objective: Objective):
    """Neither's optimum is the posterior."""
    assert error_of(fitted(token_chain(conditionals(joint())), objective)) < 0.15


def test_the_divergence_of_a_step_is_that_of_the_whole_law():
    """A path keeps the prior's probability of what it drew alone; the rest is asked for again."""
    chain = token_chain(arbitrary())
    kernel = FullCopy().kernel(chain)
    assert isinstance(kernel, DenoiserKernel)
    with torch.no_grad():
        kernel.denoiser.network.table += arbitrary(seed=1)  # type: ignore[union-attr]
    posterior = chain.tilted(kernel)
    path = rollout(posterior, 5, GeneratorNoise(torch.Generator().manual_seed(0)))
    found = step_scores(posterior, path, divergence=True).divergence
    assert found is not None
    for n in range(1, LENGTH + 1):
        x = path.states[n]
        place = (x == K + n).long().argmax(1)
        row = state_codes(x)
        p, q = (
            table[row, place].log_softmax(1)
            for table in (arbitrary(), arbitrary() + arbitrary(seed=1))
        )
        torch.testing.assert_close(found[n - 1], (q.exp() * (q - p)).sum(1))


def test_posterior_prediction_finds_the_geometric_mean_of_the_reward():
    """``q(x_i = v | x) ∝ p(x_i = v) exp(E_p[log r | x_i = v, x])``, its optimum on a product."""
    chain = token_chain(conditionals(product()))
    options = {"steps": 60, "batch": 256, "warm_start": 0.0, "behaviour": PRIOR}
    posterior = trained(DDPP(), chain, **options)
    kernel = posterior.chain.kernel
    assert isinstance(kernel, DenoiserKernel) and isinstance(kernel.denoiser, TokenDenoiser)
    empty = torch.full((1, LENGTH), K)
    level = chain.diffusion.leap.level(LENGTH, torch.full((1, LENGTH), K + 1))
    with torch.no_grad():
        found = kernel.denoiser.log_probs(kernel.denoiser.features(empty, level))[0].exp()
    law, log_r, biases = product(), coupled(ENDS).double(), []
    for i in range(LENGTH):
        chosen = [ENDS[:, i] == v for v in range(K)]
        mass = torch.stack([law[c].sum() for c in chosen])
        geometric = torch.stack([(law[c] * log_r[c]).sum() / law[c].sum() for c in chosen]).exp()
        arithmetic = torch.stack([(law[c] * log_r[c].exp()).sum() for c in chosen])
        wanted, exact = mass * geometric, arithmetic / arithmetic.sum()
        assert distance(found[i].double(), wanted / wanted.sum()) < 0.03
        biases.append(distance(wanted / wanted.sum(), exact))
    assert max(biases) > 0.04
    assert error_of(posterior) > 0.05


def one_hole(count: int, generator: torch.Generator | None = None) -> Tensor:
    tokens, roles = torch.tensor([[2, 0, 1]]), torch.tensor([[GIVEN, GENERATED, GIVEN]])
    return canvas(tokens, roles).expand(count, -1, -1)


def test_a_group_policy_is_exact_where_one_position_is_generated():
    """Then its product is the whole law, and its optimum ``p r`` (penalty 1)."""
    prior = token_chain(arbitrary())
    chain = replace(prior, diffusion=MaskedDiffusion(K, 1))
    sources = Sources(conditions=one_hole)
    posterior = fitted(
        chain, GroupPolicyGradient(), sources=sources, paths_per_condition=128, batch=128
    )
    x = posterior.given(one_hole(1)).sample(4_000)
    found = torch.bincount(x[:, 1], minlength=K) / len(x)
    law = arbitrary()[2 * 16 + K * 4 + 1, 1].double().softmax(0)
    ends = torch.tensor([[2, v, 1] for v in range(K)])
    exact = law * coupled(ends).double().exp()
    assert x[:, [0, 2]].unique(dim=0).tolist() == [[2, 1]]
    assert distance(found, exact / exact.sum()) < 0.05
    assert distance(law, exact / exact.sum()) > 0.2


def test_a_group_policy_teaches_nothing_beyond_the_empty_state():
    posterior = fitted(token_chain(conditionals(joint())), GroupPolicyGradient(), steps=30)
    kernel = posterior.chain.kernel
    assert isinstance(kernel, DenoiserKernel)
    before, after = conditionals(joint()), kernel.denoiser.network.table.detach()  # type: ignore[union-attr]
    moved = (after != before).flatten(1).any(1)
    assert STATES[moved].tolist() == [[K] * LENGTH]
    assert error_of(posterior) > 0.15


def with_suffix(ends: Tensor) -> Tensor:
    roles = torch.tensor([GENERATED, GENERATED, SUFFIX]).expand_as(ends)
    return canvas(ends, roles)


def test_supervised_fine_tuning_learns_the_law_of_the_data_given_their_suffix():
    """The rows spell out the suffix, which the posterior reads and the prior must not."""
    law = joint(seed=3)
    generator = torch.Generator().manual_seed(0)
    data = ENDS[torch.multinomial(law, 4_000, replacement=True, generator=generator)]
    sources = Sources(data=data, data_conditions=with_suffix(data))
    behaviour = BehaviourWeights(data=1, on_policy=0, pool=0)
    chain = replace(token_chain(conditionals(joint())), diffusion=MaskedDiffusion(K, 2))
    posterior = fitted(chain, Supervised(), sources=sources, behaviour=behaviour)
    for last in range(K):
        condition = with_suffix(torch.tensor([[0, 0, last]]))
        x = posterior.given(condition).sample(3_000)
        assert bool((x[:, 2] == K).all())
        found = torch.bincount(K * x[:, 0] + x[:, 1], minlength=K**2) / len(x)
        ends = data[data[:, 2] == last]
        wanted = torch.bincount(K * ends[:, 0] + ends[:, 1], minlength=K**2) / len(ends)
        assert distance(found, wanted) < 0.07
    assert distance(joint(), law) > 0.5


def test_data_and_conditions_belong_together():
    with pytest.raises(InputError, match=r"3 rows and 2 conditions"):
        fitted(
            token_chain(arbitrary()),
            Supervised(),
            sources=Sources(data=ENDS[:3], data_conditions=with_suffix(ENDS[:2])),
            behaviour=BehaviourWeights(data=1, on_policy=0, pool=0),
        )


REFUSED = [
    (dt.KLControl(), {}, r"the chain's are tokens"),
    (RGDM("reward"), {}, r"continuous states"),
    (CEP(), {}, r"form=ValueGuided"),
    (CEP(), {"form": ValueGuided()}, r"the chain's are tokens"),
    (dt.RTB(), {"form": Perceptron()}, r"the chain's are tokens"),
    (dt.RTB(), {"initial": True}, r"initial=False"),
]


@pytest.mark.parametrize("objective, options, message", REFUSED)
def test_what_tokens_cannot_do_is_said(objective: Objective, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        fitted(token_chain(arbitrary()), objective, **({"steps": 1, "batch": 8} | options))


@pytest.mark.parametrize("objective", [DDPP(), GroupPolicyGradient()], ids=repr)
def test_one_call_likelihoods_refuse_gaussian_chains(objective: Objective):
    target = Prior(gaussian_chain()).tilt(lambda x: x.sum(1))
    with pytest.raises(InputError, match=r"in one network call"):
        target.fit(objective, steps=1, batch=8)


def test_a_value_of_tokens_starts_at_zero_and_reads_the_suffix():
    value, prediction = TokenValue(K, LENGTH, 16, 1, 2), torch.zeros(len(ENDS))
    hidden = torch.where(torch.tensor([False, False, True]), K, ENDS)
    assert value(hidden, 1, prediction).tolist() == [0.0] * len(ENDS)
    with torch.no_grad():
        value.last.weight.normal_()
    plain, informed = value(hidden, 1, prediction), value(hidden, 1, prediction, with_suffix(ENDS))
    assert plain.unique().numel() == K**2
    torch.testing.assert_close(informed, value(ENDS, 1, prediction))
    marked = torch.where(hidden == K, K + 2, hidden)
    torch.testing.assert_close(value(marked, 1, prediction), plain)
