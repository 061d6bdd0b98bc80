"""The text-to-image table: methods beside rejection truth on prompts that the prior never saw.

Truth is rejection: pictures of the prior, of each prompt, kept with probability ``r^β``. All
figures are of one prompt at a time, averaged (``tasks.picture_figures``). Several β make a front of
reward and diversity of each method that aims at a posterior.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from difftilt.chains.chain import Chain
from difftilt.diagnostics.evidence import effective_sample_size
from difftilt.errors import InputError
from difftilt.recipes.tables.cells import Cell, Cells, cells_of
from difftilt.recipes.tables.processes import in_own_process
from difftilt.recipes.text_to_image.methods import picture_methods, picture_setting
from difftilt.recipes.text_to_image.task import (
    BETA,
    GUIDANCE,
    STEPS,
    Judging,
    default_prompts,
    picture_task,
)
from difftilt.sampling.draws import Samples
from difftilt.tasks.picture_figures import PromptPictures, picture_figures

TRUTH_DRAWS = 10_000


@dataclass(frozen=True)
class PictureBench:
    """What the text-to-image table runs.

    Arguments:
        methods: by name.
        seeds: of the trainings.
        calls: network calls of each training.
        samples: pictures drawn of each prompt.
        prompts: how many of the held-out prompts.
        truth_draws: pictures of the prior, of all prompts together, that make the truth.
        betas: β of the targets.

    Raises:
        InputError: an unknown method, fewer than two pictures, or a β that is not positive.
    """

    methods: list[str]
    seeds: list[int]
    calls: int
    samples: int = 64
    prompts: int = 8
    truth_draws: int = TRUTH_DRAWS
    betas: Sequence[float] = (BETA,)

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in picture_methods():
                known = ", ".join(picture_methods())
                raise InputError(f"unknown method {name!r}; choose one of {known}")
        if self.samples < 2 or self.prompts < 1:
            raise InputError(
                f"the table needs at least 2 samples of at least 1 prompt, got "
                f"samples={self.samples}, prompts={self.prompts}"
            )
        if not self.betas or min(self.betas) <= 0:
            raise InputError(f"the table needs beta > 0, got {list(self.betas)}")

    def cells(self) -> Cells:
        """One per β, method and seed."""
        names = cells_of(beta=list(self.betas), method=self.methods, seed=self.seeds)
        settings = {
            "calls": self.calls,
            "samples": self.samples,
            "prompts": self.prompts,
            "truth_draws": self.truth_draws,
        }
        return Cells(names, settings, self._rows_of)

    def _rows_of(self, cell: Cell) -> list[dict[str, Any]]:
        """A row made in a process of its own, which is what its peak memory is measured of."""
        beta = cell["beta"]
        truth = picture_truth(self.prompts, self.truth_draws, beta)
        full = picture_figures(picture_truth(self.prompts, self.truth_draws))["diversity"]
        run = PictureRun(cell["method"], cell["seed"], self.calls, self.samples, self.prompts, beta)
        row = in_own_process(picture_row, run, truth)
        problem = f"held_out_prompts_beta{beta:g}"
        return [{"problem": problem, **cell, **row, "diversity": row["diversity"] / full}]


@dataclass(frozen=True)
class PictureRun:
    """One cell of the table; as of ``PictureBench``."""

    method: str
    seed: int
    calls: int
    samples: int
    prompts: int
    beta: float = BETA


def bench_judging(prompts: int, beta: float = BETA) -> Judging:
    """The table's task and its judge."""
    return Judging(picture_task(default_prompts(prompts), STEPS, GUIDANCE, beta))


@cache
def prior_pictures(prompts: int, draws: int) -> tuple[PromptPictures, ...]:
    """Pictures of the prior of each prompt; the same for every method, seed and β."""
    judging = bench_judging(prompts)
    chain = judging.task.target.prior.chain
    return tuple(judging.judged(judging.drawn(chain, draws // prompts, seed=90_001)))


def picture_truth(
    prompts: int, draws: int = TRUTH_DRAWS, beta: float = BETA
) -> tuple[PromptPictures, ...]:
    """Those that rejection accepts."""
    prior = prior_pictures(prompts, draws)
    return tuple(bench_judging(prompts, beta).truth(prior, seed=90_002))


def picture_row(run: PictureRun, truth: Sequence[PromptPictures]) -> dict[str, Any]:
    """Make one sampler, draw of every prompt, and measure."""
    judging = bench_judging(run.prompts, run.beta)
    draws = run.samples * run.prompts
    start = time.perf_counter()
    setting = picture_setting(judging.task, run.calls, draws, run.seed)
    sampler = picture_methods()[run.method](setting)
    trained, spent = time.perf_counter() - start, judging.task.target.prior.chain.calls.total
    drawn = judging.drawn(sampler, run.samples, run.seed + 1)
    seconds = time.perf_counter() - start
    figures = picture_figures(judging.judged(drawn), truth)
    return {
        **figures,
        "ess": mean_ess(drawn) if isinstance(sampler, Chain) else None,
        "network_calls": spent,
        "training_seconds": trained,
        "seconds": seconds,
    }


def mean_ess(drawn: Sequence[Samples]) -> float | None:
    """Effective sample size as a share of the draws, averaged over prompts."""
    found = [effective_sample_size(s.log_w) for s in drawn if s.log_w is not None]
    return float(torch.tensor(found).mean()) if found else None
