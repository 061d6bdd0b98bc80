"""Pictures that obey a prompt and please a reward: texts in, pictures out.

    prior = load("folder-or-hub-id-of-a-pipeline", steps=50, guidance_scale=7.5)
    task = prior.draw(["a green rabbit", "a red house"], reward)
    posterior = task.fit(RTB(), form=LoRA(rank=4), steps=1000)
    pictures = posterior.sample(4)                       # (prompts, 4, 3, height, width) in [0, 1]
    print(posterior.certify_each(256))
    posterior.export("lora")                             # load_lora_weights of plain diffusers
    pictures = task.population(BestOfN(8)).sample(4)     # no training

The prior p(x | c) is the guided sampler of the pipeline (``adapters.text_to_image``), the posterior
``p(x | c) r(x, c)^β / Z(c)`` one sampler for all prompts. A reward is a function of pictures
(B, 3, height, width) in [0, 1] and of their prompts, a list of B texts (it may take the pictures
alone), that returns log r in nats, (B,). Everything is the chain, the target and the training of
``difftilt.posteriors``, with rows of a table of prompts as conditions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.adapters.text_to_image import TextToImageModel
from difftilt.diagnostics.conditional import ConditionalCertificate
from difftilt.forms import Form, LoRA
from difftilt.objectives.base import Objective
from difftilt.posteriors import Posterior, Prior, Sources, Target
from difftilt.rewards import isolation_worker as worker
from difftilt.rewards.contract import CheckedReward, reward_bound
from difftilt.sampling.draws import Correction, Samples, corrected_sample, weighted_sample
from difftilt.sampling.populations import PopulationSampler
from difftilt.smc.population import Population

Pictures = Float[Tensor, "P n 3 height width"]

ATTENTION = LoRA(rank=4)
# Of vectors there is room for thousands of states; of pictures there is not.
SMALL = {"batch": 16, "chunk": 16, "paths_per_condition": 8}


@final
class PromptReward:
    """A reward of pictures and prompts, as one of pictures and rows of a table.

    Arguments:
        reward: ``(pictures)`` or ``(pictures, prompts)`` to log r, as in ``CheckedReward``.
        texts: the prompts of some rows.

    Raises:
        RewardError: it cannot be called so.
    """

    def __init__(
        self, reward: Callable[..., Any], texts: Callable[[Sequence[int]], list[str]]
    ) -> None:
        # For its name and its complaints; CheckedReward would hand over tensors alone.
        self.name = CheckedReward(reward).name
        self.bound = reward_bound(reward)
        self._reward, self._texts = reward, texts
        self._use = worker.condition_use(reward)

    def __call__(
        self, pictures: Float[Tensor, "B 3 height width"], condition: Int[Tensor, " B"]
    ) -> Any:
        prompts = self._texts(condition.tolist())
        return worker.call(self._reward, self._use, pictures, prompts)


@dataclass(frozen=True)
class TextToImagePrior:
    """A text-to-image pipeline as a prior of pictures. Made by ``load``.

    Arguments:
        model: its chain and what belongs to it.
        source: where it came from, for the record.
    """

    model: TextToImageModel
    source: str = "a live pipeline"

    @property
    def prior(self) -> Prior:
        """The same as a prior of latents, which decodes them to pictures."""
        return Prior(self.model.chain, self.model.family.decoded, self.source, self.model)

    def rows(self, prompts: Sequence[str]) -> Int[Tensor, " P"]:
        """The chain's condition of each prompt; new prompts are encoded.

        Raises:
            InputError: no prompts, or something that is no text.
        """
        return self.model.table.rows(prompts).to(self.model.chain.like.device)

    def draw(
        self, prompts: Sequence[str], reward: Callable[..., Any], beta: float = 1.0
    ) -> "TextToImage":
        """The task of drawing pictures of some prompts that please a reward.

        Arguments:
            prompts: what one posterior is trained for; repeated ones count once.
            reward: ``(pictures (B, 3, height, width) in [0, 1], prompts)`` to log r (B,) in nats.
            beta: β > 0.

        Raises:
            InputError: no prompts, or β that is not positive.
            RewardError: the reward is no function of pictures.
        """
        self.rows(prompts)
        known = CheckedReward(PromptReward(reward, self.model.table.texts))
        return TextToImage(self, self.prior.tilt(known, beta), tuple(dict.fromkeys(prompts)))

    def sample(self, prompts: Sequence[str], n: int = 1, seed: int = 0) -> Pictures:
        """``n`` pictures of each prompt by the prior."""
        return torch.stack(
            [replace(self.prior, chain=self._given(p)).sample(n, seed) for p in prompts]
        )

    def _given(self, prompt: str):
        return self.model.chain.given(self.rows([prompt]))


@dataclass(frozen=True)
class TextToImage:
    """Prompts, prior and reward. Made by ``TextToImagePrior.draw``.

    Arguments:
        prior: the pipeline.
        target: ``p(x | c) r(x, c)^β``, of latents.
        prompts: what a posterior is trained for, each once.
    """

    prior: TextToImagePrior
    target: Target
    prompts: tuple[str, ...]

    @property
    def sources(self) -> Sources:
        """Conditions for training: the prompts, uniformly; a learned log Z for each."""
        rows = self.prior.rows(self.prompts)

        def drawn(count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
            chosen = torch.randint(len(rows), (count,), generator=generator)
            return rows[chosen.to(rows.device)]

        return Sources(conditions=drawn, labels=int(rows.max()) + 1)

    def fit(
        self,
        objective: Objective | None = None,
        *,
        form: Form = ATTENTION,
        out: str | FilePath | None = None,
        **training: Any,
    ) -> "TextToImagePosterior":
        """Train one posterior for all prompts.

        Arguments:
            objective: default ``RTB()``.
            form: default low-rank adapters of rank 4 on attention.
            out: a run folder to write; None keeps everything in memory.
            **training: fields of ``Training``; ``paths_per_condition`` paths of a batch share a
                prompt. Here a batch is 16 pictures, and as many states are in memory at once.

        Raises:
            InputError: unknown field, or one out of range.
            TrainingError: a loss became non-finite.
        """
        training = SMALL | training
        fitted = self.target.fit(objective, form=form, out=out, sources=self.sources, **training)
        return TextToImagePosterior(self, fitted)

    def posterior(self, form: Form = ATTENTION) -> "TextToImagePosterior":
        """The untrained posterior: equal to the prior, to the bit.

        Raises:
            InputError: the prior has no stochastic step.
        """
        return TextToImagePosterior(self, self.target.posterior(form))

    def prior_sampler(self) -> "TextToImagePosterior":
        """The prior, with the verbs of a posterior: samples, weights, certificates."""
        return TextToImagePosterior(self, Posterior(self.target, self.target.prior.chain))

    def population(
        self, method: Population, posterior: "TextToImagePosterior | None" = None
    ) -> "TextToImagePopulation":
        """A sampler by systems of particles, with no training.

        Arguments:
            method: e.g. ``BestOfN(8)`` or ``FKSteering(8)``.
            posterior: what moves the particles; default the prior.
        """
        chain = None if posterior is None else posterior.posterior.chain
        return TextToImagePopulation(self, self.target.population(method, chain))

    def named(self, prompts: Sequence[str] | None) -> Sequence[str]:
        """The prompts, or the task's own."""
        return self.prompts if prompts is None else prompts

    def rows(self, prompts: Sequence[str] | None) -> Int[Tensor, " P"]:
        """The chain's condition of each prompt; default the task's own."""
        return self.prior.rows(self.named(prompts))

    def stacked(self, drawn: Sequence[Samples]) -> Pictures:
        """The pictures of each prompt's samples."""
        return torch.stack([self.target.prior.decoded(samples.x_0) for samples in drawn])


@dataclass(frozen=True)
class TextToImagePosterior:
    """A sampler of pictures. Made by ``TextToImage.fit``.

    Arguments:
        task: what it was trained for.
        posterior: the sampler of latents.
    """

    task: TextToImage
    posterior: Posterior

    def sample(
        self,
        n: int = 1,
        prompts: Sequence[str] | None = None,
        seed: int = 0,
        correct: Correction | None = None,
        effort: int = 4,
    ) -> Pictures:
        """``n`` pictures of each prompt.

        Arguments:
            n: pictures per prompt.
            prompts: any, those that it was not trained for included; default the task's.
            seed: of the draw; picture i of a prompt does not depend on n or the other prompts.
            correct: None, "snis", "mh" or "smc" (see ``difftilt.sampling.draws.corrected_sample``).
            effort: proposals, steps or particles per corrected picture.
        """
        return self.task.stacked(self.draw(n, prompts, seed, correct, effort))

    def draw(
        self,
        n: int = 1,
        prompts: Sequence[str] | None = None,
        seed: int = 0,
        correct: Correction | None = None,
        effort: int = 4,
    ) -> list[Samples]:
        """Like ``sample``, undecoded, each prompt's with log r and (uncorrected) log-weights."""
        tilted, drawn = self.task.target.tilted, []
        for row in self.task.rows(prompts):
            chain = self.posterior.chain.given(row[None])
            if correct is None:
                drawn.append(weighted_sample(chain, tilted, n, seed))
            else:
                drawn.append(corrected_sample(chain, tilted, n, correct, seed, effort))
        return drawn

    def certify_each(
        self, n: int = 256, prompts: Sequence[str] | None = None, **options: Any
    ) -> ConditionalCertificate:
        """The certificate of each prompt, and what holds on average.

        Arguments:
            n: paths per prompt.
            prompts: default the task's.
            **options: of ``sampling.certify``.
        """
        certificate = self.posterior.certify_each(self.task.rows(prompts), n, **options)
        return replace(certificate, names=tuple(self.task.named(prompts)))

    def export(self, folder: str | FilePath) -> FilePath:
        """Write LoRA weights that ``load_lora_weights`` of plain diffusers takes, or a pipeline.

        Adapters become LoRA weights where the pipeline's class has a loader of them, and are merged
        into a whole pipeline where it has none; a full copy becomes a whole pipeline.

        Raises:
            InputError: the posterior's form has no such equivalent.
        """
        return self.posterior.export(folder)


@dataclass(frozen=True)
class TextToImagePopulation:
    """Systems of particles, each of which gives one picture. Made by ``TextToImage.population``.

    Arguments:
        task: prompts, prior and reward.
        sampler: of latents.
    """

    task: TextToImage
    sampler: PopulationSampler

    def sample(self, n: int = 1, prompts: Sequence[str] | None = None, seed: int = 0) -> Pictures:
        """``n`` pictures of each prompt.

        Arguments:
            n: pictures, and so systems, per prompt.
            prompts: any; default the task's.
            seed: of the draw; picture i of a prompt does not depend on n or the other prompts.

        Raises:
            InputError: n < 1, or every particle of every system of a prompt has zero reward.
        """
        return self.task.stacked(self.draw(n, prompts, seed))

    def draw(
        self, n: int = 1, prompts: Sequence[str] | None = None, seed: int = 0
    ) -> list[Samples]:
        """Like ``sample``, undecoded, each prompt's with log r and the system's ``log Ẑ``."""
        rows = self.task.rows(prompts)
        return [self.sampler.given(row[None]).draw(n, seed) for row in rows]

    def certify_each(
        self, n: int = 64, prompts: Sequence[str] | None = None, **options: Any
    ) -> ConditionalCertificate:
        """The certificate of each prompt, and what holds on average; its "paths" are systems.

        Arguments:
            n: systems per prompt.
            prompts: default the task's.
            **options: of ``PopulationSampler.certify``.

        Raises:
            InputError: the method has no unbiased Ẑ, as best-of-n has none.
        """
        rows, names = self.task.rows(prompts), tuple(self.task.named(prompts))
        each = [self.sampler.given(row[None]).certify(n, **options) for row in rows]
        return ConditionalCertificate(names, tuple(each))
