"""A pipeline's chain runs the pipeline, and what cannot be read is said in a sentence."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
)

from difftilt.adapters.diffusers import chain_from_pipeline, drift_unet
from difftilt.adapters.export import PipelineChain
from difftilt.adapters.lora import lora
from difftilt.chains.chain import Chain
from difftilt.chains.fingerprints import fingerprint
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import backward, log_ratio
from difftilt.denoisers import NetworkDenoiser
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise
from difftilt.schedules import VariancePreserving


def noise(seed: int = 1) -> GeneratorNoise:
    return GeneratorNoise(torch.Generator().manual_seed(seed))


def pixels(x_0: torch.Tensor) -> torch.Tensor:
    """What a pipeline makes of its last state."""
    return (x_0 / 2 + 0.5).clamp(0, 1)


def test_a_saved_ddpm_pipeline_draws_our_samples(tiny_unet, tmp_path: Path):
    scheduler = DDPMScheduler(prediction_type="v_prediction", variance_type="fixed_large")
    DDPMPipeline(tiny_unet(), scheduler).save_pretrained(tmp_path / "prior")
    record = chain_from_pipeline(tmp_path / "prior", steps=10)
    assert record.chain.event_shape == (1, 8, 8)
    ours = rollout(record.chain, 4, noise()).x_0

    pipeline = DDPMPipeline.from_pretrained(tmp_path / "prior")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    theirs = pipeline(4, generator, num_inference_steps=10, output_type="pt").images
    assert torch.allclose(pixels(ours), theirs, rtol=0, atol=2e-6)
    assert float(theirs.std()) > 0.05


def test_a_live_ddim_pipeline_draws_our_samples(tiny_unet):
    pipeline = DDIMPipeline(tiny_unet(), DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    record = chain_from_pipeline(pipeline, steps=10, eta=0.6)
    ours = rollout(record.chain, 4, noise()).x_0
    theirs = pipeline(
        4, torch.Generator().manual_seed(1), eta=0.6, num_inference_steps=10, output_type="pt"
    ).images
    assert torch.allclose(pixels(ours), theirs, rtol=0, atol=2e-6)


def test_the_prior_is_frozen_and_in_eval_mode(tiny_pipeline):
    unet = tiny_pipeline.unet.train()
    record = chain_from_pipeline(tiny_pipeline, steps=5)
    assert record.unet is unet and not unet.training
    assert not any(parameter.requires_grad for parameter in unet.parameters())


def test_states_stay_in_float32_under_a_half_precision_network(tiny_pipeline):
    full = rollout(chain_from_pipeline(tiny_pipeline, steps=5).chain, 2, noise()).x_0
    tiny_pipeline.unet.to(torch.bfloat16)
    half = rollout(chain_from_pipeline(tiny_pipeline, steps=5).chain, 2, noise()).x_0
    assert half.dtype == torch.float32
    assert 0 < float((half - full).abs().max()) < 0.2


def test_the_fingerprint_is_of_the_weights(tiny_pipeline, tiny_unet, tmp_path: Path):
    record = chain_from_pipeline(tiny_pipeline, steps=5)
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    assert chain_from_pipeline(str(tmp_path), steps=8).fingerprint == record.fingerprint
    lora(record.chain, rank=2)
    assert fingerprint(record.unet) == record.fingerprint
    with torch.no_grad():
        record.unet.conv_in.bias[0] += 1e-3
    assert fingerprint(record.unet) != record.fingerprint


def test_a_missing_folder_is_said(tmp_path: Path):
    with pytest.raises(InputError, match=r"no pipeline folder at .*absent; give a folder"):
        chain_from_pipeline(tmp_path / "absent", steps=5)
    with pytest.raises(InputError, match=r"holds no model_index.json"):
        chain_from_pipeline(tmp_path, steps=5)


def test_a_damaged_folder_is_said(tiny_unet, tmp_path: Path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="neither a readable pipeline folder nor a reachable"):
        chain_from_pipeline(tmp_path, steps=5)


def test_an_unreachable_hub_id_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"nobody/nothing is neither .* reachable hub id"):
        chain_from_pipeline("nobody/nothing", steps=5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sample_size": None}, "no sample_size"),
        ({"num_class_embeds": 10}, "conditioned on class labels"),
        ({"out_channels": 2}, "returns 2 channels where its scheduler needs 1"),
    ],
)
def test_an_unsupported_unet_is_said(tiny_pipeline, tiny_unet, settings: dict, sentence: str):
    tiny_pipeline.unet = tiny_unet(**settings)
    with pytest.raises(InputError, match=sentence):
        chain_from_pipeline(tiny_pipeline, steps=5)


def test_a_pipeline_of_something_else_is_said(tiny_pipeline):
    tiny_pipeline.unet = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"needs .unet .* got SimpleNamespace with unet Linear"):
        chain_from_pipeline(tiny_pipeline, steps=5)


def trained(record: PipelineChain, kernel) -> float:
    """The largest change of Λ by one gradient step."""
    posterior = record.chain.tilted(kernel)
    path = rollout(posterior, 3, noise())
    optimizer = torch.optim.SGD(kernel.parameters(), lr=1e-3)
    backward(posterior, path, torch.tensor([1.0, -2.0, 0.5]))
    optimizer.step()
    with torch.no_grad():
        return float((log_ratio(posterior, path) - path.log_ratio).abs().max())


def test_drift_unet_starts_at_zero_and_learns(tiny_pipeline, generator: torch.Generator):
    record = chain_from_pipeline(tiny_pipeline, steps=5)
    state = torch.random.get_rng_state()
    kernel = drift_unet(record.chain, generator=generator)
    assert torch.equal(torch.random.get_rng_state(), state)
    path = rollout(record.chain.tilted(kernel), 3, noise())
    assert torch.equal(path.states, rollout(record.chain, 3, noise()).states)
    assert torch.equal(path.log_ratio, torch.zeros(3))
    assert trained(record, kernel) > 1e-3


def test_drift_unet_is_smaller_and_reproducible(tiny_pipeline):
    record = chain_from_pipeline(tiny_pipeline, steps=5)

    def weights(shrink: int, seed: int) -> torch.Tensor:
        kernel = drift_unet(record.chain, shrink, torch.Generator().manual_seed(seed))
        return torch.nn.utils.parameters_to_vector(kernel.parameters())

    assert torch.equal(weights(2, seed=3), weights(2, seed=3))
    assert not torch.equal(weights(2, seed=3), weights(2, seed=4))
    prior = sum(parameter.numel() for parameter in record.unet.parameters())
    assert len(weights(4, seed=0)) <= len(weights(2, seed=0)) < len(weights(1, seed=0)) == prior


def test_drift_unet_sees_unit_variance_input_on_large_sigmas(tiny_pipeline):
    tiny_pipeline.scheduler = EulerAncestralDiscreteScheduler()
    record = chain_from_pipeline(tiny_pipeline, steps=5)
    kernel = drift_unet(record.chain)
    seen = []
    kernel.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].std()))
    rollout(record.chain.tilted(kernel), 16, noise())
    assert float(seen[0]) == pytest.approx(1.0, abs=0.1)


def test_drift_unet_refuses_other_networks(tiny_pipeline):
    diffusion = GaussianDiffusion(VariancePreserving().levels(4))
    other = Chain(NetworkDenoiser(torch.nn.Linear(2, 2)), diffusion, (2,))
    with pytest.raises(InputError, match="drift_unet needs a chain whose network is a diffusers"):
        drift_unet(other)
    with pytest.raises(InputError, match="at least 1, got 0"):
        drift_unet(chain_from_pipeline(tiny_pipeline, steps=5).chain, shrink=0)
