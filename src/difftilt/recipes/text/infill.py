"""The text task: the missing fourth sentence of a story, from a masked language model.

x is the first three sentences, y the fifth; the prior writes z from x alone, the reward is how well
y follows, ``log p(y | x, z)``, and one posterior is trained for all (x, y). Two sets are shipped:

* ``stories``: a grammar of our own, where every posterior probability is known and coherence can be
  counted (``difftilt.tasks.stories``);
* ``bible``: real text, with a masked model and a causal reader trained on different books
  (``difftilt.tasks.text``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.diffusions.masked import GENERATED, MaskedDiffusion, completed
from difftilt.kernels.networks import DenoiserKernel
from difftilt.marginals import terminal_residual
from difftilt.posteriors import Posterior, Prior, Sources
from difftilt.recipes.base import Drawn, Job, Recipe, metric_row
from difftilt.recipes.form import FormChoice
from difftilt.recipes.text.sets import TextSet, text_set
from difftilt.recipes.text.similarity import story_similarity
from difftilt.rewards.contract import CheckedReward
from difftilt.sampling.draws import Samples
from difftilt.training.plan import RTB, BehaviourWeights, Optimisation, Training

RESIDUAL_CONTEXTS, RESIDUAL_SAMPLES = 4, 6


def _training() -> Training:
    """A head learns the temperature in some ten updates; the network itself follows slowly.

    Faster, the noise of the balance undoes in the network what its long training has learned.
    """
    return Training(
        steps=150,
        batch=64,
        paths_per_condition=8,
        warm_start=0.0,
        chunk=256,
        subset=4,
        objective=RTB(),
        optimisation=Optimisation(
            learning_rate=3e-5, head_learning_rate=3e-3, decay_from=0.5, ema=0.95
        ),
        behaviour=BehaviourWeights(on_policy=1.0, pool=0.0),
    )


@dataclass(frozen=True)
class Infill(Recipe):
    """The missing sentence of a story (a masked language model and the reader of the ending).

    Arguments:
        data: "stories", of the shipped grammar, or "bible", real text.
        beta: β.
        contexts: held-out (x, y) that samples and certificate are of.
        samples: fillings drawn for the report, the contexts in turn.
        form: what carries the posterior.
        training: the plan.
    """

    data: Literal["stories", "bible"] = "stories"
    beta: float = 1.0
    contexts: int = 48
    samples: int = 96
    certificate_paths: int = 768
    form: FormChoice = field(
        default_factory=lambda: FormChoice("full_copy", learned_temperature=True)
    )
    training: Training = field(default_factory=_training)

    @cached_property
    def texts(self) -> TextSet:
        """Models and stories."""
        return text_set(self.data)

    def job(self) -> Job:
        texts = self.texts
        chain = Chain(
            texts.model.denoiser(),
            MaskedDiffusion(texts.model.network.vocab_size, texts.layout.middle),
            (texts.layout.length,),
        )
        prior = Prior(chain, source=texts.model.source)
        target = prior.tilt(_reward(texts.log_reward), self.beta, log_bound=0.0)
        held_out = texts.held_out(self.contexts)
        return Job(
            target,
            target.posterior(self.form.build()),
            self.training,
            Sources(conditions=texts.drawn),
            held_out,
            tuple(texts.name(row) for row in held_out[:, 0]),
        )

    def readable(self, job: Job, samples: Samples) -> list[str]:
        ids = completed(samples.x_0, job.context_of(len(samples.x_0)))
        return [self.texts.text(row) for row in ids]

    def evaluation(self, job: Job, drawn: Drawn) -> dict[str, Any]:
        shown = prompted(job)
        n = len(drawn.posterior.x_0)
        sets = {
            "prior": drawn.prior,
            "prompted": job.draw(shown, n, self.training.seed + 5),
            "posterior": drawn.posterior,
        }
        if drawn.corrected is not None:
            sets["corrected"] = drawn.corrected
        ids = {name: completed(s.x_0, job.context_of(len(s.x_0))) for name, s in sets.items()}
        truth = job.context_of(n)
        assert truth is not None
        rows = [metric_row("mean log r", "nats, of the reader", _mean_log_r(sets))]
        rows += self.texts.metrics({**ids, "truth": truth[:, 0]}, truth[:, 0])
        if self.contexts > 1:
            rows.append(self._similarity_row(job, ids))
        rows.append(_residual_row(job, shown, self.training.seed + 6))
        return {
            "title": f"Infilling: {self.data}",
            "rows": rows,
            "notes": [
                f"{self.contexts} held-out pairs (x, y); prior: shown x; prompted: the prior's own "
                "network shown x and y, without training; truth: the text as it was written.",
            ],
            "texts": self._texts(ids, truth),
        }

    def _similarity_row(self, job: Job, ids: dict[str, Tensor]) -> dict[str, Any]:
        assert job.contexts is not None
        network, whole = self.texts.model.network, self.contexts
        values = {
            name: float(story_similarity(network, found, job.contexts).mean())
            for name, found in ids.items()
            if len(found) >= whole
        }
        note = (
            "F1 of matched features of the prior's own network, rescaled (as BERTScore); 1: equal"
        )
        return metric_row("similarity", f"{note}, 0: as near as another story's middle", values)

    def _texts(self, ids: dict[str, Tensor], truth: Tensor) -> list[dict[str, str]]:
        """Ten fillings side by side."""
        middle = self.texts.middle
        rows = []
        for i in range(min(10, self.contexts)):
            start, ending = self.texts.frame(truth[i, 0])
            row = {"before": start, "after": ending}
            row |= {name: middle(found[i]) for name, found in ids.items() if i < len(found)}
            rows.append({**row, "as written": middle(truth[i, 0])})
        return rows


def _reward(log_reward: Callable[[Int[Tensor, "B L"]], Float[Tensor, " B"]]) -> CheckedReward:
    def of_completed(x_0: Tensor, condition: Tensor) -> Tensor:
        return log_reward(completed(x_0, condition))

    return CheckedReward(of_completed, name="reader of the ending", bound=0.0)


def prompted(job: Job) -> Posterior:
    """The prior's own network with the ending shown to it."""
    chain = job.target.prior.chain
    kernel = DenoiserKernel(chain.denoiser.informed(), chain.diffusion)
    return replace(job.posterior, chain=chain.tilted(kernel))


def _mean_log_r(sets: dict[str, Samples]) -> dict[str, float]:
    return {name: float(s.log_r.mean()) for name, s in sets.items() if s.log_r is not None}


def _residual_row(job: Job, shown: Posterior, seed: int) -> dict[str, Any]:
    prior = replace(job.posterior, chain=job.target.prior.chain)
    found = {"prior": prior, "prompted": shown, "posterior": job.posterior}
    values = {name: residual_spread(job, each, seed) for name, each in found.items()}
    assert job.contexts is not None
    measured = min(RESIDUAL_CONTEXTS, len(job.contexts))
    note = (
        "standard deviation of log q(z) - log p(z) - β log r over samples of a context, nats, "
        f"exact over all orders; 0 is exact; on {RESIDUAL_SAMPLES} samples of each of {measured} "
        "contexts, those of the shortest middles"
    )
    return metric_row("spread of the terminal residual", note, values)


def residual_spread(
    job: Job,
    posterior: Posterior,
    seed: int,
    contexts: int = RESIDUAL_CONTEXTS,
    samples: int = RESIDUAL_SAMPLES,
) -> float:
    """Root mean variance, over contexts, of the terminal residual of a sampler's own samples."""
    assert job.contexts is not None
    variances = []
    # 2^n states each: the shortest ones.
    generated = (job.contexts[:, 1] == GENERATED).sum(1)
    for context in job.contexts[generated.argsort(stable=True)[:contexts]]:
        condition = context.expand(samples, -1, -1)
        drawn = posterior.given(condition).draw(samples, seed)
        assert drawn.log_r is not None
        residual = terminal_residual(
            posterior.chain,
            job.target.prior.chain,
            drawn.x_0,
            drawn.log_r,
            job.target.beta,
            condition,
        )
        variances.append(residual.var())
    return float(torch.stack(variances).mean().sqrt())
