"""The learned log Z of each canvas against the sum over its completions; warm-up of the rates."""

from dataclasses import replace

import pytest
import torch

from difftilt.diffusions.orders import Stepwise
from difftilt.errors import InputError
from difftilt.models.labels import Labels
from difftilt.objectives.balance import RTB
from difftilt.posteriors import Prior
from difftilt.recipes.exact.tokens import recommended_tokens, tokens_form, tokens_sources
from difftilt.tasks.tokens import TokenProblem, token_problems
from difftilt.tasks.tokens.networks import random_transformer
from difftilt.tasks.tokens.problems import random_couplings, token_problem
from difftilt.training.partitions import CanvasPartition, LogPartition, partition_of
from difftilt.training.plan import Optimisation, Training
from difftilt.training.state import TrainingState
from difftilt.training.steps import training_step


def training_of(problem: TokenProblem, plan: Training) -> TrainingState:
    target = Prior(problem.chain).tilt(problem.log_reward, log_bound=problem.log_bound)
    posterior = target.posterior(tokens_form(problem))
    return target.state(posterior, plan, tokens_sources(problem))


def test_log_z_of_each_canvas_is_learned(unchecked: None):
    problem = token_problem(
        "small",
        "four tokens of four",
        random_transformer(4, 4, 0),
        random_couplings(4, 4, 1, 2.0),
        Stepwise(),
    )
    plan = replace(
        recommended_tokens(problem, seconds=None),
        steps=130,
        batch=96,
        objective=RTB("learned", residual_clip=4.0),
    )
    state = training_of(problem, plan)
    assert isinstance(state.log_z, CanvasPartition)
    before = state.log_z(4, problem.conditions).detach()
    assert torch.equal(before, torch.zeros(4))
    # One number for all canvases would be wrong by half of this at least.
    assert float(problem.log_z.max() - problem.log_z.min()) > 2
    while state.progress < 1:
        training_step(state)
    learned = state.log_z(4, problem.conditions).detach().double()
    assert float((learned - problem.log_z).abs().max()) < 0.2


def test_one_call_of_the_prior_for_each_different_canvas():
    problem = token_problems()["tokens_table"]()
    partition = partition_of(problem.chain, canvases=True)
    assert isinstance(partition, CanvasPartition)
    before = problem.chain.calls.prior
    rows = problem.conditions[[0, 1, 0, 0, 1]]
    last = partition.network[-1]
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.normal_(last.weight)
    found = partition(5, rows)
    assert problem.chain.calls.prior == before + 2
    assert found[0] == found[2] == found[3] and found[1] == found[4] and found[0] != found[1]


def test_without_canvases_it_is_one_number_or_one_per_label():
    problem = token_problems()["tokens_table"]()
    assert type(partition_of(problem.chain)) is LogPartition
    assert partition_of(problem.chain, Labels((3,))).value.shape == (3,)


def test_rates_rise_over_the_warm_up():
    problem = token_problems()["tokens_table"]()
    plan = Training(
        steps=8,
        batch=8,
        paths_per_condition=4,
        warm_start=0.0,
        optimisation=Optimisation(1e-3, warm_up=4, decay_from=1.0),
    )
    state = training_of(problem, plan)
    seen = []
    for _ in range(6):
        training_step(state)
        seen.append(state.optimisers[0].param_groups[0]["lr"] / 1e-3)
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    with pytest.raises(InputError, match="warm_up=-1"):
        Optimisation(warm_up=-1)
