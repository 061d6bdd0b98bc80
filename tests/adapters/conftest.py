"""Tiny pipelines: random UNets with attention, small enough to run in milliseconds."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def tiny_unet() -> Callable:
    """Makes UNet2DModels of 8x8 grey images, the same weights each time; settings override."""
    from diffusers import UNet2DModel

    def make(**settings):
        config = {
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        }
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return UNet2DModel(**(config | settings))

    return make


@pytest.fixture
def tiny_pipeline(tiny_unet) -> SimpleNamespace:
    """A live object with a UNet and a DDPM scheduler."""
    from diffusers import DDPMScheduler

    return SimpleNamespace(unet=tiny_unet(), scheduler=DDPMScheduler())
