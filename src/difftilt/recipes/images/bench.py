"""The paper's vision table on the shipped image prior: methods beside rejection truth.

Truth is rejection: prior samples accepted with probability ``r^β``. Diversity and the Fréchet
distance are in the features of the held-out classifier, which no training has seen; its opinion
says which samples are of the wanted garments, and how diverse those are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, final

import torch
from torch import Tensor

from difftilt.diagnostics.features import diversity, frechet_distance
from difftilt.loading import load
from difftilt.posteriors import Target
from difftilt.recipes.images.methods import image_methods, setting_of
from difftilt.recipes.tables.processes import in_own_process
from difftilt.recipes.tables.rejection import (
    CHUNK,
    RejectionBench,
    Row,
    Run,
    Truth,
    measured_row,
    truth_among,
)
from difftilt.rewards.contract import LogReward
from difftilt.rewards.wrappers import ClassifierReward
from difftilt.sampling.draws import Samples
from difftilt.tasks.images import (
    FASHION_CLASSES,
    GarmentClassifier,
    Style,
    StyleReward,
    fashion_prior_folder,
    features,
    load_classifier,
)

STEPS = 20
TRUTH_DRAWS = 4096
TRUTH_SEED = 90_002


@dataclass(frozen=True)
class ImageTarget:
    """What is wanted of an image.

    Arguments:
        reward: makes the log-reward, bounded by 0.
        summary: one line.
        classes: the garments that are wanted; none for a style.
    """

    reward: Callable[[], LogReward]
    summary: str
    classes: tuple[int, ...] = ()


def _garments(summary: str, *labels: int) -> ImageTarget:
    """One class, or several whose probabilities are added."""
    return ImageTarget(lambda: ClassifierReward(load_classifier("reward"), labels), summary, labels)


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


@final
class ImageBench(RejectionBench):
    """The vision table."""

    def known(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return image_targets(), image_methods()

    def row(self, run: Run) -> Row:
        """In a process of its own, which is what the row's peak memory is measured of."""
        return in_own_process(image_row, run, truth_of(run.target))


ImageRun, ImageTruth = Run, Truth


def image_row(run: Run, truth: Truth) -> Row:
    """Make one sampler of one target and measure it."""
    setting = setting_of(build_target(run.target), run.calls, run.seed)
    return measured_row(
        run, image_methods()[run.method], setting, truth, partial(_figures, run.target)
    )


def build_target(name: str) -> Target:
    """The shipped prior tilted towards some garments or a style."""
    return load(fashion_prior_folder(), STEPS).tilt(image_targets()[name].reward())


@cache
def prior_draws(draws: int = TRUTH_DRAWS) -> Tensor:
    """Samples of the shipped prior, drawn once for all targets."""
    return load(fashion_prior_folder(), STEPS).sample(draws, seed=90_001)


@cache
def truth_of(name: str, draws: int = TRUTH_DRAWS) -> Truth:
    """Prior samples accepted with probability r; the same ones for every method and seed."""
    return truth_among(build_target(name), prior_draws(draws), TRUTH_SEED)


def _figures(target: str, drawn: Samples, truth: Truth) -> Row:
    judge, classes = load_classifier("heldout"), image_targets()[target].classes
    seen, exact = features(judge, drawn.x_0), features(judge, truth.members)
    found: Row = {
        "frechet": frechet_distance(seen, exact),
        "diversity": diversity(seen) / diversity(exact),
    }
    if classes:
        of_it = [_of_classes(judge, x, classes) for x in (drawn.x_0, truth.members)]
        found["share"] = float(of_it[0].double().mean())
        spread = diversity(seen[of_it[0]]) / diversity(exact[of_it[1]])
        found["diversity_of_it"] = spread if math.isfinite(spread) else None
    return found


@torch.no_grad()
def _of_classes(judge: GarmentClassifier, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Which images the judge finds to be of one of the classes."""
    said = torch.cat([judge(part).argmax(1) for part in x.split(CHUNK)])
    return torch.isin(said, torch.tensor(classes))
