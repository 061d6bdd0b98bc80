"""Every method of the field on one problem: how the bench makes each sampler.

Trained methods share the network's size, the batch and the budget; what differs is the objective,
the kernel that it can train, and where its paths come from. None reads the truth.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from difftilt.chains import Chain
from difftilt.errors import DifftiltError, InputError
from difftilt.forms import Form, ValueGuided
from difftilt.guidance.base import Guidance
from difftilt.guidance.pseudoinverse import PiGDM
from difftilt.guidance.reconstruction import DPS, LGDMC
from difftilt.objectives.base import Objective
from difftilt.objectives.contrastive import CEP
from difftilt.objectives.forward import AdvantageWeighted
from difftilt.objectives.pathwise import AdjointMatching, AlignProp, DRaFT, KLControl
from difftilt.objectives.payoff import RGDM, RewardWeighted
from difftilt.objectives.policy import DDPO, DPOK, Reinforce
from difftilt.objectives.subtrajectory import (
    DetailedBalance,
    PathConsistency,
    SubTrajectoryBalance,
)
from difftilt.recipes.exact import PERCEPTRON, build, recommended, target_of
from difftilt.recipes.form import FormChoice
from difftilt.recipes.tokens import (
    judge_token_population,
    judge_tokens,
    recommended_tokens,
    tokens_form,
    tokens_sources,
)
from difftilt.smc.methods import SVDD, TDS, BestOfN, FKSteering, ImportanceResampling
from difftilt.smc.population import Population
from difftilt.tasks.exact.base import ExactProblem
from difftilt.tasks.exact.judge import DRAWS, Judgement, judge, judge_population
from difftilt.tasks.tokens import TokenProblem
from difftilt.training.loop import train
from difftilt.training.plan import (
    RTB,
    BehaviourWeights,
    Optimisation,
    Replaying,
    Training,
    suited,
)

DEFAULT_CALLS = 5_000_000
SYSTEMS_JUDGED = 10_000

GAUSSIAN = replace(PERCEPTRON, components=1)
SHIFTED = replace(GAUSSIAN, learned_variance=False)
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


@dataclass(frozen=True)
class Systems:
    """A population method and the chain that moves its particles."""

    population: Population
    chain: Chain


Sampler = Chain | Systems
Maker = Callable[[ExactProblem, Effort, int], Sampler]


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
    change: Callable[[Training], Training] = lambda plan: plan,
    form: FormChoice | Form = PERCEPTRON,
) -> Maker:
    """The recommended training with a change."""

    def make(problem: ExactProblem, effort: Effort, seed: int) -> Chain:
        torch.manual_seed(seed)
        target, plan, sources = target_of(problem), _plan(problem, effort, seed), None
        chosen = form.build() if isinstance(form, FormChoice) else form
        if isinstance(problem, TokenProblem):
            chosen, sources = tokens_form(problem, chosen), tokens_sources(problem)
        posterior = target.posterior(chosen)
        state = target.state(posterior, change(plan), sources)
        for _ in train(state, None):
            pass
        state.use_average()
        return posterior.chain

    return make


def _plan(problem: ExactProblem, effort: Effort, seed: int) -> Training:
    if isinstance(problem, TokenProblem):
        plan = recommended_tokens(problem, effort.seconds, seed)
    else:
        plan = recommended(effort.seconds, seed)
        if effort.seconds is None:
            # Where calls are counted, rollouts for the pool are what they are spent on.
            plan = replace(plan, warm_start=0.6, replaying=Replaying(pool_fresh=32))
    return replace(plan, network_calls=effort.network_calls)


def balanced(objective: Objective) -> Maker:
    """The recipe's paths and warm start, with another objective after it."""
    return trained(lambda plan: replace(plan, objective=objective))


def by_itself(objective: Objective, form: FormChoice | Form = GAUSSIAN) -> Maker:
    """An objective on the paths that it asks for, without RTB's warm start."""

    def change(plan: Training) -> Training:
        own = replace(plan, **{"warm_start": 0.0, **suited(objective)}, objective=objective)
        # Gradients of a policy are too noisy for Muon's steps of fixed size.
        return replace(own, optimisation=Optimisation()) if objective.on_policy else own

    return trained(change, form)


def _prior_alone(problem: ExactProblem, effort: Effort, seed: int) -> Chain:
    return problem.chain


def _behaving(**weights: float) -> Maker:
    behaviour = replace(ON_POLICY, **weights)
    return trained(lambda plan: replace(plan, warm_start=0.0, behaviour=behaviour))


def guided(guidance: Guidance) -> Maker:
    """A chain guided without training."""

    def make(problem: ExactProblem, effort: Effort, seed: int) -> Sampler:
        return target_of(problem).guided(guidance).chain

    return make


def _pseudoinverse(problem: ExactProblem, effort: Effort, seed: int) -> Sampler:
    if problem.likelihood is None:
        raise InputError(f"pigdm needs a Gaussian likelihood, which {problem.name} has not")
    return target_of(problem).guided(PiGDM(problem.likelihood)).chain


def populated(
    population: Callable[[int, Chain, ExactProblem], Population], calls_per_step: int = 1
) -> Maker:
    """A population of as many particles as the budget of network calls allows."""

    def make(problem: ExactProblem, effort: Effort, seed: int) -> Sampler:
        calls = DEFAULT_CALLS if effort.network_calls is None else effort.network_calls
        per_path = problem.chain.steps * calls_per_step
        particles = max(2, round(calls / (DRAWS * per_path)))
        return Systems(population(particles, problem.chain, problem), problem.chain)

    return make


def _twisted_diffusion(particles: int, chain: Chain, problem: ExactProblem) -> Population:
    reward = target_of(problem).log_reward
    return TDS(particles, DPS(0.5).kernel(chain, reward))


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
        "rtb_gaussian": Method(
            "RTB on its own paths, one Gaussian per step (targets of one mode)",
            trained(lambda plan: replace(plan, warm_start=0.0, behaviour=ON_POLICY), GAUSSIAN),
        ),
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
        "reinforce": Method("KL-regularised REINFORCE, on-policy", by_itself(Reinforce())),
        "ppo_kl": Method(
            "PPO's clipped ratio with KL in the cost", by_itself(DDPO(0.2, kl=True, updates=2))
        ),
        "ddpo": Method(
            "DDPO: the reward alone, with PPO's clipped ratio",
            by_itself(DDPO(0.2, updates=2)),
            consistent=False,
        ),
        "dpok": Method(
            "DPOK: reward and each step's KL at the visited states",
            by_itself(DPOK()),
            consistent=False,
        ),
    }


def _end_methods() -> dict[str, Method]:
    return {
        "cep": Method("CEP: guidance by a learned log h", by_itself(CEP(), ValueGuided())),
        "cep_paper": Method(
            "CEP with the paper's self-normalised labels, K = 16",
            by_itself(CEP("self_normalised", contrast=16), ValueGuided()),
            False,
        ),
        "reward_weighted": Method(
            "reward-weighted likelihood of noised ends (RWR, RAML)",
            by_itself(RewardWeighted(), PERCEPTRON),
        ),
        "rgdm_paper": Method(
            "RGDM, paper-like: a pay-off at the noisy state within a radius",
            by_itself(RGDM("reward"), SHIFTED),
            False,
        ),
        "rgdm": Method(
            "RGDM, consistent: landings weighted by a learned log h",
            by_itself(RGDM("value"), PERCEPTRON),
        ),
        "advantage_weighted": Method(
            "advantage-weighted matching of own paths",
            by_itself(AdvantageWeighted(states="chain")),
            False,
        ),
    }


def _pathwise_methods() -> dict[str, Method]:
    return {
        "kl_control": Method("KL control by back-propagation (CTRL)", by_itself(KLControl())),
        "align_prop": Method(
            "AlignProp: the reward alone, randomly truncated",
            by_itself(AlignProp(), SHIFTED),
            False,
        ),
        "draft": Method(
            "DRaFT-1: the reward alone, the last step's gradient",
            by_itself(DRaFT(1), SHIFTED),
            False,
        ),
        "adjoint_matching": Method(
            "adjoint matching, the prior's variance", by_itself(AdjointMatching(), SHIFTED)
        ),
    }


def _training_free_methods() -> dict[str, Method]:
    return {
        "dps": Method("DPS: the reward's slope at the clean prediction", guided(DPS()), False),
        "lgdmc": Method("LGD-MC: 16 draws around the clean prediction", guided(LGDMC(16)), False),
        "pigdm": Method(
            "ΠGDM: pseudoinverse guidance (Gaussian likelihoods)", _pseudoinverse, False
        ),
        "importance": Method("no training: prior paths and importance weights", _prior_alone),
        "importance_resampling": Method(
            "one of K prior paths, by weight", populated(lambda k, c, p: ImportanceResampling(k))
        ),
        "best_of_n": Method(
            "the best of K prior paths", populated(lambda k, c, p: BestOfN(k)), False
        ),
        "fk_steering": Method(
            "FK steering: K particles twisted by rewards of clean predictions",
            populated(lambda k, c, p: FKSteering(k)),
        ),
        "tds": Method(
            "TDS: the same around DPS's drift", populated(_twisted_diffusion, calls_per_step=2)
        ),
        "svdd": Method(
            "SVDD: one of K candidates per step, by value", populated(lambda k, c, p: SVDD(k))
        ),
        "svdd_argmax": Method(
            "SVDD as published: the best candidate per step",
            populated(lambda k, c, p: SVDD(k, argmax=True)),
            False,
        ),
    }


def methods() -> dict[str, Method]:
    """Every method of the bench by name; ablations of the recipe last."""
    trained = _trained_methods() | _end_methods() | _pathwise_methods()
    return trained | _training_free_methods() | _ablations()


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
                try:
                    for seed in self.seeds:
                        yield bench_row(problem, method, seed, self.effort)
                except DifftiltError as error:
                    # It needs a gradient of the reward or a Gaussian likelihood, or it diverged.
                    print(f"{name} {method}: no row: {error}", file=sys.stderr, flush=True)


def bench_row(problem: ExactProblem, method: str, seed: int, effort: Effort) -> dict[str, Any]:
    """Make one sampler and judge it."""
    calls = problem.chain.calls
    calls.prior = calls.posterior = 0
    counted, rewards = _counted(problem)
    start = time.perf_counter()
    sampler = methods()[method].make(counted, effort, seed)
    seconds = time.perf_counter() - start
    spent, asked = calls.total, rewards[0]
    figures = _judged(problem, sampler, seed).to_dict()
    if isinstance(sampler, Systems):
        spent = sampler.population.size * problem.chain.steps * DRAWS
    return {
        "problem": problem.name,
        "method": method,
        "seed": seed,
        **figures,
        "network_calls": spent,
        "reward_calls": asked,
        "seconds": seconds,
    }


def _judged(problem: ExactProblem, sampler: Sampler, seed: int) -> Judgement:
    tokens = isinstance(problem, TokenProblem)
    if isinstance(sampler, Systems):
        population, chain = sampler.population, sampler.chain
        if tokens:
            return judge_token_population(problem, population, chain, seed)
        return judge_population(problem, population, chain, seed, SYSTEMS_JUDGED)
    return judge_tokens(problem, sampler, seed) if tokens else judge(problem, sampler, seed)


def _counted(problem: ExactProblem) -> tuple[ExactProblem, list[int]]:
    """The problem with a reward that counts the states it is asked about."""
    asked = [0]

    def log_reward(x_0: torch.Tensor) -> torch.Tensor:
        asked[0] += len(x_0)
        return problem.log_reward(x_0)

    return replace(problem, log_reward=log_reward), asked
