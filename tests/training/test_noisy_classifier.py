"""A noisy classifier of soft labels against the closed form ``h_n / M`` of a Gaussian chain.

One fixed seed; the bounds are a third of what the best constant would be off by.
"""

import math

import pytest
import torch
from torch import Tensor

from difftilt.chains import Chain
from difftilt.errors import InputError
from difftilt.guidance.learned import ClassifierGuidance
from difftilt.noise import GeneratorNoise
from difftilt.rollouts import rollout
from difftilt.training.noisy_classifier import (
    ClassifierFit,
    NoisyClassifier,
    fit_noisy_classifier,
)
from gaussian_values import LIKELIHOOD, exact_values
from test_value_networks import image_chain
from toys import gaussian_chain

LOG_BOUND = -math.log(LIKELIHOOD.sigma * math.sqrt(2 * math.pi))
STEPS = 4


@pytest.fixture(scope="module")
def fitted() -> tuple[Chain, NoisyClassifier, Tensor]:
    chain = gaussian_chain(1, STEPS)
    path = rollout(chain, 8192, GeneratorNoise(torch.Generator().manual_seed(0)))
    chance = (LIKELIHOOD(path.x_0) - LOG_BOUND).exp()
    before = chain.calls.total
    classifier = fit_noisy_classifier(chain, path.x_0, chance, ClassifierFit(300, 256, 5e-3))
    assert chain.calls.total - before == 300 * 256
    return chain, classifier, path.states[:, :1000]


def test_its_probability_is_h_over_the_bound(fitted):
    chain, classifier, states = fitted
    values = exact_values(chain, LIKELIHOOD)
    for n in range(1, STEPS + 1):
        exact = (values[n](states[n]) - LOG_BOUND).exp()
        found = torch.softmax(classifier(states[n], classifier.times[n].expand(1000)), 1)[:, 1]
        constant = float((exact - exact.mean()).abs().mean())
        assert float((found - exact).abs().mean()) < max(constant / 3, 0.02), n


def test_its_guidance_climbs_as_log_h_does(fitted):
    chain, classifier, states = fitted
    value = exact_values(chain, LIKELIHOOD)[1]
    kernel = ClassifierGuidance(classifier, 1).kernel(chain, LIKELIHOOD)
    x = states[1].detach()
    delta = kernel(x, 1, chain.predict(x, 1), None).delta
    exact = float(chain.gaussian.tables.std[1]) * value.slope(x)
    left = float((delta - exact).square().mean() / exact.square().mean())
    assert left < 1 / 3


def test_of_images_it_is_convolutional_and_starts_undecided():
    classifier = NoisyClassifier(image_chain(), 1.0)
    logits = classifier(torch.randn(3, 1, 4, 4), classifier.times[2].expand(3))
    assert logits.tolist() == [[0.0, 0.0]] * 3


def test_chances_are_checked():
    chain = gaussian_chain(1, STEPS)
    with pytest.raises(InputError, match="one chance in \\[0, 1\\] for each of 2 samples"):
        fit_noisy_classifier(chain, torch.zeros(2, 1), torch.tensor([0.5, 1.5]))
