"""Which posteriors of tokens the balance can reach, by full batches over every path in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.scoring import log_ratio
from difftilt.diffusions.masked import GENERATED, canvas
from difftilt.diffusions.orders import AnyOrder, LeftToRight, Order, Stepwise
from difftilt.forms import FullCopy
from difftilt.kernels.order import OrderKernel
from difftilt.objectives.balance import RTB
from difftilt.objectives.base import Scores
from difftilt.posteriors import Prior
from difftilt.recipes.exact.tokens import recommended_tokens, tokens_form, tokens_sources
from difftilt.tasks.tokens.laws import exact_law, total_variation
from difftilt.tasks.tokens.networks import (
    TabularNetwork,
    arbitrary_table,
    consistent_table,
    random_joint,
)
from difftilt.tasks.tokens.problems import (
    Couplings,
    posterior_law,
    random_couplings,
    token_problems,
)
from difftilt.training.loop import train
from token_paths import every_path, token_chain

V, L = 3, 3
EVERY = canvas(torch.zeros(1, L, dtype=torch.long), torch.full((1, L), GENERATED))


def consistent() -> TabularNetwork:
    return consistent_table(random_joint(V, L, torch.Generator().manual_seed(0)), L)


def arbitrary() -> TabularNetwork:
    return arbitrary_table(V, L, torch.Generator().manual_seed(0), 2.0)


def couplings(offset: float = 0.0) -> Couplings:
    table = random_couplings(V, L, 1).table.double()
    return Couplings(table, 2.0, offset=offset)


def full_batch(prior: Chain, reward: Couplings, learned_order: bool) -> tuple[Chain, float]:
    """The minimiser of the balance over all paths, each counted once, and its log Z."""
    kernel = FullCopy(learned_order=learned_order).kernel(prior)
    if isinstance(kernel, OrderKernel):
        # The table's further column, zero at first, is the logit of the position.
        kernel.head.weight.data[0, V] = 1.0
    posterior, path = prior.tilted(kernel), every_path(prior)[0]
    log_r, log_z = reward(path.x_0).double(), torch.zeros((), dtype=torch.float64)
    parameters = [*kernel.parameters(), log_z.requires_grad_()]
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=25,
        history_size=50,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        scores = Scores(log_ratio(posterior, path), log_r, log_z=log_z.expand(path.batch))
        loss = RTB("learned").losses(scores).mean()
        loss.backward()
        return loss

    for _ in range(12):
        if float(optimiser.step(closure).detach()) < 1e-12:
            break
    return posterior, float(log_z.detach())


def distance(posterior: Chain, prior: Chain, reward: Couplings) -> float:
    law, _ = posterior_law(prior, reward, EVERY)
    return float(total_variation(exact_law(posterior, EVERY), law))


@pytest.mark.parametrize(
    ("network", "order", "learned_order"),
    [
        (consistent, AnyOrder(), False),
        (consistent, Stepwise(), False),
        (arbitrary, LeftToRight(), False),
        (arbitrary, Stepwise(), True),
    ],
    ids=[
        "consistent, any",
        "consistent, stepwise",
        "arbitrary, left to right",
        "arbitrary, chosen",
    ],
)
def test_the_balance_reaches_the_posterior(network, order: Order, learned_order: bool, unchecked):
    prior, reward = token_chain(network(), L, order), couplings()
    law, exact = posterior_law(prior, reward, EVERY)
    assert total_variation(exact_law(prior, EVERY), law) > 0.2
    posterior, log_z = full_batch(prior, reward, learned_order)
    assert distance(posterior, prior, reward) < 1e-6
    assert log_z == pytest.approx(float(exact), abs=1e-5)


def test_a_uniform_order_has_a_floor_on_a_prior_of_no_joint_law(unchecked):
    prior, reward = token_chain(arbitrary(), L, AnyOrder()), couplings()
    posterior, log_z = full_batch(prior, reward, False)
    _, exact = posterior_law(prior, reward, EVERY)
    assert distance(posterior, prior, reward) > 0.05
    assert abs(log_z - float(exact)) > 0.05


def test_an_offset_of_the_reward_changes_log_z_alone(unchecked):
    prior = token_chain(consistent(), L, AnyOrder())
    posterior, log_z = full_batch(prior, couplings(), False)
    shifted, lower = full_batch(prior, couplings(offset=-30.0), False)
    assert lower == pytest.approx(log_z - 30.0, abs=1e-5)
    assert total_variation(exact_law(posterior, EVERY), exact_law(shifted, EVERY)) < 1e-6


def test_a_neural_posterior_is_near_the_truth_of_every_condition(unchecked):
    problem = token_problems()["tokens_v3n4"]()
    plan = recommended_tokens(problem, seconds=None)
    plan = replace(plan, steps=150, batch=256, paths_per_condition=20)
    target = Prior(problem.chain).tilt(problem.log_reward)
    torch.manual_seed(0)
    posterior = target.posterior(tokens_form(problem))
    state = target.state(posterior, plan, tokens_sources(problem))
    for _ in train(state, None):
        pass
    state.use_average()
    start = total_variation(exact_law(problem.chain, problem.conditions), problem.law)
    assert float(start.min()) > 0.4
    found = total_variation(exact_law(posterior.chain, problem.conditions), problem.law)
    assert float(found.max()) < 0.03
    for condition, log_z in zip(problem.conditions, problem.log_z, strict=True):
        log_w = posterior.given(condition[None]).draw(2_000, seed=1).log_w
        assert log_w is not None
        assert abs(float(log_w.double().exp().mean().log() - log_z)) < 0.05
