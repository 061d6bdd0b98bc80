"""An exported posterior is an ordinary pipeline that draws our samples."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor

from difftilt.adapters.diffusers import chain_from_pipeline, drift_unet
from difftilt.adapters.export import PipelineChain
from difftilt.adapters.lora import lora
from difftilt.chains.chain import Chain, Kernel
from difftilt.chains.fingerprints import fingerprint
from difftilt.chains.rollouts import rollout
from difftilt.errors import CheckpointError, InputError
from difftilt.kernels.networks import full_copy
from difftilt.noise import GeneratorNoise

FORMS = {
    "full copy": full_copy,
    "attention": lambda chain: lora(chain, rank=2),
    "all layers": lambda chain: lora(chain, rank=2, targets="all"),
}


@pytest.fixture
def record(tiny_pipeline: SimpleNamespace) -> PipelineChain:
    return chain_from_pipeline(tiny_pipeline, steps=10)


def moved(chain: Chain, form: str) -> Kernel:
    """A kernel of some form, away from the prior."""
    kernel = FORMS[form](chain)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return kernel


def drawn(chain: Chain) -> Tensor:
    """All states of four paths, x_N first."""
    return rollout(chain, 4, GeneratorNoise(torch.Generator().manual_seed(1))).states.flip(0)


def loop(unet, scheduler, eta: float | None = None) -> Tensor:
    """The states of diffusers' usual sampling loop, with the noise of ``drawn``."""
    generator = torch.Generator().manual_seed(1)
    scheduler.set_timesteps(10)
    states = [torch.randn((4, 1, 8, 8), generator=generator) * scheduler.init_noise_sigma]
    settings = {} if eta is None else {"eta": eta}
    with torch.no_grad():
        for time in scheduler.timesteps:
            x = states[-1]
            output = unet(scheduler.scale_model_input(x, time), time).sample
            states.append(
                scheduler.step(output, time, x, generator=generator, **settings).prev_sample
            )
    return torch.stack(states)


def settings_of(scheduler) -> dict:
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


def assert_same_states(ours: Tensor, theirs: Tensor) -> None:
    scale = ours.abs().flatten(1).amax(1).clamp(min=1)[:, None, None, None, None]
    assert torch.allclose(ours / scale, theirs / scale, rtol=0, atol=2e-5)


# Its last step, from time 1 to the scheduler's alpha_0 < 1, is stochastic.
ENDS_IN_A_LAW = {"set_alpha_to_one": False, "steps_offset": 1}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("prediction_type", "clip"), [("epsilon", True), ("v_prediction", False)])
def test_plain_diffusers_draws_our_samples(
    tmp_path: Path, tiny_unet, form: str, prediction_type: str, clip: bool
):
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=clip, **ENDS_IN_A_LAW)
    pipeline = SimpleNamespace(unet=tiny_unet(), scheduler=scheduler)
    record = chain_from_pipeline(pipeline, steps=10, eta=0.7)
    kernel = moved(record.chain, form)
    folder = record.export(kernel, tmp_path / "posterior")
    plain = DDIMPipeline.from_pretrained(folder)
    ours = drawn(record.chain.tilted(kernel))
    assert_same_states(ours, loop(plain.unet.eval(), plain.scheduler, eta=0.7))

    plain.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 10, "output_type": "pt"}
    images = plain(4, torch.Generator().manual_seed(1), eta=0.7, **settings).images
    assert torch.allclose((ours[-1] / 2 + 0.5).clamp(0, 1), images, rtol=0, atol=2e-5)
    assert float((ours[-1] - drawn(record.chain)[-1]).abs().max()) > 0.005


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(clip_sample=False, prediction_type="v_prediction"),
        DDPMScheduler(variance_type="fixed_large"),
        EulerAncestralDiscreteScheduler(prediction_type="v_prediction"),
    ],
    ids=["ddpm", "ddpm-clipped", "euler"],
)
def test_all_but_a_last_step_without_noise_are_the_same(
    tmp_path: Path, tiny_unet, form: str, scheduler
):
    pipeline = SimpleNamespace(unet=tiny_unet(), scheduler=scheduler)
    record = chain_from_pipeline(pipeline, steps=10)
    kernel = moved(record.chain, form)
    plain = DDPMPipeline.from_pretrained(record.export(kernel, tmp_path / "posterior"))
    assert type(plain.scheduler) is type(scheduler)
    assert settings_of(plain.scheduler) == settings_of(scheduler)
    ours = drawn(record.chain.tilted(kernel))
    theirs = loop(plain.unet.eval(), plain.scheduler)
    assert_same_states(ours[:-1], theirs[:-1])
    with torch.no_grad():
        level = record.chain.diffusion.level(1, theirs)
        own = kernel.denoiser(ours[-2], level)
    clip = record.chain.diffusion.clip
    own = own if clip is None else own.clamp(-clip, clip)
    assert torch.allclose(theirs[-1], own, rtol=0, atol=1e-4)


def test_the_live_network_is_not_touched(tmp_path: Path, record: PipelineChain):
    kernel = moved(record.chain, "all layers")
    prior, posterior = drawn(record.chain), drawn(record.chain.tilted(kernel))
    record.export(kernel, tmp_path / "posterior")
    assert torch.equal(drawn(record.chain), prior)
    assert torch.equal(drawn(record.chain.tilted(kernel)), posterior)
    assert fingerprint(record.unet) == record.fingerprint


def test_one_of_two_adapters_is_exported(tmp_path: Path, record: PipelineChain):
    moved(record.chain, "all layers")
    kernel = moved(record.chain, "attention")
    folder = record.export(kernel, tmp_path / "posterior")
    plain = DDPMPipeline.from_pretrained(folder)
    theirs = loop(plain.unet.eval(), plain.scheduler)
    assert_same_states(drawn(record.chain.tilted(kernel))[:-1], theirs[:-1])


def test_a_full_copy_of_an_adapted_prior_is_a_plain_unet(tmp_path: Path, record: PipelineChain):
    moved(record.chain, "all layers")
    kernel = moved(record.chain, "full copy")
    plain = DDPMPipeline.from_pretrained(record.export(kernel, tmp_path / "posterior"))
    assert (
        plain.unet.state_dict().keys()
        == UNet2DModel.from_config(plain.unet.config).state_dict().keys()
    )
    theirs = loop(plain.unet.eval(), plain.scheduler)
    assert_same_states(drawn(record.chain.tilted(kernel))[:-1], theirs[:-1])


def test_the_adapter_alone_loads_in_peft(tmp_path: Path, record: PipelineChain, tiny_unet):
    from peft import PeftModel

    kernel = moved(record.chain, "attention")
    folder = record.export(kernel, tmp_path / "posterior")
    unet = PeftModel.from_pretrained(tiny_unet().eval(), str(folder / "lora"))
    theirs = loop(unet, DDPMScheduler())
    assert_same_states(drawn(record.chain.tilted(kernel))[:-1], theirs[:-1])


def test_nothing_is_pickled(tmp_path: Path, record: PipelineChain):
    folder = record.export(moved(record.chain, "attention"), tmp_path / "posterior")
    files = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert files <= {".json", ".safetensors", ".md"}


def test_an_older_pipeline_is_replaced_whole(tmp_path: Path, record: PipelineChain):
    folder = tmp_path / "posterior"
    record.export(moved(record.chain, "attention"), folder)
    kernel = moved(record.chain, "full copy")
    record.export(kernel, folder)
    assert not (folder / "lora").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["posterior"]


def test_other_files_are_not_overwritten(tmp_path: Path, record: PipelineChain):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds files that are no diffusers pipeline"):
        record.export(full_copy(record.chain), tmp_path)
    with pytest.raises(InputError, match="is a file"):
        record.export(full_copy(record.chain), tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failed_export_leaves_the_older_one(
    tmp_path: Path, record: PipelineChain, monkeypatch: pytest.MonkeyPatch
):
    folder = record.export(full_copy(record.chain), tmp_path / "posterior")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("difftilt.adapters.export.save_file", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        record.export(moved(record.chain, "attention"), folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["posterior"]


def test_what_cannot_be_exported_is_said(tmp_path: Path, record: PipelineChain, tiny_unet):
    other = chain_from_pipeline(
        SimpleNamespace(unet=tiny_unet(), scheduler=DDPMScheduler()), steps=10
    )
    for kernel in (
        drift_unet(record.chain),
        full_copy(record.chain, learned_variance=True),
        lora(other.chain, rank=1),
    ):
        with pytest.raises(
            InputError, match="cannot be exported; plain diffusers runs a full copy"
        ):
            record.export(kernel, tmp_path / "posterior")
    assert not list(tmp_path.iterdir())


def test_the_config_of_a_lora_names_its_layers(tmp_path: Path, record: PipelineChain):
    folder = record.export(moved(record.chain, "attention"), tmp_path / "posterior")
    config = json.loads((folder / "lora" / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["lora_alpha"] == 2
    shutil.rmtree(folder / "lora")
    DDPMPipeline.from_pretrained(folder)
