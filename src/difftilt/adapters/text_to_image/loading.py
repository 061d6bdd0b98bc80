"""A text-to-image pipeline as a chain: its network guided, its scheduler with densities.

The prior is the law of the pictures that the pipeline draws with these steps, this ``eta``, this
guidance scale and this negative prompt. A guided prediction is no score of a power of a density:
the reference of every reward, log-ratio and certificate is the guided *sampler's* own law.

Solvers of an ODE on Stable Diffusion's noise levels (PNDM, Euler, DPM++ ...) have no density to
tilt. The network is the same under any sampler, so they are replaced by DDIM on the same levels at
``eta``; a scheduler that brings its own noise (DDPM, Euler ancestral, flow matching) is kept.
"""

import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difftilt.adapters.arithmetic import held_in
from difftilt.adapters.schedulers import diffusion_from_scheduler
from difftilt.adapters.text_to_image.base import Family, PictureOptions
from difftilt.adapters.text_to_image.export import export_text_to_image
from difftilt.adapters.text_to_image.flow import Flux, StableDiffusion3
from difftilt.adapters.text_to_image.prompts import NULL_ROW, PromptedDenoiser, PromptTable
from difftilt.adapters.text_to_image.record import PictureChain
from difftilt.adapters.text_to_image.stable_diffusion import StableDiffusion, StableDiffusionXL
from difftilt.adapters.text_to_image.transformers import DiT, PixArt
from difftilt.chains.chain import Chain, Kernel
from difftilt.chains.fingerprints import fingerprint
from difftilt.denoisers import Denoiser
from difftilt.errors import InputError
from difftilt.guidance.classifier_free import ClassifierFreeGuidance

FAMILIES: tuple[type[Family], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    StableDiffusion3,
    Flux,
    PixArt,
    DiT,
)
PREDICTORS = ("text_encoder", "text_encoder_2", "text_encoder_3", "vae", "unet", "transformer")


@dataclass(frozen=True)
class TextToImageModel(PictureChain):
    """A pipeline's chain, and the way back for its posteriors."""

    def export(self, kernel: Kernel, folder: str | Path) -> Path:
        """``adapters.text_to_image.export.export_text_to_image``."""
        return export_text_to_image(self, kernel, folder)


def family_of(pipeline: Any) -> type[Family] | None:
    """The family of a pipeline, by the names of its class and their parents; None for none.

    Raises:
        InputError: it draws pictures from text, and is of no known class.
    """
    names = [kind.__name__ for kind in type(pipeline).__mro__]
    for name in names:
        for family in FAMILIES:
            if name in family.pipelines:
                return family
    if hasattr(pipeline, "text_encoder") or hasattr(pipeline, "transformer"):
        known = ", ".join(name for family in FAMILIES for name in family.pipelines)
        raise InputError(f"{names[0]} is no pipeline that is known here; supported are {known}")
    return None


def text_to_image_model(
    pipeline: Any, steps: int, eta: float = 1.0, **options: Any
) -> TextToImageModel:
    """The chain that a text-to-image pipeline runs with ``steps`` inference steps.

    Arguments:
        pipeline: a live one; its parts are frozen, put in eval mode and shared.
        steps: number of inference steps N.
        eta: stochasticity of DDIM and flow matching, in [0, 1].
        **options: fields of ``PictureOptions``.

    Raises:
        InputError: an unknown class, option, size or scheduler, or a missing part.
    """
    known = [f.name for f in fields(PictureOptions)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(
            f"a text-to-image prior has no option {unknown[0]!r}; options are {', '.join(known)}"
        )
    kind = family_of(pipeline)
    if kind is None:
        raise InputError(f"{type(pipeline).__name__} reads no prompts")
    family = kind(pipeline, PictureOptions(**options))
    _freeze(pipeline)
    if family.options.checkpointing:
        from difftilt.adapters.checkpointing import checkpoint_blocks

        checkpoint_blocks(family.network)
    scheduler = with_noise(pipeline.scheduler)
    grid = family.grid(steps) if scheduler is pipeline.scheduler else {}
    found = diffusion_from_scheduler(scheduler, steps, eta, grid)
    first = next(family.network.parameters())
    table = PromptTable(family, torch.promote_types(held_in(family.network), torch.float32))
    base = found.denoiser(family.network)
    denoiser = _guided(PromptedDenoiser(base, family.call, table), family.scale)
    like = torch.zeros((), device=first.device)
    chain = Chain(denoiser, found.diffusion, family.event_shape, like=like)
    own = copy.deepcopy(scheduler)
    return TextToImageModel(family, chain, table, own, eta, fingerprint(family.network))


def with_noise(scheduler: Any) -> Any:
    """The scheduler, or DDIM on the noise levels of one that integrates an ODE."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    config = scheduler.config
    name = type(scheduler).__name__
    if name not in ODE_SOLVERS or config.get("use_flow_sigmas"):
        return scheduler
    # Latents are never clipped, and a last level below 1 leaves the last step its noise.
    settings = {"clip_sample": False, "set_alpha_to_one": False}
    return DDIMScheduler.from_config(config, **{k: config.get(k, v) for k, v in settings.items()})


ODE_SOLVERS = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)


def _guided(denoiser: PromptedDenoiser, scale: float) -> Denoiser:
    if scale <= 1:
        return denoiser
    return ClassifierFreeGuidance(denoiser, scale, torch.tensor(NULL_ROW))


def _freeze(pipeline: Any) -> None:
    for name in PREDICTORS:
        part = getattr(pipeline, name, None)
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
