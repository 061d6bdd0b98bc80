"""Every method of the field on one problem: how the bench makes each sampler.

Trained methods share the network's size, the batch and the budget; what differs is the objective,
the kernel that it can train, and where its paths come from. None reads the truth.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from difftilt.chains import Chain
from difftilt.errors import InputError
from difftilt.objectives.base import Objective
from difftilt.objectives.policy import DDPO, DPOK, Reinforce
from difftilt.objectives.subtrajectory import (
    DetailedBalance,
    PathConsistency,
    SubTrajectoryBalance,
)
from difftilt.recipes.exact import PERCEPTRON, build, recommended, target_of
from difftilt.recipes.form import FormChoice
from difftilt.tasks.exact.base import ExactProblem
from difftilt.tasks.exact.judge import judge
from difftilt.training.loop import train
from difftilt.training.plan import RTB, BehaviourWeights, Optimisation, Training

GAUSSIAN = replace(PERCEPTRON, components=1)
ON_POLICY = BehaviourWeights(on_policy=1.0, pool=0.0)


@dataclass(frozen=True)
class Effort:
    """What a method may spend.

    Arguments:
        network_calls: states that networks see, in training or, for what is not trained, while
            50,000 samples are drawn; None for no such limit.
        seconds: of training; None for no such limit.
    """

    network_calls: int | None = None
    seconds: float | None = None


Maker = Callable[[ExactProblem, Effort, int], Chain]


@dataclass(frozen=True)
class Method:
    """A way to make a sampler of a problem.

    Arguments:
        summary: one line.
        make: ``(problem, effort, seed) -> sampler``.
        consistent: whether it aims at the posterior itself.
        ablation: whether it is another method with one part taken away.
    """

    summary: str
    make: Maker
    consistent: bool = True
    ablation: bool = False


def trained(
    change: Callable[[Training], Training] = lambda plan: plan, form: FormChoice = PERCEPTRON
) -> Maker:
    """The recommended training with a change."""

    def make(problem: ExactProblem, effort: Effort, seed: int) -> Chain:
        torch.manual_seed(seed)
        target = target_of(problem)
        posterior = target.posterior(form.build())
        plan = replace(recommended(effort.seconds, seed), network_calls=effort.network_calls)
        state = target.state(posterior, change(plan))
        for _ in train(state, None):
            pass
        state.use_average()
        return posterior.chain

    return make


def balanced(objective: Objective) -> Maker:
    """The recipe's paths and warm start, with another objective after it."""
    return trained(lambda plan: replace(plan, objective=objective))


def on_policy(objective: Objective, rate: float = 1.0) -> Maker:
    """An on-policy objective, on a Gaussian kernel with learned variance."""

    def change(plan: Training) -> Training:
        optimisation = replace(plan.optimisation, learning_rate=rate * 1.5e-3)
        own = replace(plan, objective=objective, warm_start=0.0, behaviour=ON_POLICY)
        return replace(own, optimisation=optimisation)

    return trained(change, GAUSSIAN)


def _prior_alone(problem: ExactProblem, effort: Effort, seed: int) -> Chain:
    return problem.chain


def _behaving(**weights: float) -> Maker:
    behaviour = replace(ON_POLICY, **weights)
    return trained(lambda plan: replace(plan, warm_start=0.0, behaviour=behaviour))


def _weighted() -> Maker:
    return trained(lambda plan: replace(plan, warm_start=1.0))


def _ablations() -> dict[str, Method]:
    found = {
        "rtb_learned_variance": (
            "the same with one Gaussian, its variance learned",
            trained(form=GAUSSIAN),
        ),
        "rtb_prior_variance": (
            "the same with one Gaussian of the prior's variance",
            trained(form=replace(GAUSSIAN, learned_variance=False)),
        ),
        "rtb_no_warm_start": (
            "the recipe without the weighted-likelihood warm start",
            trained(lambda plan: replace(plan, warm_start=0.0)),
        ),
        "rtb_no_pool": (
            "warm start, then on-policy paths alone",
            trained(lambda plan: replace(plan, behaviour=ON_POLICY)),
        ),
        "rtb_prior_paths": (
            "no warm start; half of the paths are the prior's",
            _behaving(on_policy=0.5, prior=0.5),
        ),
        "rtb_on_policy": ("on-policy paths alone, no warm start", _behaving()),
        "rtb_adam": (
            "the recipe with Adam for every parameter",
            trained(lambda plan: replace(plan, optimisation=Optimisation())),
        ),
        "rtb_learned_log_z": (
            "the recipe with a learned log Z",
            balanced(RTB("learned", 4.0)),
        ),
    }
    return {name: Method(text, make, ablation=True) for name, (text, make) in found.items()}


def _trained_methods() -> dict[str, Method]:
    return {
        "rtb": Method("RTB: mixture kernel K = 4, pooled warm start, Muon", trained()),
        "weighted_likelihood": Method("the warm start's objective for the whole time", _weighted()),
        "detailed_balance": Method(
            "RTB's recipe with the balance of single steps", balanced(DetailedBalance(4.0))
        ),
        "sub_trajectory_balance": Method(
            "RTB's recipe with every piece of a path", balanced(SubTrajectoryBalance(0.9, 4.0))
        ),
        "path_consistency": Method(
            "RTB's recipe with windows of 5 steps (PCL)", balanced(PathConsistency(5))
        ),
        "reinforce": Method("KL-regularised REINFORCE, on-policy", on_policy(Reinforce())),
        "ppo_kl": Method(
            "PPO's clipped ratio with KL in the cost", on_policy(DDPO(0.2, kl=True, updates=2))
        ),
        "ddpo": Method(
            "DDPO: the reward alone, with PPO's clipped ratio",
            on_policy(DDPO(0.2, updates=2)),
            consistent=False,
        ),
        "dpok": Method(
            "DPOK: reward and each step's KL at the visited states",
            on_policy(DPOK()),
            consistent=False,
        ),
        "importance": Method("no training: prior paths and importance weights", _prior_alone),
    }


def methods() -> dict[str, Method]:
    """Every method of the bench by name; ablations of the recipe last."""
    return _trained_methods() | _ablations()


def default_methods() -> list[str]:
    """Those that a bench runs if none is named."""
    return [name for name, method in methods().items() if not method.ablation]


@dataclass(frozen=True)
class Bench:
    """What a bench runs.

    Arguments:
        problems: by name.
        methods: by name.
        seeds: of the trainings.
        effort: of each.

    Raises:
        InputError: unknown method.
    """

    problems: list[str]
    methods: list[str]
    seeds: list[int]
    effort: Effort

    def __post_init__(self) -> None:
        known = methods()
        for method in self.methods:
            if method not in known:
                raise InputError(f"unknown method {method!r}; choose one of {', '.join(known)}")

    def __len__(self) -> int:
        return len(self.problems) * len(self.methods) * len(self.seeds)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per problem, method and seed, as each is done."""
        for name in self.problems:
            problem = build(name)
            for method in self.methods:
                for seed in self.seeds:
                    yield bench_row(problem, method, seed, self.effort)


def bench_row(problem: ExactProblem, method: str, seed: int, effort: Effort) -> dict[str, Any]:
    """Make one sampler and judge it."""
    calls = problem.chain.calls
    calls.prior = calls.posterior = 0
    counted, rewards = _counted(problem)
    start = time.perf_counter()
    sampler = methods()[method].make(counted, effort, seed)
    seconds = time.perf_counter() - start
    spent, asked = calls.total, rewards[0]
    figures = judge(problem, sampler, seed).to_dict()
    return {
        "problem": problem.name,
        "method": method,
        "seed": seed,
        **figures,
        "network_calls": spent,
        "reward_calls": asked,
        "seconds": seconds,
    }


def _counted(problem: ExactProblem) -> tuple[ExactProblem, list[int]]:
    """The problem with a reward that counts the states it is asked about."""
    asked = [0]

    def log_reward(x_0: torch.Tensor) -> torch.Tensor:
        asked[0] += len(x_0)
        return problem.log_reward(x_0)

    return replace(problem, log_reward=log_reward), asked
