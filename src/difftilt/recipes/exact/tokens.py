"""Token problems with a known answer: the training recommended for them, and their judge."""

from dataclasses import fields, replace
from statistics import fmean

import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.forms import Form, FullCopy, Perceptron
from difftilt.posteriors import Sources
from difftilt.smc.population import Population
from difftilt.tasks.exact.base import Truth
from difftilt.tasks.exact.judge import Judgement, judge, judge_population
from difftilt.tasks.tokens.laws import exact_law, total_variation
from difftilt.tasks.tokens.networks import TabularNetwork
from difftilt.tasks.tokens.problems import TokenProblem
from difftilt.training.plan import RTB, BehaviourWeights, Optimisation, Training

DRAWS = 10_000
SYSTEMS = 2_000


def recommended_tokens(
    problem: TokenProblem, seconds: float | None = 60.0, seed: int = 0
) -> Training:
    """The training that served best on problems of a few tokens (docs/log.md)."""
    tabular = any(isinstance(m, TabularNetwork) for m in problem.chain.denoiser.modules())
    rates = Optimisation(0.03) if tabular else Optimisation(5e-3, 0.02)
    return Training(
        steps=1500,
        seconds=seconds,
        batch=512,
        warm_start=0.0,
        paths_per_condition=512 // (4 * len(problem.conditions)),
        chunk=32_768,
        objective=RTB(residual_clip=4.0),
        optimisation=replace(rates, decay_from=0.3),
        behaviour=BehaviourWeights(on_policy=0.75, pool=0.0, prior=0.25),
        seed=seed,
    )


def tokens_form(problem: TokenProblem, wanted: Form | None = None) -> Form:
    """A copy of the prior's network, which chooses the positions too where the chain lets it.

    Arguments:
        problem: the problem.
        wanted: what carries the posterior on vectors; a perceptron becomes the copy.
    """
    if wanted is None or isinstance(wanted, Perceptron):
        return FullCopy(learned_order=problem.learned_order)
    return wanted


def tokens_sources(problem: TokenProblem) -> Sources:
    """The problem's canvases in equal shares."""

    def drawn(count: int, generator: torch.Generator) -> Tensor:
        start = int(torch.randint(len(problem.conditions), (), generator=generator))
        return problem.conditions[(start + torch.arange(count)) % len(problem.conditions)]

    return Sources(conditions=drawn)


def judge_tokens(problem: TokenProblem, chain: Chain, seed: int = 0) -> Judgement:
    """Figures averaged over the canvases; the total variation is exact, by summation.

    Arguments:
        problem: with its truth.
        chain: the sampler.
        seed: of the judging draws, 10,000 per canvas.
    """
    each = []
    for alone in single(problem):
        # The judge draws a tenth at a time.
        rows = alone.conditions.expand(DRAWS // 10, -1, -1)
        each.append(judge(alone, chain.given(rows), seed, DRAWS))
    distance = total_variation(exact_law(chain, problem.conditions), problem.law)
    return replace(averaged(each), tv=float(distance.mean()))


def judge_token_population(
    problem: TokenProblem, population: Population, chain: Chain, seed: int = 0
) -> Judgement:
    """The figures of a population, averaged over the canvases; its law cannot be summed.

    Arguments:
        problem: with its truth.
        population: the method.
        chain: what moves its particles.
        seed: of the judging draws, 2,000 systems per canvas.
    """
    each = [
        judge_population(alone, population, chain.given(alone.conditions), seed, SYSTEMS)
        for alone in single(problem)
    ]
    return averaged(each)


def single(problem: TokenProblem) -> list[TokenProblem]:
    """The problem of each canvas alone."""
    return [
        replace(
            problem,
            truth=Truth(float(problem.log_z[i])),
            conditions=problem.conditions[i : i + 1],
            law=problem.law[i : i + 1],
            log_z=problem.log_z[i : i + 1],
        )
        for i in range(len(problem.conditions))
    ]


def averaged(each: list[Judgement]) -> Judgement:
    """Means over the canvases: of absolute errors of log Z; of k-hat the largest."""
    found: dict[str, float | None] = {}
    for name in (f.name for f in fields(Judgement)):
        values = [getattr(judgement, name) for judgement in each]
        known = [v for v in values if v is not None]
        if len(known) < len(values):
            found[name] = None
        elif name == "log_z_error":
            found[name] = fmean(map(abs, known))
        else:
            found[name] = max(known) if name == "k_hat" else fmean(known)
    return Judgement(**found)
