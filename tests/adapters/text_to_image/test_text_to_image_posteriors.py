"""From a saved pipeline to exported weights that plain diffusers draws the same pictures with."""

import json
import re
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import difftilt as dt
from difftilt.chains.rollouts import rollout
from difftilt.text_to_image import TextToImagePosterior
from plain_diffusers import PROMPTS, SCALE, SIZES, STEPS, noise_of, plain

FAMILIES = ("sd", "sdxl", "sd3", "sd3_ode", "flux", "flux_ode", "pixart_sigma", "dit")
WITH_ADAPTERS = ("sd", "sdxl", "sd3", "sd3_ode", "flux", "flux_ode")
ENDS_IN_A_MAP = ("sd3", "sd3_ode", "flux", "flux_ode")  # flow matching: the last level has no noise
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


def from_readme(source: Path, folder: Path, script: Path) -> tuple[Any, dict[str, Any]]:
    """The pipeline that an exported README makes, and what it tells its call; the lines are run."""
    code = re.search(r"```python\n(.*)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    assert code is not None
    lines = code[1].replace("THE PRIOR", str(source)).replace("THIS FOLDER", str(folder))
    call = r"^pictures = pipeline\(.*?, (num_inference_steps.*)\)\.images$"
    script.write_text(re.sub(call, r"told = dict(\1)", lines, flags=re.MULTILINE), "utf-8")
    made = runpy.run_path(str(script))
    made["pipeline"].set_progress_bar_config(disable=True)
    return made["pipeline"], made["told"]


def test_plain_diffusers_draws_the_same_pictures(case: Case, tmp_path: Path):
    ours, _ = states(case.posterior, case.name)
    ours = ours[-1]
    pipeline, told = from_readme(case.source, case.folder, tmp_path / "shown.py")
    has_callback = "callback_on_step_end" in told
    assert has_callback == (case.name in ENDS_IN_A_MAP)
    if case.name == "dit":  # its pipeline steps without noise, so that ours runs it
        again = dt.load(case.folder, steps=STEPS, guidance_scale=SCALE)
        theirs = rollout(again.model.chain.given(again.rows(PROMPTS)), 2, noise_of("dit")).x_0
    else:
        theirs = plain(pipeline, case.name, **told)
    assert ("another law" in (case.folder / "README.md").read_text("utf-8")) == (case.name == "dit")
    moved = float((ours - prior_states(case.start, case.name)[-1]).abs().max())
    error = float((ours - theirs).abs().max())
    assert error < 2e-4 * max(1.0, float(ours.abs().max())) and error < 0.05 * moved


@pytest.mark.parametrize("name", ["sd3_ode", "flux_ode"])
def test_steps_that_plain_diffusers_lacks_are_said(pipelines: Path, tmp_path: Path, name: str):
    """At other eta the README draws from the ODE, says so, and hands on to our steps."""
    torch.manual_seed(3)
    settings: dict[str, Any] = {"steps": STEPS, "guidance_scale": SCALE, "eta": 0.5}
    posterior = dt.load(pipelines / name, **settings, **SIZES).draw(PROMPTS, redness).posterior()
    with torch.no_grad():
        for parameter in posterior.posterior.chain.kernel.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder = posterior.export(tmp_path / "exported")
    readme = (folder / "README.md").read_text("utf-8")
    assert "another law than the posterior's: the SDE at eta=0.5" in readme
    assert "difftilt.load(pipeline, steps=3, eta=0.5, guidance_scale=3.0)" in readme
    ours, _ = states(posterior, name)
    pipeline, told = from_readme(pipelines / name, folder, tmp_path / "shown.py")
    distance = (ours[-1] - plain(pipeline, name, **told)).abs().max()
    assert float(distance) > 0.05 * float(ours[-1].std())
    again = dt.load(pipeline, **settings, **SIZES)
    chain = again.model.chain.given(again.rows(PROMPTS))
    theirs = rollout(chain, len(PROMPTS), noise_of(name)).states.flip(0)
    assert torch.allclose(ours[:-1], theirs[:-1], rtol=0, atol=2e-4 * float(ours.abs().max()))


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
