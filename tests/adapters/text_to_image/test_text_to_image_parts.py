"""Checkpointed blocks, the table of prompts, full copies, and what is refused."""

import copy
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import difftilt as dt
from difftilt.adapters.text_to_image import text_to_image_model
from difftilt.adapters.text_to_image.flow import packed, unpacked
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import backward
from difftilt.errors import InputError, RewardError
from difftilt.forms import DriftNet
from difftilt.noise import GeneratorNoise
from plain_diffusers import PROMPTS, SCALE, STEPS, noise_of, plain
from tiny_pipelines import tiny

LORA = dt.LoRA(rank=2)


def brightness(pictures: Tensor) -> Tensor:
    """Log r of pictures alone."""
    return pictures.mean((1, 2, 3))


def loaded(pipeline: Any, **options: Any) -> Any:
    return dt.load(pipeline, steps=STEPS, **({"guidance_scale": SCALE} | options))


def moved_path(posterior: Any) -> Any:
    """A path of a posterior away from its prior, in the prior's own noise."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in posterior.posterior.chain.kernel.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    chain = posterior.posterior.chain.given(posterior.task.prior.rows(PROMPTS))
    return chain, rollout(chain, 2, GeneratorNoise(torch.Generator().manual_seed(1)))


def gradient(posterior: Any) -> tuple[Tensor, int]:
    """The gradient of ``Λ · (1, -2)``, and the bytes that its graphs kept."""
    chain, path = moved_path(posterior)
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        backward(chain, path, torch.tensor([1.0, -2.0]))
    parameters = list(chain.kernel.parameters())
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]), kept


@pytest.mark.parametrize("name", ["sd", "dit"])
def test_checkpointing_changes_the_memory_and_not_the_gradient(name: str):
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        task = loaded(tiny(name), checkpointing=checkpointing).draw(PROMPTS, brightness)
        found.append(gradient(task.posterior(LORA)))
    (expected, plain_bytes), (ours, bytes_kept) = found
    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 0
    assert bytes_kept < 0.6 * plain_bytes


def test_prompts_are_encoded_once():
    pipeline = tiny("sd")
    calls: list[int] = []
    pipeline.text_encoder.register_forward_pre_hook(
        lambda module, inputs: calls.append(len(inputs[0]))
    )
    prior = loaded(pipeline)
    before = len(calls)
    task = prior.draw(["cat", "dog", "cat"], brightness)
    assert task.prompts == ("cat", "dog") and calls[before:] == [2]
    task.prior_sampler().sample(2)
    assert len(calls) == before + 1
    assert prior.rows(["dog", "fox", "cat"]).tolist() == [2, 3, 1]
    assert calls[before:] == [2, 1]
    assert task.sources.labels == 3
    drawn = task.sources.conditions(200, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {1, 2}


def test_the_reward_is_shown_pictures_and_their_prompts():
    seen: list[tuple[Tensor, list[str]]] = []

    def reward(pictures: Tensor, prompts: list[str]) -> Tensor:
        seen.append((pictures, prompts))
        return torch.tensor([float(len(prompt)) for prompt in prompts])

    sampler = loaded(tiny("sd")).draw(["cat", "horse"], reward).prior_sampler()
    drawn = sampler.draw(2, ["horse", "cat"])
    assert [each.log_r.tolist() for each in drawn] == [[5.0, 5.0], [3.0, 3.0]]
    pictures, prompts = seen[0]
    assert prompts == ["horse", "horse"]
    assert torch.equal(pictures, sampler.sample(2, ["horse"])[0])
    assert float(pictures.min()) >= 0 and float(pictures.max()) <= 1


def test_the_network_sees_few_states_at_once():
    pipeline = tiny("sd")
    seen: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    few, many = (loaded(pipeline, network_batch=count) for count in (2, 100))
    pictures = few.sample(["cat"], 3)
    assert max(seen) == 2
    assert torch.allclose(pictures, many.sample(["cat"], 3), rtol=0, atol=1e-4)
    levels = torch.tensor([1, 3, 2])
    x, prompts = torch.randn(3, 4, 8, 8), ["cat", "dog", "cat"]
    ours, theirs = (
        prior.model.chain.given(prior.rows(prompts)).predict(x, levels) for prior in (few, many)
    )
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_the_gradient_of_a_reward_reaches_latents_through_the_decoder():
    task = loaded(tiny("sd"), decode_batch=1).draw(PROMPTS, brightness)
    latents = torch.randn(2, 4, 8, 8, requires_grad=True)
    task.target.score(latents, task.prior.rows(PROMPTS)).sum().backward()
    assert latents.grad is not None and (latents.grad.flatten(1) != 0).any(1).all()


def test_guidance_has_a_gradient_through_both_halves():
    kernel = loaded(tiny("sd")).draw(PROMPTS, brightness).posterior(LORA).posterior.chain.kernel
    network = kernel.denoiser.prior.denoiser.network
    seen: list[tuple[int, Tensor]] = []

    def note(module: Any, inputs: Any, output: Any) -> None:
        output[0].register_hook(lambda slope: seen.append((len(slope), slope.flatten(1).abs())))

    network.register_forward_hook(note)
    task = loaded(tiny("sd"))
    level = task.model.chain.diffusion.level(2, torch.zeros(2, 4, 8, 8))
    kernel.denoiser.given(torch.tensor([1, 2]))(torch.randn(2, 4, 8, 8), level).sum().backward()
    (rows, slopes), *others = seen
    assert rows == 4 and not others and bool((slopes.sum(1) > 0).all())


def test_a_full_copy_leaves_as_a_whole_pipeline(tmp_path):
    task = loaded(tiny("sd")).draw(PROMPTS, brightness)
    posterior = task.posterior(dt.FullCopy())
    chain, _ = moved_path(posterior)
    pipeline = DiffusionPipeline.from_pretrained(posterior.export(tmp_path / "whole"))
    pipeline.set_progress_bar_config(disable=True)
    ours = rollout(chain, 2, noise_of("sd")).x_0
    assert torch.allclose(ours, plain(pipeline, "sd"), rtol=0, atol=2e-4 * float(ours.abs().max()))
    assert torch.equal(task.prior_sampler().sample(1), task.posterior().sample(1))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sd", None),
        ("sd3", "the last step, a map, is not the prior's"),
        ("sd3_ode", "the ODE sampler of the shifted velocity, which is another law"),
    ],
)
def test_a_full_copy_says_what_plain_diffusers_draws(tmp_path, name: str, said: str | None):
    copied = loaded(tiny(name)).draw(PROMPTS, brightness).posterior(dt.FullCopy())
    readme = (copied.export(tmp_path / name) / "README.md").read_text("utf-8")
    assert "A whole pipeline for plain diffusers" in readme and "load_lora" not in readme
    assert said is None or said in readme
    assert ("Draw the posterior with difftilt" in readme) == (said is not None)


def test_what_has_no_place_in_plain_diffusers_is_said(tmp_path):
    task = loaded(tiny("sd")).draw(PROMPTS, brightness)
    with pytest.raises(InputError, match="full copy or LoRA of this pipeline's network"):
        task.posterior(dt.FullCopy(learned_variance=True)).export(tmp_path / "new")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(InputError, match="holds files that are no exported text-to-image"):
        task.posterior().export(tmp_path / "letters")
    with pytest.raises(InputError, match="drift_unet needs"):
        task.posterior(DriftNet())


def test_packing_is_flux_own():
    from diffusers import FluxPipeline

    x = torch.randn(2, 4, 6, 8)
    assert torch.equal(packed(x), FluxPipeline._pack_latents(x, 2, 4, 6, 8))
    assert torch.equal(unpacked(packed(x), 3, 4), x)


def test_a_sampler_without_noise_is_a_prior_that_cannot_be_tilted():
    task = loaded(tiny("sd"), eta=0.0).draw(PROMPTS, brightness)
    assert task.prior_sampler().sample(1).shape == (2, 1, 3, 16, 16)
    with pytest.raises(InputError, match="no stochastic step"):
        task.fit(dt.RTB(), steps=1)


def test_long_prompts_are_warned_of():
    prior = loaded(tiny("sd"))
    with pytest.warns(UserWarning, match="has 22 tokens, of which the network is told the first"):
        prior.rows(["abcdefghijklmnopqrst"])


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ([], "prompts are a list of at least one text"),
        ("a cat", "prompts are a list of at least one text"),
        (["cat", 3], "prompts are texts, and 3 is none"),
    ],
)
def test_prompts_that_are_none_are_said(unchecked, prompts: Any, sentence: str):
    with pytest.raises(InputError, match=sentence):
        loaded(tiny("sd")).draw(prompts, brightness)


@pytest.mark.parametrize(
    ("name", "part"),
    [("sd", "vae"), ("sd", "text_encoder"), ("sd3", "tokenizer_2"), ("dit", "vae")],
)
def test_a_missing_part_is_said(name: str, part: str):
    pipeline = tiny(name)
    setattr(pipeline, part, None)
    with pytest.raises(InputError, match=f"Pipeline has no {part}, which its prior is made of"):
        loaded(pipeline)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"guidance": 3.0}, "no option 'guidance'; options are steps, eta, guidance_scale"),
        ({"height": 15}, "15 pixels are no multiple of 2, as the StableDiffusionPipeline needs"),
        ({"decode_batch": 0}, "decode_batch=0 must be at least 1"),
    ],
)
def test_wrong_options_are_said(options: dict, sentence: str):
    with pytest.raises(InputError, match=sentence):
        loaded(tiny("sd"), **options)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("flux", {"negative_prompt": "ugly"}, "they come together, got negative_prompt='ugly' and"),
        ("flux", {"true_cfg_scale": 2.0}, "they come together, got negative_prompt=None and"),
        ("sd3", {"true_cfg_scale": 2.0}, "true_cfg_scale=2.0 is an option of Flux; a StableDiff"),
    ],
)
def test_guidance_that_would_be_ignored_is_said(name: str, options: dict, sentence: str):
    with pytest.raises(InputError, match=sentence):
        loaded(tiny(name), **options)


def test_a_negative_prompt_of_flux_is_in_the_readme(tmp_path):
    prior = loaded(tiny("flux"), negative_prompt="ugly", true_cfg_scale=2.0)
    folder = prior.draw(PROMPTS, brightness).posterior(LORA).export(tmp_path / "lora")
    readme = (folder / "README.md").read_text("utf-8")
    assert "negative_prompt='ugly', true_cfg_scale=2.0" in readme


def test_an_unknown_pipeline_is_said():
    class KandinskyPipeline:
        text_encoder = object()

    with pytest.raises(InputError, match=r"KandinskyPipeline is no pipeline .* StableDiffusionPip"):
        dt.load(KandinskyPipeline())
    with pytest.raises(InputError, match="reads no prompts"):
        text_to_image_model(object(), 3)


def test_a_prompt_without_a_class_is_said():
    prior = loaded(tiny("dit"))
    assert torch.equal(prior.sample(["cat"], 1), prior.sample(["3"], 1))
    with pytest.raises(InputError, match="'fox' names no class of this DiTPipeline"):
        prior.rows(["fox"])


def test_no_bound_prompt_and_no_reward_are_said():
    prior = loaded(tiny("sd"), guidance_scale=1.0)
    with pytest.raises(InputError, match="wants a prompt for each sample"):
        rollout(prior.model.chain, 2)
    with pytest.raises(RewardError, match="must be callable as"):
        prior.draw(PROMPTS, lambda: 0.0)


def test_guidance_is_an_option_of_text_to_image_alone(tiny_pipeline):
    with pytest.raises(InputError, match="no option 'guidance_scale'; options are steps, eta"):
        dt.load(tiny_pipeline, guidance_scale=3.0)


def test_a_copy_of_a_prior_shares_prompts_and_not_the_network():
    model = loaded(tiny("sd")).model
    other = copy.deepcopy(model.chain.denoiser)
    assert other.denoiser.table is model.table
    assert other.denoiser.network is not model.family.network
