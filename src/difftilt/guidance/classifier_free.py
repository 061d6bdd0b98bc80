"""Classifier-free guidance: a denoiser made of a conditional and an unconditional prediction.

Unlike the other methods of this room it is no tilt but a ``Denoiser -> Denoiser``, with two
places:

* as a *prior*, ``replace(chain, denoiser=ClassifierFreeGuidance(...))``: targets and certificates
  are then relative to the guided sampler's own law (which is no power of a density);
* as a *kernel* on the conditional prior, ``DenoiserKernel(ClassifierFreeGuidance(...), ...)``: it
  then stands for the reward ``p(condition given x)^(guidance_scale - 1)``, and the certificate says
  how near it is to that target or to another.

Where the conditional model is itself a posterior's kernel (fitted to labelled samples of an
unconditional prior), ``ClassifierFreeKernel`` does the same with its shifts. How far to go along
the direction of guidance may also be learned (``guidance.strengths``).
"""

import math
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.chains.chain import Chain, Kernel
from difftilt.denoisers import Denoiser, Level
from difftilt.errors import InputError
from difftilt.transitions.gaussian import GaussianTilt


@final
class ClassifierFreeGuidance(Denoiser):
    """``unconditional + guidance_scale (conditional - unconditional)`` on clean predictions.

    A scale of 1 is the conditional denoiser, 0 the unconditional one, both to the bit. (In the
    paper's w the scale is 1 + w.) A learned range's variance channels are the conditional ones.
    Each prediction shows the network two states per sample, which ``NetworkCalls`` counts as one;
    with a ``null`` they are one batch.

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

    def unconditional(self) -> tuple[Denoiser, Tensor] | None:
        return None if self.null is None else (self.denoiser, self.null)

    def forward(self, x_t: Float[Tensor, "B ..."], level: Level) -> Float[Tensor, "B ..."]:
        if self.condition is None:
            raise InputError(
                "classifier-free guidance compares two conditions, and none is bound; bind one "
                "with chain.given(condition) or denoiser.given(condition)"
            )
        unconditional, conditional = self._predictions(x_t, level, self.condition)
        channels = x_t.shape[1]
        clean = torch.lerp(
            unconditional[:, :channels], conditional[:, :channels], self.guidance_scale
        )
        return torch.cat([clean, conditional[:, channels:]], 1)

    def _predictions(self, x_t: Tensor, level: Level, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Unconditional and conditional predictions, in one call of the network where it can be."""
        if self.null is None:
            return self.denoiser.given(None)(x_t, level), self.denoiser.given(condition)(x_t, level)
        batch = len(x_t)
        null = self.null.to(condition).expand(batch, *self.null.shape)
        both = torch.cat([null, condition.expand(batch, *condition.shape[1:])])
        twice = level.each(lambda scale: torch.cat([scale, scale]))
        unconditional, conditional = self.denoiser.given(both)(torch.cat([x_t, x_t]), twice).chunk(
            2
        )
        return unconditional, conditional


@final
class ClassifierFreeKernel(Kernel):
    """``δ = δ(null) + guidance_scale (δ(label) - δ(null))`` of one kernel under two labels.

    With the exact kernel of ``p(x given label)`` a scale of 1 is exact. **Another scale is not**:
    it does not sample ``p(x) p(label given x)^guidance_scale``, because the mean of a power is no
    power of the mean. A learned scale of the noise is the label's.

    Arguments:
        kernel: reads an integer label as its condition; not a mixture.
        label: the wanted one.
        null: the label that means none.
        guidance_scale: as in diffusers.

    Raises:
        InputError: the scale is not finite; when called: the kernel is a mixture.

    Source: Ho and Salimans 2022, eq. 6 (arXiv 2207.12598).
    """

    def __init__(self, kernel: Kernel, label: int, null: int, guidance_scale: float = 1.0) -> None:
        super().__init__()
        if not math.isfinite(guidance_scale):
            raise InputError(f"guidance_scale is a finite number, got {guidance_scale}")
        self.kernel = kernel
        self.label = label
        self.null = null
        self.guidance_scale = guidance_scale

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> GaussianTilt:
        wanted, plain = (self._under(y, x, n, prediction) for y in (self.label, self.null))
        delta = torch.lerp(plain.delta, wanted.delta, self.guidance_scale)
        return GaussianTilt(delta, wanted.log_scale)

    def _under(self, label: int, x: Tensor, n: int | Tensor, prediction: Tensor) -> GaussianTilt:
        labels = torch.full((len(x),), label, device=x.device)
        tilt = self.kernel(x, n, prediction, labels)
        if not isinstance(tilt, GaussianTilt):
            raise InputError(
                "classifier-free guidance moves one Gaussian per step, and this kernel has "
                "several; use components=1"
            )
        return tilt


class ClassifierFreeDirection(nn.Module):
    """The shift of a step from ``x̂_0`` to ``2 x̂_0 - x̂_0(null)``: guidance one unit farther.

    Arguments:
        chain: a conditional prior that knows what it is to be told nothing.

    Raises:
        InputError: the prior has no null condition.
    """

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        found = chain.denoiser.unconditional()
        if found is None:
            raise InputError(
                "a learned strength of guidance compares a condition with none, and this prior "
                "knows no empty condition; use a text-to-image pipeline, guidance along a reward's "
                "gradient (LearnedGuidance(along=DPS())), or another form"
            )
        denoiser, self._null = found
        # In a tuple, so that the prior's weights are neither trained nor saved with the kernel's.
        self._plain = (replace(chain.prior, denoiser=denoiser),)
        self.diffusion = chain.gaussian

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> Float[Tensor, "B ..."]:
        null = self._null.to(x.device).expand(len(x), *self._null.shape)
        plain = self._plain[0].given(null).predict(x, n)
        clean, variance = prediction.split([x.shape[1], prediction.shape[1] - x.shape[1]], 1)
        farther = torch.cat([2 * clean - plain[:, : x.shape[1]], variance], 1)
        return self.diffusion.tilt_between(farther, prediction, x, n).delta
