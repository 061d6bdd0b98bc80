"""The shipped text-to-image task as the recipe and the bench need it: built, drawn, judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.loading import load
from difftilt.posteriors import Posterior
from difftilt.sampling.draws import Samples
from difftilt.sampling.populations import PopulationSampler
from difftilt.tasks.picture_figures import PromptPictures, accepted, judged
from difftilt.tasks.text_to_image import (
    PictureJudge,
    held_out_prompts,
    load_caption_reward,
    load_picture_judge,
    text_to_image_prior_folder,
)
from difftilt.text_to_image import TextToImage

AT_ONCE = 256
# Without guidance the prior is at its most diverse, most often wrong, and half as dear.
STEPS, GUIDANCE, BETA = 12, 1.0, 1.0


def default_prompts(count: int = 8) -> tuple[str, ...]:
    """So many of the captions that the prior has never seen: every seventh, around the list."""
    every = held_out_prompts()
    return tuple(every[(7 * k) % len(every)] for k in range(count))


def picture_task(
    prompts: Sequence[str], steps: int, guidance_scale: float, beta: float
) -> TextToImage:
    """The shipped prior, rewarded by the shipped image-text model.

    Arguments:
        prompts: each names a colour and a thing of ``tasks.emoji_words``.
        steps: N of the chain (DDIM at eta = 1).
        guidance_scale: of classifier-free guidance; 1 for none.
        beta: β.
    """
    prior = load(text_to_image_prior_folder(), steps, guidance_scale=guidance_scale)
    return replace(prior, source="shipped: tinted emoji").draw(prompts, load_caption_reward(), beta)


@dataclass(frozen=True)
class Judging:
    """Draws samplers of a task for each of its prompts and judges the pictures.

    Arguments:
        task: prompts, prior and reward.
        load_judge: of the pictures.
    """

    task: TextToImage
    load_judge: Callable[[], PictureJudge] = load_picture_judge

    @cached_property
    def judge(self) -> PictureJudge:
        return self.load_judge()

    @cached_property
    def rows(self) -> Tensor:
        """The chain's condition of each prompt, (P,)."""
        return self.task.prior.rows(self.task.prompts)

    def drawn(self, sampler: Chain | PopulationSampler, n: int, seed: int) -> list[Samples]:
        """``n`` latents of each prompt; the prompts have streams of their own."""
        found = []
        for number, row in enumerate(self.rows):
            made = Posterior(self.task.target, sampler) if isinstance(sampler, Chain) else sampler
            found.append(made.given(row[None]).draw(n, seed + 1000 * number))
        return found

    def pictures(self, samples: Samples) -> Tensor:
        """Decoded, (n, 3, 32, 32) in [0, 1]."""
        decoded = self.task.target.prior.decoded
        return torch.cat([decoded(part) for part in samples.x_0.split(AT_ONCE)])

    def judged(self, drawn: Sequence[Samples]) -> list[PromptPictures]:
        """Of each prompt; log r are the samples' own."""
        found = []
        for prompt, samples in zip(self.task.prompts, drawn, strict=True):
            assert samples.log_r is not None
            found.append(judged(self.judge, self.pictures(samples), prompt, samples.log_r))
        return found

    def truth(self, prior: Sequence[PromptPictures], seed: int) -> list[PromptPictures]:
        """Exact draws: the prior's pictures of each prompt, accepted with probability r^β."""
        generator = torch.Generator().manual_seed(seed)
        return [accepted(one, self.task.target.beta, generator) for one in prior]


def in_turn(samples: Samples, prompts: int) -> list[Samples]:
    """Samples of prompts in turn (``Job.context_of``), as samples of each prompt."""

    def part(value: Tensor | None, k: int) -> Tensor | None:
        return None if value is None else value[k::prompts]

    return [
        replace(
            samples,
            x_0=samples.x_0[k::prompts],
            log_r=part(samples.log_r, k),
            log_w=part(samples.log_w, k),
        )
        for k in range(prompts)
    ]
