"""Stable Diffusion 1.x and 2.x, and Stable Diffusion XL: a UNet that attends to text.

Source: Rombach et al. 2022 (arXiv 2112.10752); Podell et al. 2023 (arXiv 2307.01952).
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from difftilt.adapters.text_to_image.base import Call, Family, Inputs


@final
class StableDiffusion(Family):
    """``StableDiffusionPipeline``."""

    pipelines = ("StableDiffusionPipeline",)
    network_name = "unet"

    @property
    def call(self) -> Call:
        return _plain

    def inputs(self, prompts: list[str]) -> Inputs:
        text, _ = self.pipeline.encode_prompt(prompts, self.pipeline.device, 1, False)
        return {"text": text}

    def null(self) -> Inputs:
        _, text = self.pipeline.encode_prompt(
            "", self.pipeline.device, 1, True, self.options.negative_prompt
        )
        return {"text": text}


@final
class StableDiffusionXL(Family):
    """``StableDiffusionXLPipeline``: two text encoders, and the sizes of the picture."""

    pipelines = ("StableDiffusionXLPipeline",)
    network_name = "unet"
    needed = ("vae", "text_encoder_2", "tokenizer_2")

    @property
    def call(self) -> Call:
        return _with_sizes

    def inputs(self, prompts: list[str]) -> Inputs:
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.pipeline.device, do_classifier_free_guidance=False
        )
        return self._inputs(text, pooled)

    def null(self) -> Inputs:
        _, text, _, pooled = self.pipeline.encode_prompt(
            "", device=self.pipeline.device, negative_prompt=self.options.negative_prompt
        )
        return self._inputs(text, pooled)

    def readers(self) -> Sequence[tuple[Any, int]]:
        found = [self.pipeline.tokenizer, self.pipeline.tokenizer_2]
        return [(each, each.model_max_length) for each in found if each is not None]

    def unscaled(self, latents: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return latents / config.scaling_factor
        shape = (1, len(config.latents_mean), 1, 1)
        mean, std = (latents.new_tensor(v) for v in (config.latents_mean, config.latents_std))
        return latents * std.view(shape) / config.scaling_factor + mean.view(shape)

    def _inputs(self, text: Tensor, pooled: Tensor) -> Inputs:
        # The original size, the corner of the crop, the target size.
        sizes = [*self.size, 0, 0, *self.size]
        row = torch.tensor([sizes], dtype=pooled.dtype, device=pooled.device)
        return {"text": text, "pooled": pooled, "sizes": row.expand(len(pooled), -1)}


def _plain(network: nn.Module, x: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
    return network(x, time, encoder_hidden_states=inputs["text"], return_dict=False)[0]


def _with_sizes(network: nn.Module, x: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
    added = {"text_embeds": inputs["pooled"], "time_ids": inputs["sizes"]}
    return network(
        x,
        time,
        encoder_hidden_states=inputs["text"],
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
