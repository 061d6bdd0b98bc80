"""Every method of offline control on a bandit whose optimal policy is known.

One network serves all states and all β in [0, 10]. Methods that tilt the chain's steps read the
condition ``(s, β)`` of ``log r = β Q(s, a)``; CEP's value reads s, and has β as an input of its
own. Each method becomes a ``Policy``, ``(state, β) -> chain``, and is judged in states that no
training has seen. None reads the truth.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from difftilt.betas import BetaReward, joined_beta, with_beta
from difftilt.chains.chain import Chain
from difftilt.errors import DifftiltError, InputError
from difftilt.forms import Form, Perceptron, ValueGuided
from difftilt.objectives.balance import RTB
from difftilt.objectives.base import Objective
from difftilt.objectives.contrastive import CEP
from difftilt.objectives.pathwise import KLControl
from difftilt.objectives.payoff import RewardWeighted
from difftilt.objectives.policy import DDPO
from difftilt.posteriors import Prior, Sources
from difftilt.recipes.tables.cells import Cell, Cells, cells_of
from difftilt.recipes.tables.makers import Setting, by_itself, on_own_paths, trained
from difftilt.tasks.bandits import LARGEST_BETA, Bandit, BestOf, Policy, distances
from difftilt.tasks.bandits.truth import DRAWS
from difftilt.training.plan import BehaviourWeights, Optimisation, Training
from difftilt.values.kernel import ValueKernel

HELD_OUT = 64
STATES_SEED = 20_000
SCALES = (1.0, 1.0)
GUIDED_STEPS = 60
"""N of methods that only shift the prior's steps, whose own error falls as 1/N."""


@dataclass(frozen=True)
class Budget:
    """What each training may spend.

    Arguments:
        updates: of the network.
        batch: paths per update.
        seed: of everything.
    """

    updates: int = 2000
    batch: int = 512
    seed: int = 0


@dataclass(frozen=True)
class BanditMethod:
    """A way to make a policy.

    Arguments:
        summary: one line.
        make: ``(bandit, budget) -> policy``.
        consistent: whether it aims at the optimal policy itself.
        steps: N of its chain; None for the bandit's own.
    """

    summary: str
    make: Callable[[Bandit, Budget], Policy]
    consistent: bool = True
    steps: int | None = None


def plan_of(budget: Budget) -> Training:
    """RTB's training: own and prior paths, 32 for each state and β, log-variance within them."""
    return Training(
        steps=budget.updates,
        batch=budget.batch,
        chunk=65_536,
        warm_start=0.0,
        paths_per_condition=32,
        objective=RTB("batch", 4.0),
        optimisation=Optimisation(3e-3, hidden_learning_rate=0.01, decay_from=0.3),
        behaviour=BehaviourWeights(on_policy=0.75, prior=0.25, pool=0.0),
        seed=budget.seed,
    )


def setting_of(bandit: Bandit, budget: Budget) -> Setting:
    """One posterior over actions for every (s, β)."""
    reward = BetaReward(bandit.log_reward)
    target = Prior(bandit.chain, source=f"bandit {bandit.name}").tilt(reward)
    form = Perceptron(components=4, numbers=SCALES, largest_beta=LARGEST_BETA)
    sources = Sources(conditions=with_beta(bandit.states, LARGEST_BETA))
    return Setting(target, form, plan_of(budget), calls=0, draws=0, sources=sources)


def _gaussian(form: Form | None) -> Form | None:
    assert isinstance(form, Perceptron)
    return replace(form, components=1)


def _reading_beta(make: Callable[[Setting], Chain]) -> Callable[[Bandit, Budget], Policy]:
    """A policy that reads the condition (s, β)."""

    def policy(bandit: Bandit, budget: Budget) -> Policy:
        chain = make(setting_of(bandit, budget))
        return lambda state, beta: chain.given(joined_beta(state, beta))

    return policy


def _alone(objective: Objective) -> Callable[[Bandit, Budget], Policy]:
    """An objective on the posterior's own paths, one Gaussian per step."""

    def make(setting: Setting) -> Chain:
        found = by_itself(objective, _gaussian)(setting)
        assert isinstance(found, Chain)
        return found

    return _reading_beta(make)


def _weighted(setting: Setting) -> Chain:
    objective = RewardWeighted(states="chain")
    return trained(lambda plan: replace(plan, objective=objective, paths_per_condition=1))(setting)


def _contrastive(bandit: Bandit, budget: Budget) -> Policy:
    """CEP with un-normalised labels; β is an input of the value, drawn anew for each row."""
    target = Prior(bandit.chain, source=f"bandit {bandit.name}").tilt(bandit.log_reward)
    form = ValueGuided(largest_beta=LARGEST_BETA, numbers=SCALES)
    plan = _guided_plan(bandit, budget, CEP())
    sources = Sources(conditions=bandit.states)
    chain = trained()(Setting(target, form, plan, 0, 0, sources=sources))
    kernel = chain.kernel
    assert isinstance(kernel, ValueKernel)

    def policy(state: Tensor, beta: float) -> Chain:
        return (chain.prior if beta == 0 else chain.tilted(kernel.at(beta))).given(state)

    return policy


def _paper_labels(bandit: Bandit, budget: Budget) -> Policy:
    """CEP as published: 16 actions of one state, β and noise level, with labels that sum to 1."""
    setting = setting_of(bandit, budget)
    objective = CEP("self_normalised", contrast=16, per_sample_time=False)
    plan = replace(_guided_plan(bandit, budget, objective), paths_per_condition=16)
    form = ValueGuided(numbers=(*SCALES, LARGEST_BETA))
    chain = trained()(replace(setting, plan=plan, form=form))
    return lambda state, beta: chain.given(joined_beta(state, beta))


def _guided_plan(bandit: Bandit, budget: Budget, objective: CEP) -> Training:
    """Prior paths of one state each, a few noised states of every path."""
    return replace(
        plan_of(budget),
        objective=objective,
        behaviour=BehaviourWeights(prior=1.0, on_policy=0.0, pool=0.0),
        subset=min(12, bandit.steps),
        paths_per_condition=1,
    )


def _best_of(count: int) -> Callable[[Bandit, Budget], Policy]:
    return lambda bandit, budget: lambda state, beta: BestOf(count)


def _behaviour(bandit: Bandit, budget: Budget) -> Policy:
    return lambda state, beta: bandit.chain.given(state)


def bandit_methods() -> dict[str, BanditMethod]:
    """Every method of the bench, by name."""
    return {
        "behaviour": BanditMethod("the behaviour policy itself (BC)", _behaviour, False),
        "rtb": BanditMethod(
            "RTB, own and prior paths mixed, log-variance per state", _reading_beta(trained())
        ),
        "rtb_on_policy": BanditMethod(
            "RTB on its own paths alone", _reading_beta(trained(on_own_paths))
        ),
        "cep": BanditMethod("CEP, un-normalised labels", _contrastive, steps=GUIDED_STEPS),
        "cep_paper": BanditMethod(
            "CEP with the paper's labels, K = 16", _paper_labels, False, GUIDED_STEPS
        ),
        "reward_weighted": BanditMethod(
            "reward-weighted regression of the chain's steps", _reading_beta(_weighted)
        ),
        "best_of_16": BanditMethod("the best of 16 actions by Q (IDQL)", _best_of(16), False),
        "kl_control": BanditMethod(
            "KL control, pathwise (Diffusion-QL with the KL as regulariser)",
            _alone(KLControl(path_derivative=True)),
        ),
        "ppo_kl": BanditMethod(
            "PPO's clipped ratio with KL in the cost", _alone(DDPO(0.2, kl=True, updates=2))
        ),
    }


@dataclass(frozen=True)
class BanditBench:
    """What a bench runs.

    Arguments:
        problems: bandits.
        methods: by name.
        seeds: of the trainings.
        budget: of each; its seed is replaced.
        states: held-out states to judge in.
        draws: most of each policy in each of them, where its actions are counted.

    Raises:
        InputError: unknown method, or no draw.
    """

    problems: list[Bandit]
    methods: list[str]
    seeds: list[int]
    budget: Budget
    states: int = HELD_OUT
    draws: int = DRAWS

    def __post_init__(self) -> None:
        known = bandit_methods()
        for method in self.methods:
            if method not in known:
                raise InputError(f"unknown method {method!r}; choose one of {', '.join(known)}")
        if self.draws < 1:
            raise InputError(f"draws={self.draws} must be at least 1")

    def cells(self) -> Cells:
        """One per problem, method and seed."""
        names = [bandit.name for bandit in self.problems]
        settings = {"updates": self.budget.updates, "states": self.states, "draws": self.draws}
        named = cells_of(problem=names, method=self.methods, seed=self.seeds)
        return Cells(named, settings, self._rows_of)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per problem, method and seed, as each is done."""
        return self.cells().rows()

    def _rows_of(self, cell: Cell) -> list[dict[str, Any]]:
        (bandit,) = [each for each in self.problems if each.name == cell["problem"]]
        try:
            return [self.row(bandit, cell["method"], cell["seed"])]
        except DifftiltError as error:
            print(f"{bandit.name} {cell['method']}: no row: {error}", file=sys.stderr)
            return []

    def row(self, bandit: Bandit, method: str, seed: int) -> dict[str, Any]:
        """Train one policy and judge it."""
        chosen = bandit_methods()[method]
        if chosen.steps is not None:
            bandit = replace(bandit, steps=max(bandit.steps, chosen.steps))
        start = time.process_time()
        policy = chosen.make(bandit, replace(self.budget, seed=seed))
        seconds = time.process_time() - start
        states = bandit.states(self.states, torch.Generator().manual_seed(STATES_SEED))
        found = distances(bandit, policy, states, draws=self.draws, seed=seed).to_dict()
        names = {"problem": bandit.name, "method": method, "seed": seed, "steps": bandit.steps}
        return {**names, **found, "seconds": seconds}
