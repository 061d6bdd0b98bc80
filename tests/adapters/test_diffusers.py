"""Our chain is the scheduler's: every step, with the same noise, under every setting."""

import copy
from itertools import pairwise
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
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor, nn

from difftilt.adapters.diffusers import chain_from_pipeline, drift_unet, fingerprint
from difftilt.adapters.schedulers import SchedulerDiffusion, diffusion_from_scheduler
from difftilt.chains import Chain, rollout
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise, Noise

SHAPE = (3, 4, 4)
# Relative to the largest entry of the states that a step maps between.
TOLERANCE = 1e-5


class Recorded(Noise):
    """Hands out normals and keeps them."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn: list[Tensor] = []

    def normal(self, like: Tensor) -> Tensor:
        self.drawn.append(torch.randn(like.shape, generator=self.generator))
        return self.drawn[-1]

    def uniform(self, like: Tensor) -> Tensor:
        raise NotImplementedError


class Bounded(nn.Module):
    """A smooth network of bounded output, with as many channels as asked for."""

    def __init__(self, channels: int = SHAPE[0]) -> None:
        super().__init__()
        self.mix = nn.Conv2d(SHAPE[0], channels, 3, padding=1)
        self.times: list[Tensor] = []

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.times.append(time)
        phase = (time / 300).to(x.dtype)[:, None, None, None]
        return 1.3 * torch.sin(self.mix(x) + phase)


def chain_of(found: SchedulerDiffusion, network: nn.Module) -> Chain:
    return Chain(found.denoiser(network), found.diffusion, SHAPE)


def tiny_unet(**config) -> UNet2DModel:
    settings = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    torch.manual_seed(7)
    return UNet2DModel(**(settings | config))


class Replayed:
    """diffusers' ``randn_tensor`` handing out recorded noise in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scheduler, noise: list[Tensor]) -> None:
        self.noise = iter(noise)
        module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(self.noise))


def compare_steps(scheduler, steps: int, network: nn.Module, eta: float = 1.0, **step) -> None:
    """Each of our transitions against ``scheduler.step`` from the same state with the same noise."""
    found = diffusion_from_scheduler(scheduler, steps, eta)
    chain = chain_of(found, network)
    noise = Recorded()
    path = rollout(chain, 3, noise)
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    drawn = iter(noise.drawn)
    start = next(drawn) * own.init_noise_sigma if hasattr(own, "init_noise_sigma") else next(drawn)
    assert torch.allclose(path.states[-1], start, rtol=1e-6)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for n, time in zip(range(steps, 0, -1), own.timesteps, strict=True):
            x = path.states[n]
            stochastic = found.diffusion.has_density(n)
            here = next(drawn) if stochastic else torch.zeros_like(x)
            Replayed(patch, own, [here])
            seen = own.scale_model_input(x, time) if hasattr(own, "scale_model_input") else x
            output = network(seen, time.expand(len(x)))
            after = own.step(output, time, x, **step).prev_sample
            scale = max(1.0, float(x.abs().max()))
            assert torch.allclose(path.states[n - 1], after, rtol=0, atol=TOLERANCE * scale), n
    assert next(drawn, None) is None


STEPS_AND_SPACING = [(1000, "leading"), (50, "leading"), (7, "trailing"), (10, "linspace")]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [None, 1.0, 0.3])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm_step(prediction_type: str, clip: float | None, variance_type: str):
    scheduler = DDPMScheduler(
        prediction_type=prediction_type,
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        variance_type=variance_type,
    )
    compare_steps(scheduler, 20, Bounded())


@pytest.mark.parametrize(("steps", "spacing"), STEPS_AND_SPACING)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddpm_step_on_every_spacing(steps: int, spacing: str, schedule: str):
    scheduler = DDPMScheduler(timestep_spacing=spacing, beta_schedule=schedule)
    compare_steps(scheduler, steps, Bounded())
