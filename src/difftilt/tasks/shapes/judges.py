"""The shipped prior of furniture, and two classifiers of point clouds that judge its samples.

Clouds are (B, P, 3), as ``difftilt.tasks.shapes.furniture`` makes them; logits are (B, 5) in the
order of ``SHAPE_CLASSES``, divided by a temperature fitted on clouds that no classifier saw.

* ``reward`` is the one a posterior may be trained on;
* ``heldout`` only judges: another network, trained on other shapes. Its features measure diversity
  and the distance to the truth.

All weights are made by ``scripts/train_shape_models.py``.
"""

from pathlib import Path
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difftilt.errors import InputError
from difftilt.tasks.shapes.furniture import SHAPE_CLASSES
from difftilt.tasks.shipped import filled, shipped_folder

JudgeName = Literal["reward", "heldout"]
JUDGE_WIDTHS: dict[str, tuple[int, ...]] = {
    "reward": (48, 96, 192),
    "heldout": (32, 64, 128, 256),
}
CHUNK = 256


@final
class PointNet(nn.Module):
    """A classifier of clouds: a perceptron of each point, pooled over the points.

    Arguments:
        widths: of the perceptron's layers.

    Source: Qi et al. 2017, PointNet (arXiv 1612.00593), without its transformation networks.
    """

    temperature: Tensor

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.points = nn.Sequential(*layers)
        pooled = 2 * widths[-1]
        self.body = nn.Sequential(nn.Linear(pooled, widths[-1] // 2), nn.SiLU())
        self.head = nn.Linear(widths[-1] // 2, len(SHAPE_CLASSES))
        self.register_buffer("temperature", torch.ones(()))

    def features(self, clouds: Float[Tensor, "B P 3"]) -> Float[Tensor, "B F"]:
        """Penultimate activations; the same for every order of the points."""
        seen = self.points(clouds)
        return self.body(torch.cat([seen.mean(1), seen.amax(1)], 1))

    def forward(self, clouds: Float[Tensor, "B P 3"]) -> Float[Tensor, "B 5"]:
        """Logits of the classes."""
        return self.head(self.features(clouds)) / self.temperature


def shape_prior_folder() -> Path:
    """The shipped prior of furniture, (P, 3) clouds of P = 256 points."""
    return shipped_folder("shape_prior")


def load_judge(name: str) -> PointNet:
    """One of the two shipped classifiers, in evaluation mode and with its weights frozen.

    Arguments:
        name: ``"reward"`` for training, ``"heldout"`` for judging.

    Raises:
        InputError: there is no such classifier.
        CheckpointError: its weights are missing or do not fit.
    """
    if name not in JUDGE_WIDTHS:
        raise InputError(f"no classifier is called {name!r}; choose one of {[*JUDGE_WIDTHS]}")
    path = shipped_folder("shape_judges") / f"{name}.safetensors"
    return filled(PointNet(JUDGE_WIDTHS[name]), path, "scripts/train_shape_models.py")


@torch.no_grad()
def judged(judge: PointNet, clouds: Float[Tensor, "B P 3"]) -> Float[Tensor, "B 5"]:
    """Logits of any number of clouds, a few at a time."""
    return torch.cat([judge(part) for part in clouds.split(CHUNK)])


@torch.no_grad()
def cloud_features(judge: PointNet, clouds: Float[Tensor, "B P 3"]) -> Float[Tensor, "B F"]:
    """Penultimate features of any number of clouds, a few at a time."""
    return torch.cat([judge.features(part) for part in clouds.split(CHUNK)])
