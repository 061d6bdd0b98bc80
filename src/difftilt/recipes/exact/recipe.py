"""Problems whose answer is known, and the training recommended for them."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from difftilt.errors import InputError
from difftilt.posteriors import Prior, Target
from difftilt.recipes.base import Drawn, Job, Recipe
from difftilt.recipes.exact.tokens import recommended_tokens, tokens_form, tokens_sources
from difftilt.recipes.form import FormChoice
from difftilt.recipes.tables.makers import Setting, on_own_paths
from difftilt.tasks.exact import problems
from difftilt.tasks.exact.base import ExactProblem
from difftilt.tasks.exact.judge import DRAWS, judge
from difftilt.tasks.exact.toys import TOYS
from difftilt.tasks.tokens import TokenProblem, token_problems
from difftilt.training.plan import RTB, BehaviourWeights, Optimisation, Replaying, Training

FIGURES = {
    "log_z_error": "error of the importance log Z, nats",
    "elbo_gap": "log Z - ELBO, nats",
    "eubo_gap": "EUBO - log Z, nats",
    "ess": "effective sample size, share",
    "k_hat": "Pareto k-hat",
    "mode_tv_raw": "total variation of mode weights",
    "mode_tv_corrected": "the same, with importance weights",
    "moments_z": "mean and covariance with importance weights: largest deviation, standard errors",
    "energy_distance": "energy distance to exact samples",
    "energy_p": "its permutation p-value",
    "c2st": "accuracy of a two-sample classifier",
    "tv": "total variation, exact, where every end can be listed",
}

SUMMARIES = {
    "gmm9of25": "25 Gaussians on a grid tilted to nine of them, re-weighted",
    "linear_gaussian_d": "Gaussian prior, rotated, and a dense Gaussian measurement, in d numbers",
    "linear_gaussian_isotropic_d": "the same, isotropic, single coordinates measured",
    "centred_gaussian_n": "n points without their centre of mass, three distances measured",
    "ring8_alpha": "eight Gaussians on a ring, log r rising around it to alpha",
    "wells_d": "coupled double wells in d coordinates: 2^d modes",
    "rare_corner": "the far tail of one corner mode, which prior draws hardly reach",
    "neural_ring8": "the ring, its prior a trained network",
    "tokens_v": "an untrained transformer, pairwise couplings of its tokens",
    "tokens_parity": "the same with a parity constraint",
    "tokens_trained": "a transformer trained on a random law, pairwise couplings",
    "tokens_table": "a table of one joint law's conditionals, any order",
    "tokens_arbitrary": "a table that belongs to no joint law, the order chosen by the posterior",
    "tokens_arbitrary_uniform": "the same, the order uniform: it has a floor",
}
"""By the longest beginning of a problem's name."""

DEFAULT_CALLS = 5_000_000

PERCEPTRON = FormChoice("perceptron", components=4, width=96)
MANY_DIMENSIONS = 8
VERY_MANY_DIMENSIONS = 33
POOL_FRESH = {"rare_corner": 128}
"""Paths added to the pool per update where calls are counted; 32 for the other problems."""


def recommended(seconds: float | None = 60.0, seed: int = 0) -> Training:
    """The training that served best on problems of a few dimensions (docs/log.md)."""
    return Training(
        steps=1500,
        seconds=seconds,
        batch=512,
        warm_start=0.4,
        chunk=32_768,
        warm_start_subset=10,
        objective=RTB(log_z="batch", residual_clip=4.0),
        optimisation=Optimisation(hidden_learning_rate=0.01, ema=0.99, decay_from=0.4),
        behaviour=BehaviourWeights(on_policy=0.5, pool=0.5),
        seed=seed,
    )


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


def form_of(problem: ExactProblem) -> FormChoice:
    """A mixture in a few dimensions; one Gaussian per step in many.

    Under a Gaussian likelihood the best shift is nearly linear in the state, so it starts there.
    """
    if dimensions(problem) < MANY_DIMENSIONS:
        return PERCEPTRON
    linear = problem.likelihood is not None
    # In very many, sines of each coordinate would be most of the network's inputs.
    frequencies = PERCEPTRON.frequencies if dimensions(problem) < VERY_MANY_DIMENSIONS else 0
    return replace(PERCEPTRON, components=1, linear=linear, frequencies=frequencies)


def plan_of(problem: ExactProblem, effort: Effort, seed: int = 0) -> Training:
    """The training of a problem within a budget.

    A pool of prior paths covers a posterior of a few dimensions; in many hardly any of them has
    weight, and the posterior's own paths lead there instead.
    """
    plan = replace(recommended(effort.seconds, seed), network_calls=effort.network_calls)
    if dimensions(problem) >= VERY_MANY_DIMENSIONS:
        # Chains are long, updates few and noisy.
        optimisation = Optimisation(learning_rate=3e-3, hidden_learning_rate=0.01)
        return on_own_paths(replace(plan, batch=32, optimisation=optimisation))
    if dimensions(problem) >= MANY_DIMENSIONS:
        return on_own_paths(plan)
    if effort.seconds is None:
        # Where calls are counted, rollouts for the pool are what they are spent on; and of the few
        # hundred updates that they buy, more are spent at the full rates.
        fresh = Replaying(pool_fresh=POOL_FRESH.get(problem.name, 32))
        optimisation = replace(plan.optimisation, decay_from=0.6)
        return replace(plan, warm_start=0.6, replaying=fresh, optimisation=optimisation)
    return plan


def setting_of(problem: ExactProblem, effort: Effort, seed: int) -> Setting:
    """What the bench gives every method on a problem."""
    calls = DEFAULT_CALLS if effort.network_calls is None else effort.network_calls
    target = target_of(problem)
    if isinstance(problem, TokenProblem):
        plan = recommended_tokens(problem, effort.seconds, seed)
        plan = replace(plan, network_calls=effort.network_calls)
        sources = tokens_sources(problem)
        return Setting(target, tokens_form(problem), plan, calls, DRAWS, sources=sources)
    plan = plan_of(problem, effort, seed)
    return Setting(target, form_of(problem).build(), plan, calls, DRAWS, problem.likelihood)


def dimensions(problem: ExactProblem) -> int:
    """Numbers in one sample."""
    return math.prod(problem.chain.event_shape)


@dataclass(frozen=True)
class Exact(Recipe):
    """A problem with a known answer (difftilt list problems).

    Arguments:
        problem: its name.
        form: what carries the posterior; "auto": by the number of dimensions.
        own_paths: train on the posterior's own paths alone, from the start; None: in 8 dimensions
            or more.
        training: the plan.
    """

    problem: str = "gmm9of25"
    samples: int = 2048
    certificate_paths: int = 20_000
    form: FormChoice = field(default_factory=FormChoice)
    own_paths: bool | None = None
    training: Training = field(default_factory=recommended)

    def job(self) -> Job:
        found = build(self.problem)
        if isinstance(found, TokenProblem):
            raise InputError(
                f"{self.problem} is a problem of tokens, which this recipe's perceptron cannot "
                f"carry; use: difftilt bench exact --problem {self.problem} --method rtb"
            )
        target, plan = target_of(found), self.training
        form = form_of(found) if self.form.kind == "auto" else self.form
        many = dimensions(found) >= MANY_DIMENSIONS
        if many if self.own_paths is None else self.own_paths:
            plan = on_own_paths(plan)
        return Job(target, target.posterior(form.build()), plan)

    def evaluation(self, job: Job, drawn: Drawn) -> dict[str, Any]:
        figures = judge(build(self.problem), job.posterior.chain).to_dict()
        blank = {"prior": None, "corrected": None, "truth": None, "note": ""}
        rows = [{**blank, "name": FIGURES[k], "posterior": v} for k, v in figures.items()]
        return {"title": f"Against the exact answer of {self.problem}", "rows": rows, "notes": []}


def build(name: str) -> ExactProblem:
    """An exact problem by name.

    Raises:
        InputError: unknown name.
    """
    check_name(name)
    return {**problems(), **token_problems()}[name]()


def problem_names() -> list[str]:
    """Every problem with a known answer: of numbers, then of tokens."""
    return [*problems(), *token_problems()]


def problem_summaries() -> dict[str, str]:
    """One line for each problem, without building it."""
    known = SUMMARIES | {name: make().summary for name, make in TOYS.items()}
    families = sorted(known, key=len, reverse=True)
    return {name: known[next(filter(name.startswith, families))] for name in problem_names()}


def check_name(name: str) -> None:
    """Whether there is such a problem.

    Raises:
        InputError: there is none.
    """
    known = problem_names()
    if name not in known:
        raise InputError(f"unknown problem {name!r}; choose one of {', '.join(known)}")


def target_of(problem: ExactProblem) -> Target:
    """The target of a problem, without its truth."""
    prior = Prior(problem.chain, source=f"exact problem {problem.name}")
    return prior.tilt(problem.log_reward, 1.0, problem.log_bound)
