"""A pipeline's chain draws what the pipeline's own call draws, given the same noise."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

import difftilt as dt
import tiny_pipelines
from difftilt.chains.rollouts import rollout
from plain_diffusers import PROMPTS, SCALE, SIZES, STEPS, noise_of, plain
from tiny_pipelines import BUILDERS, ddim, tiny

SD_SCHEDULERS = {
    "ddim v": (ddim(prediction_type="v_prediction"), 1.0),
    "ddim half": (ddim(), 0.5),
    "ddpm": (DDPMScheduler(clip_sample=False), 1.0),
    "euler": (EulerAncestralDiscreteScheduler(), 1.0),
    "euler v": (EulerAncestralDiscreteScheduler(prediction_type="v_prediction"), 1.0),
}

WITHOUT_NOISE = ("dit", "sd3_ode", "flux_ode")


def drawn(prior: Any, name: str, prompts: list[str] = PROMPTS) -> Tensor:
    """Latents of one picture per prompt; pictures where the pipeline gives no latents."""
    chain = prior.model.chain.given(prior.rows(prompts))
    x_0 = rollout(chain, len(prompts), noise_of(name)).x_0
    return prior.model.family.decoded(x_0) if name == "dit" else x_0


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float(theirs.std()) > 0.02
    tolerance = 2e-4 * max(1.0, float(theirs.abs().max()))
    assert torch.allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_saved_pipeline_draws_our_pictures(pipelines, name: str):
    pipeline = DiffusionPipeline.from_pretrained(pipelines / name)
    pipeline.set_progress_bar_config(disable=True)
    theirs = plain(pipeline, name)
    # These pipelines step without asking for noise.
    settings = ({} if name == "dit" else SIZES) | ({"eta": 0.0} if name in WITHOUT_NOISE else {})
    prior = dt.load(pipelines / name, steps=STEPS, guidance_scale=SCALE, **settings)
    assert_same(drawn(prior, name), theirs)


@pytest.mark.parametrize("case", SD_SCHEDULERS)
def test_every_scheduler_with_a_density(case: str):
    pipeline = tiny("sd")
    pipeline.scheduler, eta = SD_SCHEDULERS[case]
    theirs = plain(pipeline, "sd", eta=eta)
    prior = dt.load(pipeline, steps=STEPS, eta=eta, guidance_scale=SCALE)
    assert_same(drawn(prior, "sd"), theirs)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "pixart_sigma"])
def test_a_negative_prompt_and_no_guidance(name: str):
    pipeline = tiny(name)
    told = {"negative_prompt": "ugly"}
    theirs = plain(pipeline, name, negative_prompt=["ugly"] * len(PROMPTS))
    prior = dt.load(pipeline, steps=STEPS, guidance_scale=SCALE, **told, **SIZES)
    assert_same(drawn(prior, name), theirs)
    bare = dt.load(pipeline, steps=STEPS, guidance_scale=1.0, **SIZES)
    assert_same(drawn(bare, name), plain(pipeline, name, guidance_scale=1.0))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_flux_is_guided_away_from_a_negative_prompt(scale: float):
    pipeline = tiny("flux")
    told = {"negative_prompt": ["ugly"] * len(PROMPTS), "true_cfg_scale": scale}
    prior = dt.load(
        pipeline,
        steps=STEPS,
        guidance_scale=SCALE,
        negative_prompt="ugly",
        true_cfg_scale=scale,
        **SIZES,
    )
    ours = drawn(prior, "flux")
    assert_same(ours, plain(pipeline, "flux", **told))
    bare = plain(pipeline, "flux")
    assert torch.allclose(ours, bare, rtol=0, atol=2e-4) == (scale == 1)


def test_the_pipelines_own_guidance_scale_is_the_default():
    pipeline = tiny("sd")
    theirs = plain(pipeline, "sd", guidance_scale=7.5)
    assert_same(drawn(dt.load(pipeline, steps=STEPS), "sd"), theirs)


def test_another_size_than_the_own_one():
    pipeline = tiny("sdxl")
    size = {"height": 24, "width": 8}
    theirs = plain(pipeline, "sdxl", **size)
    prior = dt.load(pipeline, steps=STEPS, guidance_scale=SCALE, **size)
    assert_same(drawn(prior, "sdxl"), theirs)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "pixart_alpha"])
def test_pictures_are_decoded_as_theirs(name: str):
    pipeline = tiny(name)
    theirs = plain(pipeline, name, output_type="pt")
    prior = dt.load(pipeline, steps=STEPS, guidance_scale=SCALE, decode_batch=1, **SIZES)
    ours = prior.model.family.decoded(drawn(prior, name))
    assert ours.shape == theirs.shape == (2, 3, 16, 16)
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_the_grid_of_levels_is_shifted_as_theirs(name: str):
    pipeline = tiny(name)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, stochastic_sampling=True
    )
    theirs = plain(pipeline, name)
    prior = dt.load(pipeline, steps=STEPS, guidance_scale=SCALE, **SIZES)
    levels = prior.model.chain.diffusion.levels.sigma.flip(0).float()
    assert torch.equal(levels, pipeline.scheduler.sigmas)
    assert_same(drawn(prior, name), theirs)


def test_a_solver_of_an_ode_becomes_ddim_on_its_levels():
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipeline = tiny("sd")
    expected = drawn(dt.load(pipeline, steps=STEPS, guidance_scale=SCALE), "sd")
    pipeline.scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1, **settings)
    found = dt.load(pipeline, steps=STEPS, guidance_scale=SCALE)
    assert type(found.model.scheduler).__name__ == "DDIMScheduler"
    assert torch.equal(drawn(found, "sd"), expected)


def test_a_picture_depends_on_its_prompt_alone():
    prior = dt.load(tiny_pipelines.tiny("sd"), steps=STEPS, guidance_scale=SCALE)
    pair, swapped = prior.sample(["cat", "dog"], 2), prior.sample(["dog", "red fox", "cat"], 3)
    assert torch.allclose(pair, swapped[[2, 0], :2], rtol=0, atol=1e-4)
    assert not torch.allclose(pair[0], pair[1], atol=1e-3)
