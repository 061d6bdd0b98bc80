"""The main job on real images: one class of garments from an unconditional diffusion model.

The prior is the shipped diffusers pipeline over 28x28 garments; the reward is the log-probability
that a classifier gives to the class, used as a black box. A second classifier, trained on other
images, judges. The truth is rejection: prior samples accepted with the reward as probability.

With ``garment="every"`` one posterior is trained for all ten classes: a copy of the prior's network
that also reads the class, which starts at the prior for each; ``log Z`` of a class is the mean over
the paths that share it (or, with a learned log Z, a number of its own).
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from difftilt.diagnostics.certificate import Certificate
from difftilt.diagnostics.conditional import ConditionalCertificate
from difftilt.diagnostics.features import diversity, frechet_distance
from difftilt.errors import InputError
from difftilt.forms import FullCopy
from difftilt.loading import load
from difftilt.posteriors import Sources, Target
from difftilt.recipes.base import Drawn, Job, Recipe, metric_row
from difftilt.recipes.form import FormChoice
from difftilt.recipes.tables.fine_tuning import fine_tuning
from difftilt.recipes.tables.rejection import halved, prior_log_z, rejected
from difftilt.rewards.wrappers import ClassifierReward
from difftilt.tasks.images import (
    FASHION_CLASSES,
    Garment,
    fashion_prior_folder,
    features,
    load_classifier,
)
from difftilt.training.plan import Replaying, Training

CLASSES = len(FASHION_CLASSES)
PATHS_PER_CLASS = 4


def _training() -> Training:
    return fine_tuning(Replaying(pool_capacity=1024, pool_fresh=0, pool_effective=0.01))


@dataclass(frozen=True)
class Fashion(Recipe):
    """One class of garments from the shipped image prior (a black-box classifier as reward).

    Arguments:
        garment: the wanted class, or "every": one posterior that is told the class, for all ten,
            with at most 4 paths of each class in a batch and a certificate of each.
        steps: N of the chain (strided DDPM).
        beta: β.
        form: what carries the posterior.
        training: the plan.
    """

    garment: Garment | Literal["every"] = "bag"
    steps: int = 20
    beta: float = 1.0
    samples: int = 256
    certificate_paths: int = 512
    form: FormChoice = field(default_factory=lambda: FormChoice("full_copy"))
    training: Training = field(default_factory=_training)

    def job(self) -> Job:
        prior, classifier = load(fashion_prior_folder(), self.steps), load_classifier("reward")
        if self.garment == "every":
            return self._every(prior.tilt(ClassifierReward(classifier), self.beta))
        reward = ClassifierReward(classifier, FASHION_CLASSES.index(self.garment))
        target = prior.tilt(reward, self.beta)
        return Job(target, target.posterior(self.form.build()), self.training)

    def _every(self, target: Target) -> Job:
        if self.form.kind != "full_copy":
            raise InputError(
                f"a posterior of every class is a full copy, got form.kind={self.form.kind!r}; "
                "use full_copy, or name one garment"
            )
        form = FullCopy(labels=CLASSES)
        plan = self.training
        plan = replace(plan, paths_per_condition=min(PATHS_PER_CLASS, plan.paths_per_condition))
        sources = Sources(conditions=any_class, labels=CLASSES)
        every = torch.arange(CLASSES)
        return Job(target, target.posterior(form), plan, sources, every, FASHION_CLASSES)

    def evaluation(self, job: Job, drawn: Drawn) -> dict[str, Any]:
        if job.contexts is not None:
            return _of_each_class(job, drawn, self.beta)
        # The truth is drawn from other prior draws than those that are compared with it.
        apart, compared = halved(drawn.prior, self.samples)
        members = rejected(apart, self.beta, self.training.seed)
        corrected = None if drawn.corrected is None else drawn.corrected.x_0
        sets = {"prior": compared.x_0, "posterior": drawn.posterior.x_0}
        sets |= {"truth": members} | ({} if corrected is None else {"corrected": corrected})
        judge = load_classifier("heldout")
        seen = {name: features(judge, x) for name, x in sets.items()}
        shares = {name: self._share(judge, x) for name, x in sets.items()}
        spread = {name: diversity(f) for name, f in seen.items()}
        distance = {
            name: frechet_distance(f, seen["truth"]) for name, f in seen.items() if name != "truth"
        }
        assert isinstance(drawn.certificate, Certificate)
        evidence = drawn.certificate.defensive.best
        rows = [
            metric_row("share of the class", "by the held-out classifier", shares),
            metric_row("diversity", "mean pairwise feature distance", spread),
            metric_row("Fréchet distance to the truth", "held-out classifier's features", distance),
            metric_row(
                "log Z",
                f"truth: {len(drawn.prior.x_0)} rewards of prior samples; posterior: the "
                f"certificate, [{evidence.low:.2f}, {evidence.high:.2f}]",
                {"truth": prior_log_z(drawn.prior, self.beta), "posterior": evidence.value},
            ),
        ]
        note = f"The truth is {len(members)} other prior samples, accepted with probability r^β."
        return {"title": f"Garment: {self.garment}", "rows": rows, "notes": [note]}

    def _share(self, judge: torch.nn.Module, x: Tensor) -> float:
        labels = torch.full((len(x),), FASHION_CLASSES.index(self.garment))  # type: ignore[arg-type]
        return float(_right(judge, x, labels).mean())


def any_class(count: int, generator: torch.Generator) -> Tensor:
    """Conditions for training: classes, each as often as the others, (count,)."""
    return torch.randint(CLASSES, (count,), generator=generator)


@torch.no_grad()
def _right(judge: torch.nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """1 where the held-out classifier finds a sample to be of its class, else 0."""
    return (judge(x).argmax(1) == labels).double()


def _of_each_class(job: Job, drawn: Drawn, beta: float) -> dict[str, Any]:
    """A row of each class: how many samples are of it, and its log Z."""
    judge = load_classifier("heldout")
    sets = {"prior": drawn.prior, "posterior": drawn.posterior}
    sets |= {} if drawn.corrected is None else {"corrected": drawn.corrected}
    labels = {name: torch.arange(len(s.x_0)) % CLASSES for name, s in sets.items()}
    right = {name: _right(judge, s.x_0, labels[name]) for name, s in sets.items()}
    mean = {name: float(r.mean()) for name, r in right.items()}
    rows = [metric_row("share of the class", "of all ten, by the held-out classifier", mean)]
    assert isinstance(drawn.certificate, ConditionalCertificate)
    for k, (name, found) in enumerate(zip(FASHION_CLASSES, drawn.certificate.each, strict=False)):
        own = torch.full((len(drawn.prior.x_0),), k)
        log_r = job.target.score(drawn.prior.x_0, own)
        best = found.defensive.best
        values = {
            "truth": prior_log_z(replace(drawn.prior, log_r=log_r), beta),
            "posterior": best.value,
        }
        note = f"of all prior samples; posterior: [{best.low:.2f}, {best.high:.2f}]"
        rows.append(metric_row(f"log Z of {name}", note, values))
        share = {s: float(r[labels[s] == k].mean()) for s, r in right.items()}
        rows.append(metric_row(f"share of {name}", "of its samples", share))
    note = f"Certificate on average: {drawn.certificate.verdict}."
    return {"title": "Every garment, from one posterior", "rows": rows, "notes": [note]}
