"""Systems of particles for prompts: nothing is trained."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import difftilt as dt
from difftilt.sampling.draws import Samples
from plain_diffusers import PROMPTS, SCALE, STEPS
from tiny_pipelines import tiny


def redness(pictures: Tensor, prompts: list[str]) -> Tensor:
    """Prefers red cats and blue dogs."""
    signs = torch.tensor([1.0 if "cat" in prompt else -1.0 for prompt in prompts])
    return 20 * signs * (pictures[:, 0] - pictures[:, 2]).mean((1, 2))


@pytest.fixture(scope="module")
def task() -> dt.TextToImage:
    prior = dt.load(tiny("sd"), steps=STEPS, guidance_scale=SCALE)
    return prior.draw(PROMPTS, redness)


@pytest.fixture(scope="module")
def alone(task) -> list[Samples]:
    """The prior's pictures."""
    return task.prior_sampler().draw(192, seed=1)


def log_r(drawn: Sequence[Samples]) -> list[Tensor]:
    assert all(each.log_r is not None for each in drawn)
    return [each.log_r.double() for each in drawn if each.log_r is not None]


def test_the_best_of_four_has_the_law_of_the_largest_of_four(task, alone):
    """Half of one picture's rewards, and 1 / 16 of the best ones', are below the median."""
    n = 48
    for one, best in zip(log_r(alone), log_r(task.population(dt.BestOfN(4)).draw(n)), strict=True):
        below = float((best < one.median()).double().mean())
        error = math.sqrt((1 / 16) * (15 / 16) / n + (4 * 0.5**3) ** 2 / 4 / len(one))
        assert abs(below - 1 / 16) < 5 * error


def test_a_system_s_estimate_of_z_is_unbiased(task, alone):
    drawn = task.population(dt.FKSteering(4)).draw(48)
    for one, system in zip(log_r(alone), drawn, strict=True):
        assert system.log_w is not None
        plain, steered = one.exp(), system.log_w.double().exp()
        error = math.hypot(*(float(w.std()) / math.sqrt(len(w)) for w in (plain, steered)))
        assert abs(float(plain.mean() - steered.mean())) < 5 * error
        assert float(system.log_r.mean()) > float(one.mean())
    certificate = task.population(dt.FKSteering(4)).certify_each(16, ["dog"])
    assert certificate.names == ("dog",) and 0 < certificate.ess <= 1


@pytest.mark.parametrize("method", [dt.BestOfN(2), dt.FKSteering(2)], ids=repr)
def test_pictures_of_a_prompt_depend_on_it_alone(task, method):
    sampler = task.population(method)
    pictures = sampler.sample(2, seed=3)
    assert pictures.shape == (2, 2, 3, 16, 16)
    assert float(pictures.min()) >= 0 and float(pictures.max()) <= 1
    assert torch.allclose(sampler.sample(1, ["dog"], seed=3), pictures[1:, :1], rtol=0, atol=1e-4)
    assert sampler.sample(1, ["a bat"]).shape == (1, 1, 3, 16, 16)


def test_a_posterior_may_move_the_particles(task):
    posterior = task.posterior(dt.LoRA(rank=2))
    with torch.no_grad():
        for parameter in posterior.posterior.chain.kernel.parameters():
            parameter += 0.1
    method = dt.ImportanceResampling(2)
    moved = task.population(method, posterior).draw(2, ["cat"])[0]
    assert not torch.equal(moved.x_0, task.population(method).draw(2, ["cat"])[0].x_0)
    with pytest.raises(dt.InputError, match="BestOfN has no unbiased estimate of Z"):
        task.population(dt.BestOfN(2)).certify_each(8)
