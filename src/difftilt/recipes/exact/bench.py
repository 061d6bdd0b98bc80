"""The exact bench: every method on every problem with a known answer, judged alike."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from difftilt.chains.chain import Chain
from difftilt.errors import DifftiltError, InputError
from difftilt.recipes.exact.methods import methods
from difftilt.recipes.exact.recipe import Effort, build, setting_of
from difftilt.recipes.exact.tokens import judge_token_population, judge_tokens
from difftilt.recipes.tables.cells import Cell, Cells, cells_of
from difftilt.recipes.tables.makers import Sampler
from difftilt.sampling.populations import PopulationSampler
from difftilt.tasks.exact.base import ExactProblem
from difftilt.tasks.exact.judge import DRAWS, Judgement, judge, judge_population
from difftilt.tasks.tokens import TokenProblem

SYSTEMS_JUDGED = 10_000


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

    def cells(self) -> Cells:
        """One per problem, method and seed."""
        names = cells_of(problem=self.problems, method=self.methods, seed=self.seeds)
        settings = {"calls": self.effort.network_calls, "budget": self.effort.seconds}
        return Cells(names, settings, self._rows_of)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per problem, method and seed, as each is done."""
        return self.cells().rows()

    def _rows_of(self, cell: Cell) -> list[dict[str, Any]]:
        name, method = cell["problem"], cell["method"]
        try:
            return [bench_row(_built(name), method, cell["seed"], self.effort)]
        except DifftiltError as error:
            # It needs a gradient of the reward or a Gaussian likelihood, or it diverged.
            print(f"{name} {method}: no row: {error}", file=sys.stderr, flush=True)
            return []


@lru_cache(maxsize=1)
def _built(name: str) -> ExactProblem:
    """A problem, whose truth may take long to work out, for all of its cells."""
    return build(name)


def bench_row(problem: ExactProblem, method: str, seed: int, effort: Effort) -> dict[str, Any]:
    """Make one sampler and judge it."""
    calls = problem.chain.calls
    calls.prior = calls.posterior = 0
    counted, rewards = _counted(problem)
    start = time.perf_counter()
    sampler = methods()[method].make(setting_of(counted, effort, seed))
    seconds = time.perf_counter() - start
    spent, asked = calls.total, rewards[0]
    figures = _judged(problem, sampler, seed).to_dict()
    if isinstance(sampler, PopulationSampler):
        spent += sampler.method.size * problem.chain.steps * DRAWS
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
    if isinstance(sampler, Chain):
        return judge_tokens(problem, sampler, seed) if tokens else judge(problem, sampler, seed)
    population, chain = sampler.method, sampler.chain
    if tokens:
        return judge_token_population(problem, population, chain, seed)
    return judge_population(problem, population, chain, seed, SYSTEMS_JUDGED)


def _counted(problem: ExactProblem) -> tuple[ExactProblem, list[int]]:
    """The problem with a reward that counts the states it is asked about."""
    asked = [0]

    def log_reward(x_0: torch.Tensor) -> torch.Tensor:
        asked[0] += len(x_0)
        return problem.log_reward(x_0)

    return replace(problem, log_reward=log_reward), asked
