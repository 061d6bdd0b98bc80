"""The record of a text-to-image pipeline's chain, which loading makes and exports read."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from difftilt.adapters.text_to_image.base import Family
from difftilt.adapters.text_to_image.prompts import PromptedDenoiser, PromptTable
from difftilt.chains.chain import Chain
from difftilt.denoisers import Denoiser
from difftilt.guidance.classifier_free import ClassifierFreeGuidance


@dataclass(frozen=True)
class PictureChain:
    """A text-to-image pipeline's chain and its parts.

    Arguments:
        family: reads prompts, decodes latents; holds the pipeline.
        chain: the prior of latents; its condition is a row of the table, (B,).
        table: of prompts.
        scheduler: what the chain runs.
        eta: stochasticity of DDIM and flow matching.
        fingerprint: SHA-256 of the network's weights.
    """

    family: Family
    chain: Chain
    table: PromptTable
    scheduler: Any
    eta: float
    fingerprint: str


def network_of(denoiser: Denoiser) -> nn.Module | None:
    """The network of a prior's denoiser, or of a full copy of it; None of another."""
    inner = denoiser.denoiser if isinstance(denoiser, ClassifierFreeGuidance) else denoiser
    return inner.network if isinstance(inner, PromptedDenoiser) else None
