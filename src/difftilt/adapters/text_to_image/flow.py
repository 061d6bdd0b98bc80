"""Stable Diffusion 3 and Flux: transformers trained by flow matching.

Their scheduler integrates an ODE, whose steps have no density. The prior is an SDE with the same
marginals on the same grid (``adapters.schedulers``, and docs/guides/text-to-image.md): at ``eta``
= 1 each step draws ``x_s`` given ``x_t`` and the predicted ``x_0`` as the forward process would.

Source: Esser et al. 2024 (arXiv 2403.03206); Black Forest Labs 2024 (Flux.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from difftilt.adapters.text_to_image.base import Call, Family, Inputs
from difftilt.errors import InputError

LONGEST_SD3 = 256
LONGEST_FLUX = 512


@final
class StableDiffusion3(Family):
    """``StableDiffusion3Pipeline``; its T5 encoder may be left out."""

    pipelines = ("StableDiffusion3Pipeline",)
    needed = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    @property
    def call(self) -> Call:
        return _joint

    @property
    def patch(self) -> int:
        return self.config.patch_size

    def inputs(self, prompts: list[str]) -> Inputs:
        text, _, pooled, _ = self._encoded(prompts, False)
        return {"text": text, "pooled": pooled}

    def null(self) -> Inputs:
        _, text, _, pooled = self._encoded("", True)
        return {"text": text, "pooled": pooled}

    def readers(self) -> Sequence[tuple[Any, int]]:
        found = [(t, t.model_max_length) for t in (self.pipeline.tokenizer,)]
        third = getattr(self.pipeline, "tokenizer_3", None)
        has_third = third is not None and self.pipeline.text_encoder_3 is not None
        return [*found, (third, LONGEST_SD3)] if has_third else found

    def grid(self, steps: int) -> dict[str, Any]:
        if not self.pipeline.scheduler.config.get("use_dynamic_shifting"):
            return {}
        _, height, width = self.event_shape
        return {"mu": _shift(self.pipeline, (height // self.patch) * (width // self.patch), 1.16)}

    def _encoded(self, prompts: list[str] | str, guided: bool) -> Any:
        return self.pipeline.encode_prompt(
            prompts,
            None,
            None,
            device=self.pipeline.device,
            do_classifier_free_guidance=guided,
            negative_prompt=self.options.negative_prompt,
            max_sequence_length=LONGEST_SD3,
        )


@final
class Flux(Family):
    """``FluxPipeline``: packed latents; guidance is an input of the network, where it has one.

    Classifier-free guidance away from a negative prompt (``true_cfg_scale``) comes on top.
    """

    pipelines = ("FluxPipeline",)
    needed = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    @property
    def call(self) -> Call:
        return PackedCall(self.asked_scale if self.config.guidance_embeds else None)

    @property
    def scale(self) -> float:
        return self.options.true_cfg_scale or 1.0

    @property
    def latent_channels(self) -> int:
        return self.config.in_channels // 4

    @property
    def patch(self) -> int:
        return 2

    def own_size(self) -> tuple[int, int]:
        side = self.pipeline.default_sample_size * self.vae_factor
        return side, side

    def inputs(self, prompts: list[str]) -> Inputs:
        text, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, device=self.pipeline.device, max_sequence_length=LONGEST_FLUX
        )
        return {"text": text, "pooled": pooled}

    def null(self) -> Inputs:
        return self.inputs([self.options.negative_prompt or ""])

    def asked(self) -> dict[str, Any]:
        scale = self.options.true_cfg_scale
        found = super().asked()
        return found if scale is None else {**found, "true_cfg_scale": scale}

    def _check_guidance(self) -> None:
        scale, negative = self.options.true_cfg_scale, self.options.negative_prompt
        if (scale is None) != (negative is None):
            raise InputError(
                "a FluxPipeline is guided away from a negative prompt by true_cfg_scale, so that "
                f"they come together, got negative_prompt={negative!r} and true_cfg_scale={scale}"
            )

    def readers(self) -> Sequence[tuple[Any, int]]:
        return [(self.pipeline.tokenizer_2, LONGEST_FLUX)]

    def grid(self, steps: int) -> dict[str, Any]:
        _, height, width = self.event_shape
        sigmas = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).numpy()
        return {"sigmas": sigmas, "mu": _shift(self.pipeline, height * width // 4, 1.15)}


@dataclass(frozen=True)
class PackedCall:
    """A call on latents of which each 2 × 2 square is one token.

    Arguments:
        guidance: what the network is told of guidance, or None: nothing.
    """

    guidance: float | None

    def __call__(self, network: nn.Module, x: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        guidance = None
        if self.guidance is not None:
            guidance = torch.full((len(x),), self.guidance, device=x.device)
        output = network(
            hidden_states=packed(x),
            timestep=time.to(x.dtype) / 1000,
            guidance=guidance,
            pooled_projections=inputs["pooled"],
            encoder_hidden_states=inputs["text"],
            txt_ids=x.new_zeros(inputs["text"].shape[1], 3),
            img_ids=_places(height, width).to(x),
            return_dict=False,
        )[0]
        return unpacked(output, height, width)


def packed(x: Tensor) -> Tensor:
    """Latents (B, C, 2h, 2w) as tokens (B, h w, 4 C)."""
    squares = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, h w, 4 C) as latents (B, C, 2h, 2w); the inverse of ``packed``."""
    squares = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (height, width))
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _places(height: int, width: int) -> Tensor:
    """(0, row, column) of each token."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], 2).flatten(0, 1)


def _shift(pipeline: Any, tokens: int, largest: float) -> float:
    """The pipelines' shift of the noise levels, which grows with the picture."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = pipeline.scheduler.config
    return calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", largest),
    )


def _joint(network: nn.Module, x: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
    return network(
        hidden_states=x,
        timestep=time,
        encoder_hidden_states=inputs["text"],
        pooled_projections=inputs["pooled"],
        return_dict=False,
    )[0]
