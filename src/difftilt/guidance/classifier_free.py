"""Classifier-free guidance: a denoiser made of a conditional and an unconditional prediction.

Unlike the other methods of this room it is no tilt but a ``Denoiser -> Denoiser``, with two
places:

* as a *prior*, ``replace(chain, denoiser=ClassifierFreeGuidance(...))``: targets and certificates
  are then relative to the guided sampler's own law (which is no power of a density);
* as a *kernel* on the conditional prior, ``DenoiserKernel(ClassifierFreeGuidance(...), ...)``: it
  then stands for the reward ``p(condition given x)^(guidance_scale - 1)``, and the certificate says
  how near it is to that target or to another.
"""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.denoisers import Denoiser, Level
from difftilt.errors import InputError


@final
class ClassifierFreeGuidance(Denoiser):
    """``unconditional + guidance_scale (conditional - unconditional)`` on clean predictions.

    A scale of 1 is the conditional denoiser, 0 the unconditional one, both to the bit. (In the
    paper's w the scale is 1 + w.) A learned range's variance channels are the conditional ones.
    Each prediction costs two calls of the network, which ``NetworkCalls`` counts as one.

    Arguments:
        denoiser: a conditional denoiser.
        guidance_scale: as in diffusers.
        null: the condition (...) of one sample that means none, or None to bind nothing.

    Raises:
        InputError: the scale is not finite; when called: no condition is bound.

    Source: Ho and Salimans 2022, eq. 6 (arXiv 2207.12598).
    """

    def __init__(
        self, denoiser: Denoiser, guidance_scale: float = 7.5, null: Tensor | None = None
    ) -> None:
        super().__init__()
        if not math.isfinite(guidance_scale):
            raise InputError(f"guidance_scale is a finite number, got {guidance_scale}")
        self.denoiser = denoiser
        self.guidance_scale = guidance_scale
        self.null = null
        self.condition: Tensor | None = None

    def given(self, condition: Tensor | None) -> "ClassifierFreeGuidance":
        """This denoiser with a condition (B, ...) bound; the unconditional half keeps its null."""
        bound = ClassifierFreeGuidance(self.denoiser, self.guidance_scale, self.null)
        bound.condition = condition
        return bound

    def forward(self, x_t: Float[Tensor, "B ..."], level: Level) -> Float[Tensor, "B ..."]:
        if self.condition is None:
            raise InputError(
                "classifier-free guidance compares two conditions, and none is bound; bind one "
                "with chain.given(condition) or denoiser.given(condition)"
            )
        null = self.null
        if null is not None:
            null = null.to(self.condition).expand(len(x_t), *null.shape)
        conditional = self.denoiser.given(self.condition)(x_t, level)
        unconditional = self.denoiser.given(null)(x_t, level)
        channels = x_t.shape[1]
        clean = torch.lerp(
            unconditional[:, :channels], conditional[:, :channels], self.guidance_scale
        )
        return torch.cat([clean, conditional[:, channels:]], 1)
