"""What may be wanted of a piece of furniture, by name, and how a sampler is judged by it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.rewards.contract import LogReward
from difftilt.rewards.wrappers import ClassifierReward
from difftilt.tasks.shapes.furniture import SHAPE_CLASSES, ShapeClass
from difftilt.tasks.shapes.judges import judged, load_judge
from difftilt.tasks.shapes.rewards import SEEN, wanted_shape


@dataclass(frozen=True)
class ShapeTarget:
    """What is wanted of a shape.

    Arguments:
        reward: makes the log-reward, bounded by 0.
        hits: which clouds are as wanted, (B,) of 0 and 1, by a judge that no training sees.
        summary: one line.
    """

    reward: Callable[[], LogReward]
    hits: Callable[[Tensor], Tensor]
    summary: str


def _classes(*names: ShapeClass) -> ShapeTarget:
    """One class, or several whose probabilities are added."""
    labels = tuple(SHAPE_CLASSES.index(name) for name in names)

    def hits(clouds: Float[Tensor, "B P 3"]) -> Float[Tensor, " B"]:
        found = judged(load_judge("heldout"), clouds).argmax(1)
        return torch.isin(found, torch.tensor(labels)).double()

    def reward() -> LogReward:
        return ClassifierReward(load_judge("reward"), labels)

    return ShapeTarget(reward, hits, "by the held-out classifier: " + " or ".join(names))


def _statistic(statistic: str, wanted: float, width: float) -> ShapeTarget:
    def hits(clouds: Float[Tensor, "B P 3"]) -> Float[Tensor, " B"]:
        return ((SEEN[statistic](clouds) - wanted).abs() < 2 * width).double()

    return ShapeTarget(
        lambda: wanted_shape(statistic, wanted, width),
        hits,
        f"{statistic} within {2 * width:g} of {wanted:g}",
    )


def shape_targets() -> dict[str, ShapeTarget]:
    """Classes, a union of two, and statistics, by name."""
    return {name: _classes(name) for name in SHAPE_CLASSES} | {
        "seat": _classes("chair", "sofa"),
        "flat": _statistic("flatness", 0.7, 0.08),
        "slender": _statistic("volume", 24.0, 2.5),
        "symmetric": _statistic("symmetry", 0.09, 0.012),
    }


def shape_target(name: str) -> ShapeTarget:
    """A target by its name.

    Raises:
        InputError: there is none of that name.
    """
    known = shape_targets()
    if name not in known:
        raise InputError(f"unknown target {name!r}; choose one of {', '.join(known)}")
    return known[name]
