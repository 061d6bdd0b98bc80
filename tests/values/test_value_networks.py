"""The value that suits a chain's states; of images it is convolutional; a contrast trains it."""

import pytest
import torch

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.diffusions.orders import Stepwise
from difftilt.errors import InputError
from difftilt.forms import ValueGuided
from difftilt.noise import GeneratorNoise
from difftilt.objectives.contrastive import CEP
from difftilt.posteriors import Prior
from difftilt.training.plan import BehaviourWeights, Optimisation
from difftilt.values.functions import TokenValue, VectorValue
from difftilt.values.kernel import ValueKernel
from difftilt.values.networks import ImageValue, value_for
from small_chains import prior as vector_prior
from token_chains import arbitrary, masked_chain
from toys import image_chain

SHAPE, STEPS = (1, 4, 4), 3


def tokens() -> Chain:
    """A masked chain."""
    return masked_chain(arbitrary(), Stepwise())


def brightness(x_0):
    """``1.5 v·x_0`` with a unit vector v: log Z = 1.5² / 2 under standard Gaussian pixels."""
    return 1.5 * x_0.sum((1, 2, 3)) / 4


def test_the_value_follows_the_states():
    assert isinstance(value_for(vector_prior()), VectorValue)
    assert isinstance(value_for(image_chain()), ImageValue)
    assert isinstance(value_for(tokens()), TokenValue)
    assert next(value_for(vector_prior()).parameters()).dtype == torch.float64


def test_an_untrained_value_leaves_an_image_prior_to_the_bit():
    chain = image_chain()
    posterior = chain.tilted(ValueGuided().kernel(chain))
    path = rollout(posterior, 3, GeneratorNoise(torch.Generator().manual_seed(0)))
    assert path.log_ratio is not None and path.log_ratio.tolist() == [0.0] * 3


@pytest.mark.parametrize("largest_beta", [None, 2.0])
def test_one_step_for_all_is_that_step_for_each(largest_beta: float | None, generator):
    value = ImageValue(SHAPE, STEPS, 8, largest_beta)
    torch.nn.init.normal_(value.network.last.weight)
    x = torch.randn(3, *SHAPE, generator=generator)
    prediction = torch.randn(3, *SHAPE, generator=generator)
    for_all = value(x, 2, prediction, None, 0.7)
    each = value(x, torch.full((3,), 2), prediction, None, torch.full((3,), 0.7))
    assert torch.allclose(for_all, each, atol=1e-6)
    assert not torch.allclose(for_all, value(x, 3, prediction, None, 0.7))
    assert not torch.allclose(for_all, value(x, 2, 1 - prediction, None, 0.7))
    if largest_beta is not None:
        nothing = value(x, 2, prediction, None, 0.0)
        assert nothing.tolist() == [0.0] * 3


def test_guidance_by_a_value_of_tokens_is_refused():
    with pytest.raises(InputError, match="moves continuous states"):
        ValueGuided().kernel(tokens())


def test_a_contrast_teaches_it_the_slope_of_a_linear_reward(unchecked):
    """``∇ log h_n = 1.5 alpha_n v`` in closed form; at the start the error is all of it."""
    target = Prior(image_chain()).tilt(brightness)
    posterior = target.fit(
        CEP(),
        form=ValueGuided(),
        steps=60,
        batch=64,
        behaviour=BehaviourWeights(on_policy=0, pool=0, prior=1),
        optimisation=Optimisation(learning_rate=1e-2, ema=0.9),
    )
    kernel, chain = posterior.chain.kernel, posterior.chain
    assert isinstance(kernel, ValueKernel)
    x = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        slopes = torch.stack([kernel.gradient(x, n) for n in range(1, STEPS + 1)])
    alpha = chain.gaussian.levels.alpha[1:].to(x)[:, None, None, None, None]
    exact = (1.5 / 4 * alpha).expand_as(slopes)
    assert float((slopes - exact).square().sum() / exact.square().sum()) < 0.3
