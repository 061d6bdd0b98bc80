"""What guidance refuses, and the sentence it says."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import small_chains
from difftilt.chains.rollouts import rollout
from difftilt.denoisers import Denoiser, Level
from difftilt.errors import InputError, RewardError
from difftilt.guidance.base import Guidance
from difftilt.guidance.classifier_free import ClassifierFreeGuidance
from difftilt.guidance.learned import ClassifierGuidance, OracleGuidance, ValueGuidance
from difftilt.guidance.pseudoinverse import PiGDM
from difftilt.guidance.reconstruction import DPS, LGDMC
from difftilt.posteriors import Prior
from difftilt.rewards.wrappers import GaussianLikelihood
from difftilt.values.functions import VectorValue


def smooth(x_0: Tensor) -> Tensor:
    return -x_0.square().sum(1)


def likelihood(operator: Callable[[Tensor], Any], size: int = 2) -> GaussianLikelihood:
    return GaussianLikelihood(torch.zeros(size).double(), operator, 0.5)


def run(method: Guidance, log_reward: Callable[..., Any] = smooth) -> None:
    Prior(small_chains.prior()).tilt(log_reward).sample(4, method=method)


MADE: dict[str, Callable[[float], object]] = {
    "dps": DPS,
    "lgdmc": lambda scale: LGDMC(scale=scale),
    "pigdm": lambda scale: PiGDM(likelihood(lambda x: x), scale),
    "classifier": lambda scale: ClassifierGuidance(lambda x, time: x, 0, scale),
    "value": lambda scale: ValueGuidance(VectorValue((2,), 5), scale),
    "oracle": lambda scale: OracleGuidance(lambda x, n: x[:, 0], scale),
    "classifier-free": lambda scale: ClassifierFreeGuidance(small_chains.prior().denoiser, scale),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("scale", [math.inf, math.nan])
def test_a_scale_is_finite(name: str, scale: float):
    with pytest.raises(InputError, match="scale is a finite number, got"):
        MADE[name](scale)


@pytest.mark.parametrize("data_std", [0.0, -1.0, math.inf])
def test_a_spread_of_the_data_is_positive(data_std: float):
    for made in (LGDMC, lambda **options: PiGDM(likelihood(lambda x: x), **options)):
        with pytest.raises(InputError, match="data_std is a positive finite number"):
            made(data_std=data_std)


@pytest.mark.parametrize("samples", [0, 7, -2])
def test_draws_come_in_pairs(samples: int):
    with pytest.raises(InputError, match="samples come in antithetic pairs"):
        LGDMC(samples)


def through_numpy(x_0: Tensor) -> Any:
    return -(x_0.numpy() ** 2).sum(1)


def cut(x_0: Tensor) -> Tensor:
    with torch.no_grad():
        return smooth(x_0)


def of_something_else(x_0: Tensor) -> Tensor:
    return torch.zeros(len(x_0), requires_grad=True) * 1


@pytest.mark.parametrize("reward", [through_numpy, cut, of_something_else])
@pytest.mark.parametrize("method", [DPS(), LGDMC(2)], ids=["dps", "lgdmc"])
def test_a_black_box_is_sent_to_methods_for_black_boxes(method: Guidance, reward):
    with pytest.raises(InputError, match=r"follows the gradient of log r, .*RTB.*correct='smc'"):
        run(method, reward)


def test_a_reward_at_fault_is_still_the_one_that_is_named():
    with pytest.raises(RewardError, match="reward 'broken' raised ZeroDivisionError"):
        run(DPS(), broken)


def broken(x_0: Tensor) -> Tensor:
    return x_0[:, 0] / (1 // 0)


class Frozen(Denoiser):
    """A denoiser that cuts the graph."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    @torch.no_grad()
    def forward(self, x_t: Tensor, level: Level) -> Tensor:
        return self.denoiser(x_t, level)


def test_a_prior_that_cuts_the_graph_is_named():
    chain = small_chains.prior()
    chain = replace(chain, denoiser=Frozen(chain.denoiser))
    for method in (DPS(), ValueGuidance(VectorValue((2,), 5).double())):
        with pytest.raises(InputError, match=r"prior's network, whose prediction has no gradient"):
            rollout(chain.tilted(method.kernel(chain, smooth)), 2, small_chains.noise())


def test_a_slope_that_is_not_finite_stops_the_sampler():
    with pytest.raises(InputError, match="gradient of log h is not finite"):
        run(DPS(), lambda x_0: -(0 * x_0).square().sum(1).sqrt())


def test_normalised_steps_need_a_bound():
    with pytest.raises(InputError, match=r"DPS\(normalised=True\) .* log_bound="):
        run(DPS(normalised=True))


@pytest.mark.parametrize("operator", [through_numpy, cut], ids=["numpy", "no_grad"])
def test_an_operator_needs_a_gradient(operator):
    def measured(x: Tensor) -> Tensor:
        return torch.as_tensor(operator(x))[:, None]

    with pytest.raises(InputError, match="follows the gradient of log r"):
        run(PiGDM(likelihood(measured, 1)))


def test_an_operator_is_linear():
    with pytest.raises(InputError, match="operator is not linear"):
        run(PiGDM(likelihood(torch.sin)))


def test_an_operator_fits_its_observation():
    with pytest.raises(RewardError, match="the observation asks for"):
        run(PiGDM(likelihood(lambda x: x, 3)))


def test_a_large_observation_is_sent_elsewhere():
    with pytest.raises(InputError, match="5000 by 5000; it takes at most 4096"):
        PiGDM(likelihood(lambda x: x, 5_000))


def test_classes_exist():
    with pytest.raises(InputError, match="give at least one class"):
        ClassifierGuidance(lambda x, time: x, ())
    with pytest.raises(InputError, match="there is no class 2"):
        run(ClassifierGuidance(lambda x, time: x, 2))
    with pytest.raises(InputError, match="neither classes nor a condition"):
        run(ClassifierGuidance(lambda x, time: x))


def test_two_conditions_need_one():
    chain = small_chains.prior()
    denoiser = ClassifierFreeGuidance(chain.denoiser)
    with pytest.raises(InputError, match="none is bound; bind one with"):
        denoiser(torch.zeros(2, 2).double(), chain.diffusion.level(1, chain.like))


def test_a_sampler_without_noise_cannot_be_guided():
    with pytest.raises(InputError, match="no stochastic step"):
        Prior(small_chains.prior(eta=0.0)).tilt(smooth).guided(DPS())
