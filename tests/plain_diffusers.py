"""Pictures drawn by plain diffusers with the noise of a chain's rollout."""

from typing import Any

import torch
from torch import Tensor

from difftilt.adapters.text_to_image.flow import packed, unpacked
from difftilt.noise import GeneratorNoise, Noise

STEPS = 3
SCALE = 3.0
PROMPTS = ["cat", "dog"]
SIZES = {"height": 16, "width": 16}


class PackedNoise(GeneratorNoise):
    """Normals in the order in which Flux draws them: x_N as latents, then each step as tokens."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(generator)
        self.first = True

    def normal(self, like: Tensor) -> Tensor:
        if self.first:
            self.first = False
            return super().normal(like)
        height, width = like.shape[2] // 2, like.shape[3] // 2
        return unpacked(super().normal(packed(like)), height, width)


def noise_of(name: str, seed: int = 5) -> Noise:
    """The noise of a rollout that is to be compared with ``plain_latents``."""
    generator = torch.Generator().manual_seed(seed)
    return PackedNoise(generator) if name.startswith("flux") else GeneratorNoise(generator)


def plain(pipeline: Any, name: str, seed: int = 5, eta: float = 1.0, **settings: Any) -> Tensor:
    """What the pipeline's own ``__call__`` draws: latents, but pictures of DiT."""
    settings = {"num_inference_steps": STEPS, "guidance_scale": SCALE} | settings
    if name == "dit":
        labels = pipeline.get_label_ids(list(PROMPTS))
        generator = torch.Generator().manual_seed(seed)
        return pipeline(labels, generator=generator, output_type="pt", **settings).images
    settings = SIZES | {"output_type": "latent"} | settings
    if name.startswith(("sd3", "flux")):
        # Their pipelines leave the steps' noise to the global generator.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            images = pipeline(PROMPTS, **settings).images
        is_packed = name.startswith("flux") and settings["output_type"] == "latent"
        return unpacked(images, 4, 4) if is_packed else images
    if name.startswith("pixart"):
        settings |= {"use_resolution_binning": False, "clean_caption": False}
    generator = torch.Generator().manual_seed(seed)
    return pipeline(PROMPTS, generator=generator, eta=eta, **settings).images
