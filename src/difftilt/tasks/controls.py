"""Calibrated classifiers from offline labelled pairs: what a control's reward is made of.

A control is only as good as its probabilities: the posterior of ``p(x) p̂(y | x)`` is that of
``p(x) p(y | x)`` where p̂ is calibrated. So a small network is fitted by cross-entropy, and then
one temperature by the same loss on pairs that the fit has not seen.

Source: Guo et al. 2017, temperature scaling (arXiv 1706.04599).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.errors import InputError


@dataclass(frozen=True)
class LabelledSet:
    """Pairs of samples and labels.

    Arguments:
        x: (n, d).
        y: (n,) labels, counted from 0.

    Raises:
        InputError: not one label for each sample.
    """

    x: Float[Tensor, "n d"]
    y: Int[Tensor, " m"]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise InputError(f"{len(self.x)} samples with {len(self.y)} labels; give one for each")

    def split(self, share: float) -> tuple["LabelledSet", "LabelledSet"]:
        """The first ``1 - share`` of the pairs, and the rest.

        Raises:
            InputError: a part would be empty.
        """
        first = len(self.x) - round(share * len(self.x))
        if not 0 < first < len(self.x):
            raise InputError(f"share={share} of {len(self.x)} pairs leaves a part without pairs")
        return LabelledSet(self.x[:first], self.y[:first]), LabelledSet(
            self.x[first:], self.y[first:]
        )


@dataclass(frozen=True)
class Fit:
    """How a classifier is fitted.

    Arguments:
        width: of its two hidden layers.
        updates: Adam steps, learning rate falling to zero.
        batch: pairs per step.
        learning_rate: of Adam.
        held_out: share of the pairs that the temperature is fitted on.
        seed: of weights and batches.
    """

    width: int = 32
    updates: int = 800
    batch: int = 1024
    learning_rate: float = 1e-2
    held_out: float = 0.2
    seed: int = 0


class Classifier(nn.Module):
    """``x -> logits / temperature``: two hidden layers.

    Arguments:
        dimension: d of x.
        classes: number of labels.
        width: of the hidden layers.
    """

    temperature: Tensor

    def __init__(self, dimension: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dimension, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, classes),
        )
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, x: Float[Tensor, "B d"]) -> Float[Tensor, "B classes"]:
        return self.layers(x) / self.temperature


def calibrated_classifier(pairs: LabelledSet, classes: int, fit: Fit | None = None) -> Classifier:
    """A classifier of labelled pairs: fitted, then scaled by a temperature on held-out pairs.

    Raises:
        InputError: a label outside 0 ... classes - 1, or too few pairs to hold some out.
    """
    fit = Fit() if fit is None else fit
    if len(pairs.y) and not 0 <= int(pairs.y.min()) <= int(pairs.y.max()) < classes:
        raise InputError(
            f"labels span {int(pairs.y.min())} to {int(pairs.y.max())}; with classes={classes} "
            f"they must lie between 0 and {classes - 1}"
        )
    seen, held_out = pairs.split(fit.held_out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        classifier = Classifier(pairs.x.shape[1], classes, fit.width).to(pairs.x)
    _fit_layers(classifier, seen, fit)
    classifier.temperature.copy_(held_out_temperature(classifier, held_out))
    return classifier.eval().requires_grad_(False)


def _fit_layers(classifier: Classifier, pairs: LabelledSet, fit: Fit) -> None:
    generator = torch.Generator().manual_seed(fit.seed)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=fit.learning_rate)
    for update in range(fit.updates):
        rows = torch.randint(len(pairs.x), (fit.batch,), generator=generator)
        for group in optimiser.param_groups:
            group["lr"] = 0.5 * fit.learning_rate * (1 + math.cos(math.pi * update / fit.updates))
        optimiser.zero_grad()
        nn.functional.cross_entropy(classifier(pairs.x[rows]), pairs.y[rows]).backward()
        optimiser.step()


def held_out_temperature(classifier: Classifier, pairs: LabelledSet) -> Tensor:
    """The temperature of least cross-entropy on some pairs, relative to none."""
    with torch.no_grad():
        logits = classifier(pairs.x) * classifier.temperature
    log_temperature = torch.zeros((), dtype=logits.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = nn.functional.cross_entropy(logits / log_temperature.exp(), pairs.y)
        value.backward()
        return value

    optimiser.step(loss)  # pyright: ignore[reportArgumentType]
    return log_temperature.detach().exp()
