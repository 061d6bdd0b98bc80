"""A noisy classifier of soft labels against the closed form ``h_n / M`` of Gaussian data.

One fixed seed; the bounds are a third of what the best constant would be off by.
"""

import math

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.guidance.learned import ClassifierGuidance
from difftilt.noise import GeneratorNoise
from difftilt.training.noisy_classifier import (
    ClassifierFit,
    NoisyClassifier,
    fit_noisy_classifier,
)
from gaussian_values import LIKELIHOOD
from toys import end_law, gaussian_chain, image_chain

LOG_BOUND = -math.log(LIKELIHOOD.sigma * math.sqrt(2 * math.pi))
STEPS = 4


@pytest.fixture(scope="module")
def fitted() -> tuple[Chain, NoisyClassifier]:
    chain = gaussian_chain(1, STEPS)
    path = rollout(chain, 8192, GeneratorNoise(torch.Generator().manual_seed(0)), record=False)
    chance = (LIKELIHOOD(path.x_0) - LOG_BOUND).exp()
    before = chain.calls.total
    classifier = fit_noisy_classifier(chain, path.x_0, chance, ClassifierFit(200, 256, 5e-3))
    assert chain.calls.total - before == 200 * 256
    return chain, classifier


def log_h(chain: Chain, n: int, x: Tensor) -> Tensor:
    """``log E[r(x_0) given x_n]`` where x_n is the chain's x_0, noised by the forward process."""
    (mean, variance), levels = end_law(chain), chain.gaussian.levels
    alpha, sigma = float(levels.alpha[n]), float(levels.sigma[n])
    gain = alpha * variance / (alpha**2 * variance + sigma**2)
    centre = mean + gain * (x - alpha * mean)
    spread = (LIKELIHOOD.sigma**2 + variance * (1 - gain * alpha)) ** 0.5
    return torch.distributions.Normal(centre, spread).log_prob(torch.tensor(LIKELIHOOD.y)).sum(1)


def states(chain: Chain, n: int) -> Tensor:
    """A grid over two standard deviations of ``x_n``."""
    (mean, variance), levels = end_law(chain), chain.gaussian.levels
    std = float((levels.alpha[n] ** 2 * variance + levels.sigma[n] ** 2).sqrt())
    return float(levels.alpha[n]) * mean + std * torch.linspace(-2, 2, 101)[:, None]


def test_its_probability_is_h_over_the_bound(fitted):
    chain, classifier = fitted
    for n in range(1, STEPS + 1):
        x = states(chain, n)
        exact = (log_h(chain, n, x) - LOG_BOUND).exp()
        found = torch.softmax(classifier(x, classifier.times[n].expand(len(x))), 1)[:, 1]
        constant = float((exact - exact.mean()).abs().mean())
        assert float((found - exact).abs().mean()) < max(constant / 3, 0.02), n


def test_its_guidance_climbs_as_log_h_does(fitted):
    """At the last step, where the slope is steepest; a slope of short fits is the harder part."""
    chain, classifier = fitted
    kernel = ClassifierGuidance(classifier, 1).kernel(chain, LIKELIHOOD)
    x = states(chain, 1).requires_grad_()
    (slope,) = torch.autograd.grad(log_h(chain, 1, x).sum(), x)
    exact = float(chain.gaussian.tables.std[1]) * slope
    delta = kernel(x.detach(), 1, chain.predict(x.detach(), 1), None).delta
    assert float((delta - exact).square().mean() / exact.square().mean()) < 1 / 3


def test_of_images_it_is_convolutional_and_starts_undecided():
    classifier = NoisyClassifier(image_chain(), 1.0)
    logits = classifier(torch.randn(3, 1, 4, 4), classifier.times[2].expand(3))
    assert logits.tolist() == [[0.0, 0.0]] * 3


def test_chances_are_checked():
    chain = gaussian_chain(1, STEPS)
    with pytest.raises(InputError, match="one chance in \\[0, 1\\] for each of 2 samples"):
        fit_noisy_classifier(chain, torch.zeros(2, 1), torch.tensor([0.5, 1.5]))
