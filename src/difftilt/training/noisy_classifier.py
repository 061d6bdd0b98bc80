"""A noisy classifier ``p(wanted given x_n)``, of clean samples that a black box has labelled.

    x_0 ~ p,   chance c(x_0) = r(x_0) / M,   x_n = alpha_n x_0 + sigma_n ε
    least  E[ - c log p̂(wanted given x_n) - (1 - c) log(1 - p̂(wanted given x_n)) ]

is at ``p̂ = E[c given x_n] = h_n(x_n) / M``, with β = 1: its slope is that of ``log h_n``. The soft
labels spare the noise of drawing hard ones. The reward is asked on clean samples only.

Source: Dhariwal and Nichol 2021, section 4 (arXiv 2105.05233).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.errors import InputError
from difftilt.models.convolutional import LevelConvolutions
from difftilt.models.mlp import Size, StepMLP
from difftilt.noise import GeneratorNoise, seeded

CLASSES = 2


@dataclass(frozen=True)
class ClassifierFit:
    """How a noisy classifier is fitted.

    Arguments:
        updates: Adam steps, the learning rate falling to zero.
        batch: noised samples per step.
        learning_rate: of Adam.
        seed: of weights and draws.
    """

    updates: int = 1000
    batch: int = 256
    learning_rate: float = 2e-3
    seed: int = 0


class NoisyClassifier(nn.Module):
    """``(x_n, time) -> logits`` (B, 2) of not wanted and wanted, as ``ClassifierGuidance`` asks.

    Convolutional for images (C, H, W), else a perceptron.

    Arguments:
        chain: the prior, whose noise levels it reads.
        spread: standard deviation of the data, for the scale of its inputs.
    """

    times: Tensor
    scale: Tensor

    def __init__(self, chain: Chain, spread: float) -> None:
        super().__init__()
        levels = chain.gaussian.levels
        self.steps = chain.steps
        scale = (levels.alpha**2 * spread**2 + levels.sigma**2).sqrt()
        self.register_buffer("times", levels.time.to(chain.like), persistent=False)
        self.register_buffer("scale", scale.to(chain.like), persistent=False)
        shape = chain.event_shape
        self.images = len(shape) == 3
        network = (
            LevelConvolutions(shape[0], CLASSES)
            if self.images
            else StepMLP(math.prod(shape), CLASSES, chain.steps, Size())
        )
        self.network = network.to(chain.like)

    def forward(self, x: Float[Tensor, "B ..."], time: Float[Tensor, " B"]) -> Float[Tensor, "B 2"]:
        n = (time.to(self.times)[:, None] - self.times).abs().argmin(1)
        scaled = x / self.scale[n].reshape(-1, *[1] * (x.ndim - 1))
        if self.images:
            return self.network(scaled, (n / self.steps).to(x)[:, None])
        return self.network(x, scaled, n)


def fit_noisy_classifier(
    chain: Chain,
    x_0: Float[Tensor, "n ..."],
    chance: Float[Tensor, " n"],
    fit: ClassifierFit | None = None,
) -> NoisyClassifier:
    """A noisy classifier of samples of the prior.

    Arguments:
        chain: the prior; its calls count one per noised sample that the classifier sees.
        x_0: samples of it.
        chance: of each, that it is wanted, in [0, 1].
        fit: default ``ClassifierFit()``.

    Raises:
        InputError: a chance outside [0, 1], or not one for each sample.
    """
    fit = ClassifierFit() if fit is None else fit
    if len(chance) != len(x_0) or not bool(((chance >= 0) & (chance <= 1)).all()):
        raise InputError(
            f"a noisy classifier is fitted to one chance in [0, 1] for each of {len(x_0)} samples; "
            "divide r by an upper bound of it"
        )
    generator = torch.Generator().manual_seed(fit.seed)
    with seeded(generator):
        classifier = NoisyClassifier(chain, float(x_0.std()))
    labels = torch.stack([1 - chance, chance], 1).to(x_0)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=fit.learning_rate)
    for update in range(fit.updates):
        rows = torch.randint(len(x_0), (fit.batch,), generator=generator)
        n = torch.randint(1, chain.steps + 1, (fit.batch,), generator=generator)
        for group in optimiser.param_groups:
            group["lr"] = 0.5 * fit.learning_rate * (1 + math.cos(math.pi * update / fit.updates))
        optimiser.zero_grad()
        _loss(classifier, chain, x_0[rows], labels[rows], n, generator).backward()
        optimiser.step()
    chain.calls.posterior += fit.updates * fit.batch
    return classifier.eval().requires_grad_(False)


def _loss(
    classifier: NoisyClassifier,
    chain: Chain,
    x_0: Tensor,
    labels: Tensor,
    n: Int[Tensor, " B"],
    generator: torch.Generator,
) -> Tensor:
    x, _ = chain.diffusion.denoising_pair(x_0, n, GeneratorNoise(generator))
    logits = classifier(x, classifier.times[n])
    return nn.functional.cross_entropy(logits, labels)
