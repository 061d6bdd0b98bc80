"""From a saved pipeline to exported weights that plain diffusers draws the same pictures with."""

import json
import re
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import difftilt as dt
from difftilt.rollouts import rollout
from difftilt.text_to_image import TextToImagePosterior
from plain_diffusers import PROMPTS, SCALE, SIZES, STEPS, noise_of, plain

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart_sigma", "dit")
ENDS_IN_A_MAP = ("sd3", "flux")  # flow matching: the last level has no noise
ON_POLICY = dt.BehaviourWeights(on_policy=1, pool=0)
FIVE_UPDATES: dict[str, Any] = {
    "steps": 5,
    "batch": 4,
    "chunk": 8,
    "paths_per_condition": 2,
    "warm_start": 0.0,
    "behaviour": ON_POLICY,
    "optimisation": dt.Optimisation(learning_rate=0.02, ema=0.0, decay_from=1.0),
}


def redness(pictures: Tensor, prompts: list[str]) -> Tensor:
    """Prefers red cats and blue dogs."""
    signs = torch.tensor([1.0 if "cat" in prompt else -1.0 for prompt in prompts])
    return 3 * signs * (pictures[:, 0] - pictures[:, 2]).mean((1, 2))


@dataclass(frozen=True)
class Case:
    """A family, its prior, its posterior after five updates, its folder of exported weights."""

    name: str
    source: Path
    start: TextToImagePosterior
    posterior: TextToImagePosterior
    folder: Path


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, pipelines: Path, tmp_path_factory) -> Case:
    torch.manual_seed(3)
    name = request.param
    sizes = {} if name == "dit" else SIZES
    prior = dt.load(pipelines / name, steps=STEPS, guidance_scale=SCALE, **sizes)
    task = prior.draw(PROMPTS, redness)
    start = task.posterior()
    posterior = task.fit(dt.RTB(), **FIVE_UPDATES)
    folder = posterior.export(tmp_path_factory.mktemp(name) / "exported")
    return Case(name, pipelines / name, start, posterior, folder)


def states(posterior: TextToImagePosterior, name: str) -> tuple[Tensor, Tensor]:
    """States x_N ... x_0 of one picture per prompt, and Λ."""
    chain = posterior.posterior.chain.given(posterior.task.prior.rows(PROMPTS))
    path = rollout(chain, len(PROMPTS), noise_of(name))
    assert path.log_ratio is not None
    return path.states.flip(0), path.log_ratio


def prior_states(posterior: TextToImagePosterior, name: str) -> Tensor:
    return states(posterior.task.prior_sampler(), name)[0]


def test_a_posterior_starts_at_its_prior_to_the_bit(case: Case):
    found, ratio = states(case.start, case.name)
    assert torch.equal(found, prior_states(case.start, case.name))
    assert torch.equal(ratio, torch.zeros(2))


def test_five_updates_move_it_and_leave_the_prior(case: Case):
    found, ratio = states(case.posterior, case.name)
    before = prior_states(case.start, case.name)
    assert not torch.equal(found, before)
    assert (ratio != 0).all()
    assert torch.equal(prior_states(case.posterior, case.name), before)


def test_it_draws_and_certifies_each_prompt(case: Case):
    pictures = case.posterior.sample(2, seed=1)
    assert pictures.shape == (2, 2, 3, 16, 16)
    assert float(pictures.min()) >= 0 and float(pictures.max()) <= 1
    alone = case.posterior.sample(1, ["dog"], seed=1)
    assert torch.allclose(pictures[1:, :1], alone, rtol=0, atol=1e-4)
    certificate = case.posterior.certify_each(8)
    assert certificate.names == tuple(PROMPTS)
    assert 0 < certificate.ess <= 1


def plain_pipeline(case: Case, source: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(source)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_plain_diffusers_draws_the_same_pictures(case: Case, tmp_path: Path):
    ours, _ = states(case.posterior, case.name)
    ours = ours[-1]
    if case.name in ("sd", "sdxl", "sd3", "flux"):
        pipeline = plain_pipeline(case, case.source)
        pipeline.load_lora_weights(case.folder)
        callback = _from_readme(case.folder, tmp_path / "shown.py")
        assert (callback is not None) == (case.name in ENDS_IN_A_MAP)
        settings = {} if callback is None else {"callback_on_step_end": callback}
        theirs = plain(pipeline, case.name, **settings)
    elif case.name == "dit":  # its pipeline steps without noise, so that ours runs it
        again = dt.load(case.folder, steps=STEPS, guidance_scale=SCALE)
        theirs = rollout(again.model.chain.given(again.rows(PROMPTS)), 2, noise_of("dit")).x_0
    else:
        theirs = plain(plain_pipeline(case, case.folder), case.name)
    moved = float((ours - prior_states(case.start, case.name)[-1]).abs().max())
    error = float((ours - theirs).abs().max())
    assert error < 2e-4 * max(1.0, float(ours.abs().max())) and error < 0.05 * moved


def _from_readme(folder: Path, script: Path) -> Any:
    """The callback that the README shows, run as a script; None where it shows none."""
    readme = (folder / "README.md").read_text("utf-8")
    found = re.search(r"^def (\w+).*?(?=^\S)", readme, re.MULTILINE | re.DOTALL)
    if found is None:
        return None
    script.write_text(found.group(0), "utf-8")
    return runpy.run_path(str(script))[found.group(1)]


def test_the_settings_are_beside_the_weights(case: Case):
    settings = json.loads((case.folder / "difftilt.json").read_text("utf-8"))
    assert settings["steps"] == STEPS and settings["guidance_scale"] == SCALE
    assert settings["pipeline"] == type(case.posterior.task.prior.model.family.pipeline).__name__


STRENGTHS = {**FIVE_UPDATES, "optimisation": dt.Optimisation(learning_rate=0.2, ema=0.0)}


def strengths(posterior: TextToImagePosterior) -> Tensor:
    kernel = posterior.posterior.chain.kernel
    return dict(kernel.named_parameters())["strength.weight"]


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_strengths_of_one_are_guidance_of_scale_two(pipelines: Path, name: str):
    """The prior without guidance, moved once along its direction, is the guided prior."""
    plain_prior, guided = (
        dt.load(pipelines / name, steps=STEPS, guidance_scale=scale, **SIZES) for scale in (1, 2)
    )
    posterior = plain_prior.draw(PROMPTS, redness).posterior(dt.LearnedGuidance())
    wanted = prior_states(guided.draw(PROMPTS, redness).prior_sampler(), name)
    with torch.no_grad():
        strengths(posterior).fill_(1.0)
    found, ratio = states(posterior, name)
    # A last step that is a map is shared with the plain prior.
    until = -1 if name in ENDS_IN_A_MAP else None
    assert torch.allclose(found[:until], wanted[:until], rtol=1e-4, atol=1e-5)
    assert (ratio != 0).all()


@pytest.mark.parametrize("beside", [None, dt.LoRA(rank=2)], ids=repr)
def test_learned_guidance_starts_at_the_prior_and_moves(pipelines: Path, tmp_path, beside):
    torch.manual_seed(3)
    prior = dt.load(pipelines / "sd", steps=STEPS, guidance_scale=SCALE, **SIZES)
    task, form = prior.draw(PROMPTS, redness), dt.LearnedGuidance(beside)
    start = task.posterior(form)
    found, ratio = states(start, "sd")
    before = prior_states(start, "sd")
    assert torch.equal(found, before) and torch.equal(ratio, torch.zeros(2))
    calls = task.target.prior.chain.calls
    seen = calls.prior
    posterior = task.fit(dt.RTB(), form=form, **STRENGTHS)
    # The unconditional half is a network call like the prediction itself.
    assert calls.prior - seen >= 2 * 5 * 4 * STEPS
    moved = strengths(posterior)[0].detach()
    assert float(moved[0]) == 0 and (moved[task.target.prior.chain.density_steps] != 0).all()
    assert torch.equal(prior_states(posterior, "sd"), before)
    assert len(posterior.certify_each(8).each) == len(PROMPTS)
    with pytest.raises(dt.InputError, match="LearnedGuidanceKernel"):
        posterior.export(tmp_path / "no")


def test_learned_guidance_needs_an_empty_condition():
    target = dt.latent(lambda z: z, event_shape=(2,), steps=3).tilt(lambda z: -z.square().sum(1))
    with pytest.raises(dt.InputError, match="knows no empty condition"):
        target.posterior(dt.LearnedGuidance())
