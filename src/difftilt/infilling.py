"""Filling the slots of a text: strings in, strings out.

    prior = TextPrior(load_text_model("folder-of-a-masked-language-model"))
    reward = ReadingReward(causal_model, its_tokenizer)
    task = prior.infill("She opened the door. [30] Then she ran.", reward)
    posterior = task.fit(RTB(), steps=500)
    print(posterior.sample(4))
    print(posterior.certify(1024))

The prior is the masked chain of the model with all text given but the suffix ("Then she ran."),
which the posterior alone is shown; the reward, e.g. ``log p(suffix | text before it)``, says what
the suffix asks of the filling. Several templates make one amortised posterior. Everything is the
chain, the target and the training of ``difftilt.posteriors``, with canvases as conditions
(``difftilt.text.canvases``).

Exact when each step reveals one token (the orders' table) for a fixed length, or one left to the
model (``lengths="padding"``). Lengths drawn from a law keep that law under the posterior; weights
``log_w`` correct it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from difftilt.adapters.text.base import TextModel as PublishedModel
from difftilt.adapters.text.export import export_text_model
from difftilt.diagnostics.conditional import ConditionalCertificate
from difftilt.errors import InputError
from difftilt.forms import Form
from difftilt.kernels.networks import DenoiserKernel
from difftilt.noise import StreamNoise
from difftilt.objectives.base import Objective
from difftilt.posteriors import Posterior, Sources, Target
from difftilt.sampling.draws import Correction, Samples, weighted_sample
from difftilt.text.canvases import Canvases
from difftilt.text.codecs import TextModel
from difftilt.text.fillings import Filling, filled_in
from difftilt.text.layouts import Layout, Passage


@dataclass(frozen=True)
class Completion:
    """A filled template.

    Arguments:
        text: the whole text.
        fillings: what each slot holds.
        tokens: ids of the canvas without padding behind it, special tokens included.
        log_r: ``log r``, nats.
        log_w: ``β log r - log q/p``: log-weight against the posterior; None where it is chosen or
            corrected.
    """

    text: str
    fillings: tuple[str, ...]
    tokens: tuple[int, ...]
    log_r: float
    log_w: float | None = None


@dataclass(frozen=True)
class Infilling:
    """Templates, prior and reward. Made by ``TextPrior.infill``.

    Arguments:
        target: ``p(filling | text before) r^β``.
        canvases: of the templates.
        model: the prior's model, or None where it is not known.
    """

    target: Target
    canvases: Canvases
    model: TextModel | None = None

    def fit(
        self,
        objective: Objective | None = None,
        *,
        form: Form | None = None,
        out: str | FilePath | None = None,
        data: Sequence[Sequence[Filling]] | None = None,
        sources: Sources | None = None,
        **training: Any,
    ) -> "InfillingPosterior":
        """Train one posterior for all templates.

        Arguments:
            objective: default ``RTB()``.
            form: default ``FullCopy()``.
            out: a run folder to write; None keeps everything in memory.
            data: true fillings, a list for each template, e.g. for ``Supervised()``; the filling
                of several slots is a tuple of strings.
            sources: what else a training is given, e.g. another one's ``value``. Conditions are the
                templates unless it says otherwise.
            **training: fields of ``Training``; ``paths_per_condition`` paths of a batch share a
                template.

        Raises:
            InputError: unknown field, one out of range, or a filling that its slots cannot hold.
            TrainingError: a loss became non-finite.
        """
        given = Sources() if sources is None else sources
        if given.conditions is None:
            given = replace(given, conditions=self._drawn)
        if data is not None:
            x_0, conditions = (rows.to(self._device) for rows in filled_in(self.canvases, data))
            given = replace(given, data=x_0, data_conditions=conditions)
        fitted = self.target.fit(objective, form=form, out=out, sources=given, **training)
        return InfillingPosterior(self, fitted)

    def posterior(self, form: Form | None = None) -> "InfillingPosterior":
        """The untrained posterior: it starts at the model with the suffix shown to it.

        Arguments:
            form: default ``FullCopy()``.
        """
        return InfillingPosterior(self, self.target.posterior(form))

    def prompted(self) -> "InfillingPosterior":
        """The prior's own network with the suffix shown to it: "prompt (x, y)"; no training."""
        chain = self.target.prior.chain
        kernel = DenoiserKernel(chain.denoiser.informed(), chain.diffusion)
        return InfillingPosterior(self, Posterior(self.target, chain.tilted(kernel)))

    def prior_samples(self, n: int, context: int = 0, seed: int = 0) -> list[Completion]:
        """``n`` fillings of a template by the prior, which is not shown the suffix."""
        prior = Posterior(self.target, self.target.prior.chain)
        return InfillingPosterior(self, prior).completions(n, context, seed)

    def best_of_n(self, n: int, among: int, context: int = 0, seed: int = 0) -> list[Completion]:
        """``n`` fillings, each the one of the highest reward among so many of the prior's."""
        if among < 1:
            raise InputError(f"among={among} must be at least 1")
        drawn = self.prior_samples(n * among, context, seed)
        groups = [drawn[i * among : (i + 1) * among] for i in range(n)]
        return [replace(max(group, key=lambda c: c.log_r), log_w=None) for group in groups]

    def conditions(self, n: int, context: int, seed: int = 0) -> Int[Tensor, "n 2 L"]:
        """The canvas of each of ``n`` samples of a template, of lengths drawn by their law.

        Raises:
            InputError: there is no such template, or n < 1.
        """
        if n < 1:
            raise InputError(f"n must be at least 1, got {n}")
        canvases, shares = self.canvases.of(context)
        like = self.target.prior.chain.like
        if len(canvases) == 1:
            return canvases.expand(n, -1, -1).to(like.device)
        # One stream per sample, other than those of its path.
        threshold = StreamNoise(seed, range(-n, 0)).uniform(torch.zeros(n)).flip(0)
        cumulated = torch.tensor(shares).cumsum(0)
        rows = torch.searchsorted(cumulated, threshold, right=True).clamp(max=len(shares) - 1)
        return canvases[rows].to(like.device)

    def completions(self, samples: Samples, condition: Int[Tensor, "n 2 L"]) -> list[Completion]:
        """Samples, with their rewards, as text."""
        assert samples.log_r is not None
        log_r: list[float] = samples.log_r.tolist()
        log_w = [None] * len(log_r) if samples.log_w is None else samples.log_w.tolist()
        codec, found = self.canvases.codec, self.canvases.filled(samples.x_0, condition)
        return [
            _completion(layout.passage(ids, codec), ids, log_r[i], log_w[i])
            for i, (layout, ids) in enumerate(found)
        ]

    def _drawn(self, count: int, generator: torch.Generator) -> Int[Tensor, "count 2 L"]:
        return self.canvases.drawn(count, generator).to(self._device)

    @property
    def _device(self) -> torch.device:
        return self.target.prior.chain.like.device


@dataclass(frozen=True)
class InfillingPosterior:
    """A sampler of fillings. Made by ``Infilling.fit``.

    Arguments:
        task: what it was trained for.
        posterior: the sampler of canvases.
    """

    task: Infilling
    posterior: Posterior

    def sample(
        self,
        n: int,
        context: int = 0,
        seed: int = 0,
        correct: Correction | None = None,
        effort: int = 4,
    ) -> list[str]:
        """``n`` filled texts of a template; see ``completions``."""
        return [c.text for c in self.completions(n, context, seed, correct, effort)]

    def completions(
        self,
        n: int,
        context: int = 0,
        seed: int = 0,
        correct: Correction | None = None,
        effort: int = 4,
    ) -> list[Completion]:
        """``n`` fillings of a template with their rewards and weights.

        Arguments:
            n: number of fillings.
            context: number of the template.
            seed: of the draw; filling i does not depend on n.
            correct: None, "snis", "mh" or "smc" (see ``difftilt.sampling.draws.corrected_sample``).
            effort: proposals, steps or particles per corrected filling.

        Raises:
            InputError: no such template, or a correction where lengths are drawn.
        """
        condition = self.task.conditions(n, context, seed)
        posterior = self.posterior
        if correct is None:
            chain = posterior.chain.given(condition)
            drawn = weighted_sample(chain, posterior.target.tilted, n, seed)
            return self.task.completions(drawn, condition)
        if len(self.task.canvases.of(context)[0]) > 1:
            raise InputError(
                "corrections weigh fillings of one length against each other, but this template's "
                "are drawn; use lengths='padding', or weigh the completions by their log_w"
            )
        drawn = posterior.given(condition[:1]).draw(n, seed, correct, effort)
        return self.task.completions(drawn, condition)

    def export(self, folder: str | FilePath) -> FilePath:
        """Write the posterior as an ordinary model folder, which ``difftilt.load`` reads again.

        The folder holds the network alone: in other software give it the suffix in the text. What
        the prior added (a temperature, banned ids, the order) has to be asked for again.

        Arguments:
            folder: where to; an older model of that name is replaced.

        Raises:
            InputError: the prior was not loaded by ``load_text_model``, the posterior is untrained
                guidance or has heads beside the network, or the folder holds something else.
            CheckpointError: the folder cannot be written.
        """
        model, kernel = self.task.model, self.posterior.chain.kernel
        if not isinstance(model, PublishedModel) or kernel is None:
            raise InputError(
                "export writes a published model's folder, but this is no posterior of one; load "
                "the prior with load_text_model (difftilt.load does) and fit"
            )
        return export_text_model(model, kernel, folder)

    def certify(
        self, n: int = 1024, contexts: Sequence[int] | None = None, **options: Any
    ) -> ConditionalCertificate:
        """The certificate of each template, and of each length where lengths are drawn.

        Arguments:
            n: paths for each of them.
            contexts: numbers of templates; default all.
            **options: of ``sampling.certify``.
        """
        canvases = self.task.canvases
        chosen = range(canvases.contexts) if contexts is None else contexts
        conditions = torch.cat([canvases.of(context)[0] for context in chosen])
        device = self.posterior.chain.like.device
        certificate = self.posterior.certify_each(conditions.to(device), n, **options)
        return replace(certificate, names=tuple(map(_name, canvases.layouts_of(conditions))))


def _completion(passage: Passage, ids: list[int], log_r: float, log_w: float | None) -> Completion:
    return Completion(passage.text, passage.fillings, tuple(ids), log_r, log_w)


def _name(layout: Layout) -> str:
    lengths = [len(place) for place in layout.places]
    return f"{layout.template} ({'+'.join(map(str, lengths))} tokens)"
