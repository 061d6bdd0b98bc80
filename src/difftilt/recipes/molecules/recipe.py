"""Small molecules with a wanted property, from an unconditional diffusion model in 3D.

The prior is the shipped equivariant model of QM9's heavy atoms; the reward is a wanted value of a
property: of a regressor trained on molecules that the prior has not seen (alpha, gap, homo, lumo,
mu, cv), of rdkit (qed, logp, sa), or a substructure. All are black boxes, and samples that are no
molecule get the floor. The truth is rejection: prior samples accepted with the reward as
probability.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from difftilt.diagnostics.certificate import Certificate
from difftilt.diagnostics.distances import energy_distance
from difftilt.errors import InputError
from difftilt.forms import Form
from difftilt.posteriors import Prior, Sources
from difftilt.recipes.base import Drawn, Job, Recipe, metric_row
from difftilt.recipes.form import FormChoice
from difftilt.recipes.molecules.pairs import (
    DRAWS,
    HELD_OUT,
    LEVELS,
    PAIRS,
    SOURCE,
    Wanted,
    judged,
)
from difftilt.recipes.tables.fine_tuning import guided_fine_tuning
from difftilt.recipes.tables.rejection import halved, prior_log_z, rejected
from difftilt.sampling.draws import Samples
from difftilt.tasks.molecules.drawing import drawn as pictures_of
from difftilt.tasks.molecules.metrics import (
    SCORES,
    Score,
    consistency,
    molecules_of,
    quality,
    regressor_features,
)
from difftilt.tasks.molecules.models import (
    MOST_ATOMS,
    PROPERTIES,
    Property,
    load_regressor,
    molecule_prior,
)
from difftilt.tasks.molecules.rewards import PropertyReward, ScoreReward, SubstructureReward
from difftilt.training.plan import Training

PICTURES = 16
FEWEST = 8
NOTES = {
    "error": "mean distance of {} from the wanted value, of valid draws for held-out values",
    "width": "of {}, mean over held-out values",
    "coverage": "share of held-out molecules inside the draws' central interval",
    "p": "of the uniformity of their ranks; small: not calibrated",
}
UPDATES = 120
MoleculeReward = PropertyReward | ScoreReward | SubstructureReward


@dataclass(frozen=True)
class Molecules(Recipe):
    """Molecules with a wanted property, from the shipped 3D prior (a black-box regressor).

    Arguments:
        wanted: alpha, gap, homo, lumo, mu or cv (of the regressor), qed, logp or sa (of rdkit), or
            a SMARTS: a part that the molecule is to have.
        value: the wanted value, unused for a SMARTS; None: one posterior of every value, whose
            calibration is measured.
        width: standard deviation around it.
        valid: whether a sample of a regressor's property has to be a molecule.
        pairs: molecules and their values that a posterior of every value is trained for.
        atoms: heavy atoms of each molecule, 2 to 9; a posterior of several numbers is one network
            with a certificate of each.
        steps: N of the chain.
        beta: β.
        form: what carries the posterior.
        training: the plan.
    """

    wanted: str = "alpha"
    value: float | None = 82.0
    width: float = 2.0
    valid: bool = True
    pairs: int = PAIRS
    atoms: tuple[int, ...] = (MOST_ATOMS,)
    steps: int = 40
    beta: float = 1.0
    samples: int = 256
    certificate_paths: int = 512
    form: FormChoice = field(default_factory=lambda: FormChoice("full_copy", guided=True))
    training: Training = field(default_factory=lambda: guided_fine_tuning(UPDATES))

    def job(self) -> Job:
        if self.value is None:
            return self._job_of_every_value()
        prior = Prior(molecule_prior(self.steps), source=SOURCE)
        target = prior.tilt(self.reward(), self.beta)
        posterior = target.posterior(self.built_form())
        if self.atoms == (MOST_ATOMS,):
            return Job(target, posterior, self.training)
        if not self.atoms or not all(2 <= n <= MOST_ATOMS for n in self.atoms):
            raise InputError(f"atoms must lie between 2 and {MOST_ATOMS}, got {self.atoms}")
        contexts = torch.tensor(self.atoms)
        names = tuple(f"{n} atoms" for n in self.atoms)
        sources = Sources(conditions=lambda count, generator: _any_of(contexts, count, generator))
        return Job(target, posterior, self.training, sources, contexts, names)

    def built_form(self) -> Form | None:
        """What carries the posterior; a reward without a gradient guides nothing."""
        blind = not isinstance(self.reward(), PropertyReward)
        return (replace(self.form, guided=False) if blind else self.form).build()

    @property
    def every(self) -> Wanted:
        """What is wanted, of any value."""
        own = (self.wanted, self.width, self.valid, self.atoms, self.steps, self.beta)
        return Wanted(*own, pairs=self.pairs)

    def _job_of_every_value(self) -> Job:
        wanted = self.every
        target, contexts = wanted.target(), wanted.contexts()
        names = tuple(f"{self.wanted} {value:.3g}" for value in contexts[:, 1].tolist())
        posterior = target.posterior(self.built_form())
        return Job(target, posterior, self.training, wanted.sources(), contexts, names)

    def reward(self) -> MoleculeReward:
        """The reward that ``wanted`` names."""
        if self.value is None:
            return self.every.reward()
        if self.wanted in PROPERTIES:
            name = cast("Property", self.wanted)
            return PropertyReward(name, self.value, self.width, valid=self.valid)
        if self.wanted in SCORES:
            return ScoreReward(cast("Score", self.wanted), self.value, self.width)
        return SubstructureReward(self.wanted)

    def pictured(self, job: Job, samples: Samples) -> Tensor | None:
        """The first molecules, drawn flat, each with its property."""
        first = samples.x_0[:PICTURES]
        reward = self.reward()
        if isinstance(reward, SubstructureReward):
            return pictures_of(molecules_of(first))
        texts = [f"{self.wanted} {v:.3g}" for v in reward.values(first).tolist()]
        if job.contexts is not None and self.value is None:
            context = job.context_of(len(first))
            assert context is not None
            texts = [f"{t} for {w:.3g}" for t, w in zip(texts, context[:, 1].tolist(), strict=True)]
        return pictures_of(molecules_of(first), texts)

    def evaluation(self, job: Job, drawn: Drawn) -> dict[str, Any]:
        if self.value is None:
            return self._evaluation_of_every_value(job, drawn)
        # The truth is drawn from other prior draws than those that are compared with it.
        apart, compared = halved(drawn.prior, self.samples)
        members = rejected(apart, self.beta, self.training.seed)
        sets = {"prior": compared.x_0, "posterior": drawn.posterior.x_0, "truth": members}
        if drawn.corrected is not None:
            sets["corrected"] = drawn.corrected.x_0
        rows = [*self._agreement(sets), *_nearness(sets), *self._evidence(drawn)]
        note = f"The truth is {len(members)} other prior samples, accepted with probability r^β."
        return {"title": f"Molecules: {self.wanted}", "rows": rows, "notes": [note]}

    def _evaluation_of_every_value(self, job: Job, drawn: Drawn) -> dict[str, Any]:
        found, rows = judged(self.every, job.posterior.chain, self.training.seed), []
        for column, key in (("off target", "error"), ("width of 90% intervals", "width")):
            rows.append(metric_row(column, NOTES[key].format(self.wanted), found[key]))
        for level in LEVELS:
            values = {**found[level], "truth": level}
            rows.append(metric_row(f"coverage at {level:.0%}", NOTES["coverage"], values))
        rows.append(metric_row("calibration p-value", NOTES["p"], found["p"]))
        sets = {"prior": drawn.prior.x_0, "posterior": drawn.posterior.x_0}
        rows += self._quality(sets)
        note = (
            f"{HELD_OUT} held-out pairs of a molecule and a value, {DRAWS} draws for each value; "
            f"samples, certificate and the last rows are of {', '.join(job.names)}."
        )
        return {"title": f"Molecules: every {self.wanted}", "rows": rows, "notes": [note]}

    def _agreement(self, sets: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
        reward = self.reward()
        filled = {name: x for name, x in sets.items() if len(x)}
        if not isinstance(reward, SubstructureReward):
            off = {name: off_target(reward, x) for name, x in filled.items()}
            note = f"mean absolute error of {self.wanted} to {self.value:g}, of valid molecules"
            yield metric_row("off target", note, off)
        yield from self._quality(filled)

    @staticmethod
    def _quality(filled: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
        found = {name: quality(molecules_of(x)) for name, x in filled.items()}
        for key, note in (
            ("valid", "share in one piece with valences that can be met"),
            ("unique", "share of different ones among the valid"),
            ("new", "share of these that the prior was not trained on"),
        ):
            yield metric_row(key, note, {name: each[key] for name, each in found.items()})
        said = {name: consistency(x) for name, x in filled.items()}
        yield metric_row("consistent", "share with the hydrogens that every kind says", said)

    def _evidence(self, drawn: Drawn) -> Iterator[dict[str, Any]]:
        if isinstance(drawn.certificate, Certificate):
            best = drawn.certificate.defensive.best
            values = {"truth": prior_log_z(drawn.prior, self.beta), "posterior": best.value}
            note = f"posterior: the certificate, [{best.low:.2f}, {best.high:.2f}]"
            yield metric_row("log Z", note, values)


def off_target(reward: PropertyReward | ScoreReward, x_0: Tensor) -> float:
    """Mean absolute error of the wanted property over the samples that are molecules; NaN: none."""
    valid = torch.tensor([m is not None for m in molecules_of(x_0)])
    if reward.wanted is None or not valid.any():
        return float("nan")
    return float((reward.values(x_0[valid]) - reward.wanted).abs().mean())


def nearness(x_0: Tensor, members: Tensor) -> float:
    """Energy distance of two sets of molecules in standardised features of the regressor."""
    judge = load_regressor()
    seen, exact = regressor_features(judge, x_0), regressor_features(judge, members)
    spread = exact.std(0).clamp(min=1e-6)
    return float(energy_distance(seen / spread, exact / spread))


def _nearness(sets: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    half = len(sets["truth"]) // 2
    if half < FEWEST:
        return
    references, rest = sets["truth"][:half], sets | {"truth": sets["truth"][half:]}
    found = {name: nearness(x, references) for name, x in rest.items()}
    note = "energy distance to one half of the truth, in the regressor's features"
    yield metric_row("distance to the truth", note, found)


def _any_of(contexts: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return contexts[torch.randint(len(contexts), (count,), generator=generator)]
