"""Problems whose answer is known: the recommended recipe, its ablations, and the bench's rows."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from difftilt.errors import InputError
from difftilt.posteriors import Posterior, Prior
from difftilt.recipes.base import Drawn, Job, Recipe
from difftilt.recipes.form import FormChoice
from difftilt.tasks.exact import problems
from difftilt.tasks.exact.base import ExactProblem
from difftilt.tasks.exact.judge import judge
from difftilt.training.loop import train
from difftilt.training.plan import RTB, BehaviourWeights, Optimisation, Training

FIGURES = {
    "log_z_error": "error of the importance log Z, nats",
    "elbo_gap": "log Z - ELBO, nats",
    "eubo_gap": "EUBO - log Z, nats",
    "ess": "effective sample size, share",
    "k_hat": "Pareto k-hat",
    "mode_tv_raw": "total variation of mode weights",
    "mode_tv_corrected": "the same, with importance weights",
    "energy_distance": "energy distance to exact samples",
    "energy_p": "its permutation p-value",
    "c2st": "accuracy of a two-sample classifier",
}

PERCEPTRON = FormChoice("perceptron", components=4, width=96)


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
        optimisation=Optimisation(hidden_learning_rate=0.01),
        behaviour=BehaviourWeights(on_policy=0.5, pool=0.5),
        seed=seed,
    )


@dataclass(frozen=True)
class Exact(Recipe):
    """A problem with a known answer (difftilt list problems).

    Arguments:
        problem: its name.
        form: what carries the posterior.
        training: the plan.
    """

    problem: str = "gmm9of25"
    samples: int = 2048
    certificate_paths: int = 20_000
    form: FormChoice = field(default_factory=lambda: PERCEPTRON)
    training: Training = field(default_factory=recommended)

    def job(self) -> Job:
        found = build(self.problem)
        target = _prior(found).tilt(found.log_reward, 1.0, found.log_bound)
        return Job(target, target.posterior(self.form.build()), self.training)

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
    known = problems()
    if name not in known:
        raise InputError(f"unknown problem {name!r}; choose one of {', '.join(known)}")
    return known[name]()


def _prior(problem: ExactProblem) -> Prior:
    return Prior(problem.chain, source=f"exact problem {problem.name}")


@dataclass(frozen=True)
class Method:
    """A way to make a sampler of a problem, by name.

    Arguments:
        summary: one line.
        train: ``(problem, seconds, seed) -> posterior chain's owner``.
    """

    summary: str
    train: Callable[[ExactProblem, float, int], Posterior]


def _trained(
    form: FormChoice, change: Callable[[Training], Training]
) -> Callable[[ExactProblem, float, int], Posterior]:
    def run(problem: ExactProblem, seconds: float, seed: int) -> Posterior:
        torch.manual_seed(seed)
        target = _prior(problem).tilt(problem.log_reward, 1.0, problem.log_bound)
        posterior = target.posterior(form.build())
        state = target.state(posterior, change(recommended(seconds, seed)))
        for _ in train(state, None):
            pass
        state.use_average()
        return posterior

    return run


def _prior_alone(problem: ExactProblem, seconds: float, seed: int) -> Posterior:
    target = _prior(problem).tilt(problem.log_reward, 1.0, problem.log_bound)
    return Posterior(target, problem.chain)


def _behaving(**weights: float) -> Callable[[Training], Training]:
    none = BehaviourWeights(on_policy=1.0, pool=0.0)
    return lambda plan: replace(plan, warm_start=0.0, behaviour=replace(none, **weights))


def methods() -> dict[str, Method]:
    """Every method of the bench, by name: the recipe, and the recipe with one part taken away."""
    keep = lambda plan: plan  # noqa: E731
    single = replace(PERCEPTRON, components=1)
    return {
        "rtb": Method(
            "RTB: mixture kernel K = 4, pooled warm start, Muon", _trained(PERCEPTRON, keep)
        ),
        "rtb_learned_variance": Method(
            "the same with one Gaussian, its variance learned", _trained(single, keep)
        ),
        "rtb_prior_variance": Method(
            "the same with one Gaussian of the prior's variance",
            _trained(replace(single, learned_variance=False), keep),
        ),
        "rtb_no_warm_start": Method(
            "the recipe without the weighted-likelihood warm start",
            _trained(PERCEPTRON, lambda plan: replace(plan, warm_start=0.0)),
        ),
        "rtb_no_pool": Method(
            "warm start, then on-policy paths alone",
            _trained(PERCEPTRON, lambda p: replace(p, behaviour=BehaviourWeights(1.0, pool=0.0))),
        ),
        "rtb_prior_paths": Method(
            "no warm start; half of the paths are the prior's",
            _trained(PERCEPTRON, _behaving(on_policy=0.5, prior=0.5)),
        ),
        "rtb_on_policy": Method(
            "on-policy paths alone, no warm start", _trained(PERCEPTRON, _behaving())
        ),
        "rtb_adam": Method(
            "the recipe with Adam for every parameter",
            _trained(PERCEPTRON, lambda p: replace(p, optimisation=Optimisation())),
        ),
        "rtb_learned_log_z": Method(
            "the recipe with a learned log Z",
            _trained(PERCEPTRON, lambda p: replace(p, objective=RTB("learned", 4.0))),
        ),
        "weighted_likelihood": Method(
            "the warm start's objective for the whole time",
            _trained(PERCEPTRON, lambda plan: replace(plan, warm_start=1.0)),
        ),
        "importance": Method("no training: prior paths and importance weights", _prior_alone),
    }


def bench_rows(
    names: list[str], chosen: list[str], seeds: list[int], budget: float
) -> Iterator[dict[str, Any]]:
    """One row per problem, method and seed, as each is done.

    Raises:
        InputError: unknown problem or method.
    """
    known = methods()
    for method in chosen:
        if method not in known:
            raise InputError(f"unknown method {method!r}; choose one of {', '.join(known)}")
    for name in names:
        problem = build(name)
        for method in chosen:
            for seed in seeds:
                yield bench_row(problem, method, seed, budget)


def bench_row(problem: ExactProblem, method: str, seed: int, budget: float) -> dict[str, Any]:
    """Train one sampler and judge it."""
    calls = problem.chain.calls
    calls.prior = calls.posterior = 0
    start = time.perf_counter()
    posterior = methods()[method].train(problem, budget, seed)
    seconds = time.perf_counter() - start
    network_calls = calls.total
    reward_calls = getattr(posterior.target.log_reward, "calls", 0)
    figures = judge(problem, posterior.chain, seed).to_dict()
    return {
        "problem": problem.name,
        "method": method,
        "seed": seed,
        **figures,
        "network_calls": network_calls,
        "reward_calls": reward_calls,
        "seconds": seconds,
    }
