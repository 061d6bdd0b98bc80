"""What is measured of pictures that were drawn for several prompts.

Every figure is of one prompt, averaged over the prompts, so that a sampler is never praised for
mixing prompts up. Features are those of the held-out judge (``tasks.text_to_image``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.diagnostics.distances import energy_distance
from difftilt.diagnostics.features import diversity
from difftilt.errors import InputError
from difftilt.tasks.text_to_image import PictureJudge


@dataclass(frozen=True)
class PromptPictures:
    """What one sampler drew for one prompt.

    Arguments:
        features: of the judge, (n, F).
        right: 1 where the judge finds the prompt's colour, and its thing, (n, 2).
        log_r: nats, (n,).
    """

    features: Float[Tensor, "n F"]
    right: Float[Tensor, "n 2"]
    log_r: Float[Tensor, " n"]

    def chosen(self, which: Tensor) -> "PromptPictures":
        """Some of the pictures, by index or mask."""
        return PromptPictures(self.features[which], self.right[which], self.log_r[which])

    def split(self, n: int) -> tuple["PromptPictures", "PromptPictures"]:
        """The first n pictures, and the others."""
        every = torch.arange(len(self.log_r))
        return self.chosen(every[:n]), self.chosen(every[n:])


def judged(
    judge: PictureJudge, images: Float[Tensor, "n 3 32 32"], prompt: str, log_r: Tensor
) -> PromptPictures:
    """Pictures of a prompt as the judge sees them."""
    right = judge.right(images, [prompt] * len(images))
    return PromptPictures(judge.seen(images), right, log_r)


def picture_figures(
    drawn: Sequence[PromptPictures], truth: Sequence[PromptPictures] | None = None
) -> dict[str, float]:
    """Means over the prompts.

    Arguments:
        drawn: of each prompt, at least two pictures.
        truth: draws of the exact posterior of the same prompts; prompts of which it has fewer than
            two are left out of what needs it.

    Returns:
        "log_r" (nats), "colour", "thing" and "right" (both), shares by the judge's opinion,
        "diversity" (mean pairwise distance of features within a prompt) and, with a truth,
        "energy" (energy distance to it within a prompt).

    Raises:
        InputError: a prompt has fewer than two pictures, or no prompt has a truth.
    """
    found = {
        "log_r": _mean([one.log_r.double().mean() for one in drawn]),
        "colour": _mean([one.right[:, 0].mean() for one in drawn]),
        "thing": _mean([one.right[:, 1].mean() for one in drawn]),
        "right": _mean([one.right.prod(1).mean() for one in drawn]),
        "diversity": _mean([diversity(one.features) for one in drawn]),
    }
    if truth is None:
        return found
    known = [(a, b) for a, b in zip(drawn, truth, strict=True) if len(b.log_r) >= 2]
    if not known:
        raise InputError("no prompt has two draws of the truth; draw more of the prior")
    distances = [energy_distance(a.features, b.features) for a, b in known]
    return {**found, "energy": _mean(distances)}


def accepted(prior: PromptPictures, beta: float, generator: torch.Generator) -> PromptPictures:
    """Exact draws of a prompt's posterior: pictures of the prior kept with probability r^β <= 1."""
    if bool((prior.log_r > 0).any()):
        raise InputError("rejection needs log r <= 0, got a positive one; resample instead")
    uniform = torch.rand(len(prior.log_r), generator=generator)
    return prior.chosen(uniform.log() < beta * prior.log_r)


def _mean(values: Sequence[float | Tensor]) -> float:
    return sum(float(value) for value in values) / len(values)
