"""Furniture as clouds of points: one class, or a measure, from an unconditional diffusion model.

The prior is the shipped model of 256-point clouds of five classes; the reward is what a PointNet
says of a class, or how near a measure of the cloud is to a wanted value, used as a black box. A
second classifier, trained on other shapes, judges. The truth is rejection: prior samples accepted
with the reward as probability. Sets of clouds are compared as the field does, by COV, 1-NNA and MMD
under the Chamfer and the exact earth mover's distance.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from difftilt.diagnostics.certificate import Certificate
from difftilt.diagnostics.features import diversity, frechet_distance
from difftilt.loading import load
from difftilt.recipes.base import Drawn, Job, Recipe, metric_row
from difftilt.recipes.form import FormChoice
from difftilt.recipes.tables.fine_tuning import guided_fine_tuning
from difftilt.recipes.tables.rejection import halved, prior_log_z, rejected
from difftilt.tasks.shapes.distances import (
    SetDistances,
    compare_sets,
    occupancy_divergence,
)
from difftilt.tasks.shapes.furniture import SHAPE_CLASSES
from difftilt.tasks.shapes.judges import (
    cloud_features,
    judged,
    load_judge,
    shape_prior_folder,
)
from difftilt.tasks.shapes.targets import shape_target
from difftilt.training.plan import Training

COMPARED: dict[str, int] = {"chamfer": 64, "emd": 24}
FEWEST = 8
UPDATES = 100


@dataclass(frozen=True)
class Shapes(Recipe):
    """One class of furniture, or a measure of it, from the shipped point-cloud prior.

    Arguments:
        target: chair, table, sofa, lamp or vase; seat (chair or sofa); flat, slender or symmetric.
        steps: N of the chain.
        beta: β.
        form: what carries the posterior.
        training: the plan.
    """

    target: str = "chair"
    steps: int = 20
    beta: float = 1.0
    samples: int = 128
    certificate_paths: int = 256
    form: FormChoice = field(default_factory=lambda: FormChoice("full_copy", guided=True))
    training: Training = field(default_factory=lambda: guided_fine_tuning(UPDATES))

    def job(self) -> Job:
        reward = shape_target(self.target).reward()
        prior = replace(load(shape_prior_folder(), self.steps), source="shipped: furniture")
        target = prior.tilt(reward, self.beta)
        return Job(target, target.posterior(self.form.build()), self.training)

    def evaluation(self, job: Job, drawn: Drawn) -> dict[str, Any]:
        # The truth is drawn from other prior draws than those that are compared with it.
        apart, compared = halved(drawn.prior, self.samples)
        members = rejected(apart, self.beta, self.training.seed)
        sets = {"prior": compared.x_0, "posterior": drawn.posterior.x_0, "truth": members}
        if drawn.corrected is not None:
            sets["corrected"] = drawn.corrected.x_0
        rows = [*self._agreement(sets), *set_rows(sets), self._evidence(drawn)]
        note = f"The truth is {len(members)} other prior samples, accepted with probability r^β."
        return {"title": f"Shapes: {self.target}", "rows": rows, "notes": [note, SET_NOTE]}

    def _agreement(self, sets: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
        wanted = shape_target(self.target)
        hits = {name: float(wanted.hits(x).mean()) for name, x in sets.items()}
        yield metric_row("as wanted", wanted.summary, hits)
        judge = load_judge("heldout")
        found = {name: judged(judge, x).argmax(1) for name, x in sets.items()}
        for k, shape in enumerate(SHAPE_CLASSES):
            share = {name: float((y == k).double().mean()) for name, y in found.items()}
            yield metric_row(f"share of {shape}", "by the held-out classifier", share)

    def _evidence(self, drawn: Drawn) -> dict[str, Any]:
        assert isinstance(drawn.certificate, Certificate)
        best = drawn.certificate.defensive.best
        values = {"truth": prior_log_z(drawn.prior, self.beta), "posterior": best.value}
        note = f"posterior: the certificate, [{best.low:.2f}, {best.high:.2f}]"
        return metric_row("log Z", note, values)


SET_NOTE = (
    "Sets are compared with the first half of the truth, in equal numbers; the truth's own column "
    "is its second half, which is what a perfect sampler would show."
)


def set_rows(sets: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """Rows that compare sets of clouds with the truth; none where the truth is a handful."""
    truth = sets["truth"]
    half = len(truth) // 2
    if half < FEWEST:
        return
    references, rest = truth[:half], sets | {"truth": truth[half:]}
    for kind, most in COMPARED.items():
        n = min(most, half, *(len(x) for x in rest.values()))
        found = {name: compare_sets(x[:n], references[:n], kind) for name, x in rest.items()}
        yield from _distance_rows(found, f"{kind}, {n} clouds of each")
    spread = {name: occupancy_divergence(x, references) for name, x in rest.items()}
    yield metric_row("JSD", "occupancy of a 16³ grid, nats; smaller is nearer", spread)
    judge = load_judge("heldout")
    seen = {name: cloud_features(judge, x) for name, x in rest.items()}
    yield metric_row(
        "diversity", "mean pairwise feature distance", {k: diversity(f) for k, f in seen.items()}
    )
    exact = cloud_features(judge, references)
    near = {name: frechet_distance(f, exact) for name, f in seen.items()}
    yield metric_row("Fréchet distance to the truth", "held-out classifier's features", near)


def _distance_rows(found: dict[str, SetDistances], note: str) -> Iterator[dict[str, Any]]:
    for key, name, better in (
        ("mmd", "MMD", "smaller is nearer"),
        ("coverage", "COV", "larger is more diverse"),
        ("nearest", "1-NNA", "0.5 is best"),
    ):
        values = {sampler: getattr(each, key) for sampler, each in found.items()}
        yield metric_row(name, f"{note}; {better}", values)
