"""The paper's vision table on the shipped image prior: methods beside rejection truth.

Truth is rejection: prior samples accepted with probability ``r^β``. Diversity and the Fréchet
distance are in the features of the held-out classifier, which no training has seen.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from difftilt.chains import Chain
from difftilt.diagnostics.evidence import effective_sample_size, log_evidence
from difftilt.errors import InputError
from difftilt.loading import load
from difftilt.posteriors import Posterior, Target
from difftilt.recipes.cells import Cell, Cells, cells_of
from difftilt.recipes.image_methods import image_methods, setting_of
from difftilt.rewards import ClassifierReward, LogReward
from difftilt.sampling import Samples
from difftilt.tasks.images import (
    FASHION_CLASSES,
    Style,
    StyleReward,
    diversity,
    fashion_prior_folder,
    features,
    frechet_distance,
    load_classifier,
)

STEPS = 20
TRUTH_DRAWS = 4096
CHUNK = 1024


@dataclass(frozen=True)
class ImageTarget:
    """What is wanted of an image.

    Arguments:
        reward: makes the log-reward, bounded by 0.
        summary: one line.
    """

    reward: Callable[[], LogReward]
    summary: str


def _garments(summary: str, *labels: int) -> ImageTarget:
    """One class, or several whose probabilities are added."""
    return ImageTarget(lambda: ClassifierReward(load_classifier("reward"), labels), summary)


def _style(summary: str, style: Style, wanted: float, width: float) -> ImageTarget:
    return ImageTarget(lambda: StyleReward(style, wanted, width), summary)


def image_targets() -> dict[str, ImageTarget]:
    """The vision table's targets by name: classes, unions of them, and styles."""
    single = {
        name.replace(" ", "_").lower(): _garments(f"one class: {name}", i)
        for i, name in enumerate(FASHION_CLASSES)
    }
    return single | {
        "footwear": _garments("a union: sandal, sneaker or ankle boot", 5, 7, 9),
        "even": _garments("the classes of even number", 0, 2, 4, 6, 8),
        "odd": _garments("the classes of odd number", 1, 3, 5, 7, 9),
        "bright": _style("a style: much ink", "ink", 0.5, 0.05),
        "faint": _style("a style: little ink", "ink", 0.12, 0.03),
        "top_heavy": _style("a style: more ink above than below", "contrast", 0.08, 0.04),
    }


@dataclass(frozen=True)
class ImageBench:
    """What the vision table runs.

    Arguments:
        targets: by name.
        methods: by name.
        seeds: of the trainings.
        calls: network calls of each training.
        samples: drawn of each sampler.

    Raises:
        InputError: an unknown target or method.
    """

    targets: list[str]
    methods: list[str]
    seeds: list[int]
    calls: int
    samples: int

    def __post_init__(self) -> None:
        for chosen, known, what in (
            (self.targets, image_targets(), "target"),
            (self.methods, image_methods(), "method"),
        ):
            for name in chosen:
                if name not in known:
                    raise InputError(f"unknown {what} {name!r}; choose one of {', '.join(known)}")

    def cells(self) -> Cells:
        """One per target, method and seed."""
        names = cells_of(problem=self.targets, method=self.methods, seed=self.seeds)
        return Cells(names, {"calls": self.calls, "samples": self.samples}, self._rows_of)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per target, method and seed."""
        return self.cells().rows()

    def _rows_of(self, cell: Cell) -> list[dict[str, Any]]:
        """A row made in a process of its own, which is what its peak memory is measured of."""
        truth = truth_of(cell["problem"])
        run = ImageRun(cell["problem"], cell["method"], cell["seed"], self.calls, self.samples)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return [pool.apply(image_row, (run, truth))]


@dataclass(frozen=True)
class ImageRun:
    """One cell of the vision table; as of ``ImageBench``."""

    target: str
    method: str
    seed: int
    calls: int
    samples: int


def image_row(run: ImageRun, truth: "ImageTruth") -> dict[str, Any]:
    """Make one sampler of one target and measure it."""
    target = build_target(run.target)
    before = _peak()
    start = time.perf_counter()
    sampler = image_methods()[run.method](setting_of(target, run.calls, run.seed))
    trained, spent = time.perf_counter() - start, target.prior.chain.calls.total
    made = Posterior(target, sampler) if isinstance(sampler, Chain) else sampler
    drawn = made.draw(run.samples, run.seed + 1)
    seconds, peak = time.perf_counter() - start, _peak() - before
    return {
        "problem": run.target,
        "method": run.method,
        "seed": run.seed,
        **_figures(drawn, truth),
        "network_calls": spent,
        "training_seconds": trained,
        "seconds": seconds,
        "peak_mb": peak,
    }


def build_target(name: str) -> Target:
    """The shipped prior tilted towards some garments or a style."""
    return load(fashion_prior_folder(), STEPS).tilt(image_targets()[name].reward())


@dataclass(frozen=True)
class ImageTruth:
    """Rejection truth of a target.

    Arguments:
        members: accepted prior samples.
        log_z: of all of them, nats.
        standard_error: of ``log_z``.
    """

    members: Tensor
    log_z: float
    standard_error: float


@cache
def prior_draws(draws: int = TRUTH_DRAWS) -> Tensor:
    """Samples of the shipped prior, drawn once for all targets."""
    return load(fashion_prior_folder(), STEPS).sample(draws, seed=90_001)


@cache
def truth_of(name: str, draws: int = TRUTH_DRAWS) -> ImageTruth:
    """Prior samples accepted with probability r; the same ones for every method and seed."""
    target, x_0 = build_target(name), prior_draws(draws)
    log_r = torch.cat([target.score(part) for part in x_0.split(CHUNK)])
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(90_002))
    r = log_r.double().exp()
    error = float(r.std() / r.mean()) / draws**0.5
    return ImageTruth(x_0[uniform.log() < log_r], float(r.mean().log()), error)


def _figures(drawn: Samples, truth: ImageTruth) -> dict[str, float | None]:
    assert drawn.log_r is not None
    log_w = drawn.log_w
    judge = load_classifier("heldout")
    seen, exact = features(judge, drawn.x_0), features(judge, truth.members)
    return {
        "log_r": float(drawn.log_r.mean()),
        "frechet": frechet_distance(seen, exact),
        "diversity": diversity(seen) / diversity(exact),
        "log_z_error": None if log_w is None else log_evidence(log_w).value - truth.log_z,
        "ess": None if log_w is None else effective_sample_size(log_w),
    }


def _peak() -> float:
    """Largest resident memory of this process so far, MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
