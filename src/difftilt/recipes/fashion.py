"""The main job on real images: one class of garments from an unconditional diffusion model.

The prior is the shipped diffusers pipeline over 28x28 garments; the reward is the log-probability
that a classifier gives to the class, used as a black box. A second classifier, trained on other
images, judges. The truth is rejection: prior samples accepted with the reward as probability.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from difftilt.diagnostics.certificate import Certificate
from difftilt.posteriors import load
from difftilt.recipes.base import Drawn, Job, Recipe, metric_row
from difftilt.recipes.form import FormChoice
from difftilt.rewards import ClassifierReward
from difftilt.sampling import Samples
from difftilt.tasks.images import (
    FASHION_CLASSES,
    Garment,
    diversity,
    fashion_prior_folder,
    features,
    frechet_distance,
    load_classifier,
)
from difftilt.training.plan import RTB, BehaviourWeights, Optimisation, Replaying, Training


def _training() -> Training:
    return Training(
        steps=240,
        batch=16,
        warm_start=0.83,
        warm_start_loss="denoising",
        anchor=0.008,
        chunk=128,
        subset=8,
        warm_start_subset=8,
        objective=RTB(residual_clip=10.0),
        optimisation=Optimisation(learning_rate=1e-3, balance_scale=0.3, decay_from=0.5, ema=0.98),
        behaviour=BehaviourWeights(on_policy=0.5, pool=0.5),
        replaying=Replaying(pool_capacity=1024, pool_fresh=0, pool_effective=0.01),
    )


@dataclass(frozen=True)
class Fashion(Recipe):
    """One class of garments from the shipped image prior (a black-box classifier as reward).

    Arguments:
        garment: the wanted class.
        steps: N of the chain (strided DDPM).
        beta: β.
        form: what carries the posterior.
        training: the plan.
    """

    garment: Garment = "bag"
    steps: int = 20
    beta: float = 1.0
    samples: int = 256
    certificate_paths: int = 512
    form: FormChoice = field(default_factory=lambda: FormChoice("full_copy"))
    training: Training = field(default_factory=_training)

    @property
    def label(self) -> int:
        """Index of the class."""
        return FASHION_CLASSES.index(self.garment)

    def job(self) -> Job:
        prior = load(fashion_prior_folder(), self.steps)
        reward = ClassifierReward(load_classifier("reward"), self.label)
        target = prior.tilt(reward, self.beta)
        return Job(target, target.posterior(self.form.build()), self.training)

    def evaluation(self, job: Job, drawn: Drawn) -> dict[str, Any]:
        members = _rejected(drawn.prior, self.beta, self.training.seed)
        corrected = None if drawn.corrected is None else drawn.corrected.x_0
        sets = {"prior": drawn.prior.x_0, "posterior": drawn.posterior.x_0}
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
                {"truth": _log_z(drawn.prior, self.beta), "posterior": evidence.value},
            ),
        ]
        note = f"The truth is {len(members)} prior samples, accepted with probability r^β."
        return {"title": f"Garment: {self.garment}", "rows": rows, "notes": [note]}

    def _share(self, judge: torch.nn.Module, x: Tensor) -> float:
        with torch.no_grad():
            return float((judge(x).argmax(1) == self.label).float().mean())


def _rejected(prior: Samples, beta: float, seed: int) -> Tensor:
    assert prior.log_r is not None
    uniform = torch.rand(len(prior.log_r), generator=torch.Generator().manual_seed(seed))
    return prior.x_0[uniform.log() < beta * prior.log_r]


def _log_z(prior: Samples, beta: float) -> float:
    assert prior.log_r is not None
    return float((beta * prior.log_r).double().exp().mean().log())
