"""The sequence task: two wanted properties at once, though no sample carries both labels.

The prior is a masked diffusion over sequences, unconditional; each of two controls has pairs
(x, y_k) of its own, from which a classifier is learned; one posterior is trained for all four
pairs of labels, and a judge that knows both says how often it is right. Three sets are shipped:

* ``dna``: six bases with two known activities, where the joint posterior is a sum;
* ``peptides``: real ones, antimicrobial or not, hydrophobic or not;
* ``selfies``: molecules of QM9 as SELFIES; lipophilic or not, with a carbonyl group or not. Here
  ``wanted`` asks rdkit instead, as a black box: QED, logP, synthetic accessibility, a substructure.

Source of the scheme: Zhao et al. 2024 (CTRL, arXiv 2406.12120), section 5.2.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from difftilt.errors import InputError
from difftilt.posteriors import Sources, Target
from difftilt.recipes.base import Drawn, Job, Recipe, metric_row, tell
from difftilt.recipes.form import FormChoice
from difftilt.recipes.sequences.parts import (
    Drawings,
    Wanted,
    chain_distance,
    controls_reward,
    distance,
    drawn_pairs,
    every_pair,
    joint_law,
    learned_law,
    pair_accuracy,
    resampled,
    sequence_prior,
    true_drawings,
)
from difftilt.sampling.draws import Samples
from difftilt.tasks.exact.controls import PAIRS
from difftilt.tasks.sequences import molecules
from difftilt.tasks.sequences.sets import SequenceName, SequenceSet, sequence_set
from difftilt.training.plan import RTB, BehaviourWeights, Optimisation, Training

TRUTH_DRAWS = 4096
PRIOR_DRAWS = 4096
ROWS_SHOWN = 3


def _training() -> Training:
    """As many network calls for every set: many updates of short sequences, few of long ones.

    Most of them raise the likelihood of prior draws that were resampled for each pair of labels;
    balance alone, at these rates, learns little of long sequences (``docs/log.md``).
    """
    return Training(
        network_calls=500_000,
        batch=64,
        paths_per_condition=16,
        warm_start=0.9,
        warm_start_from="data",
        warm_start_subset=6,
        subset=6,
        chunk=1024,
        objective=RTB(residual_clip=6.0),
        optimisation=Optimisation(3e-3, 6e-3, head_learning_rate=0.03, decay_from=0.3, ema=0.97),
        behaviour=BehaviourWeights(on_policy=0.7, prior=0.3, pool=0.0),
    )


@dataclass(frozen=True)
class Sequences(Recipe):
    """Sequences with two properties that no sample is labelled with together (CTRL on tokens).

    Arguments:
        data: "dna" (exact), "peptides" (real) or "selfies" (molecules).
        wanted: what molecules are asked for: the two controls, or something of rdkit.
        strength: γ of each control; 1 is conditioning.
        beta: β.
        samples: drawn for the report, the pairs of labels in turn.
        form: what carries the posterior.
        training: the plan.
    """

    data: SequenceName = "dna"
    wanted: Wanted = field(default_factory=Wanted)
    strength: float = 1.0
    beta: float = 1.0
    samples: int = 512
    certificate_paths: int = 1024
    form: FormChoice = field(
        default_factory=lambda: FormChoice("full_copy", learned_temperature=True)
    )
    training: Training = field(default_factory=_training)

    @cached_property
    def found(self) -> SequenceSet:
        """Prior, pairs and judge."""
        return sequence_set(self.data)

    @property
    def has_controls(self) -> bool:
        """Whether the target has labels."""
        return self.wanted.kind == "controls"

    def job(self) -> Job:
        if not self.has_controls and self.data != "selfies":
            raise InputError(
                f"wanted={self.wanted.kind!r} is asked of molecules; use data='selfies', or "
                "'controls' for other sequences"
            )
        found, length = self.found, self.found.length
        if self.has_controls:
            reward = controls_reward(found, self.strength, self.training.seed)
            contexts, drawn = every_pair(length), drawn_pairs(length)
        else:
            reward = self.wanted.reward(found)
            contexts = every_pair(length)[:1]
            drawn = lambda count, generator: contexts.expand(count, -1, -1)  # noqa: E731
        target = sequence_prior(found, self.data).tilt(reward, self.beta, log_bound=0.0)
        return Job(
            target,
            target.posterior(self.form.build()),
            self.training,
            Sources(conditions=drawn, ends=lambda: self._ends(target, contexts)),
            contexts,
            self._names(),
        )

    def _ends(self, target: Target, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """What the warm start raises the likelihood of."""
        tell(f"drawing {PRIOR_DRAWS} sequences of the prior")
        chain, seed = target.prior.chain, self.training.seed + 7
        return resampled(chain, _score(target), contexts, PRIOR_DRAWS, seed)

    def _names(self) -> tuple[str, ...]:
        if not self.has_controls:
            return (self.wanted.kind,)
        return tuple(
            ", ".join(_said(name, y) for name, y in zip(self.found.controls, pair, strict=True))
            for pair in PAIRS
        )

    def readable(self, job: Job, samples: Samples) -> list[str]:
        return self.found.written(samples.x_0[:, : self.found.length])

    def evaluation(self, job: Job, drawn: Drawn) -> dict[str, Any]:
        sets = self._sets(job, drawn)
        rows = [self._reward_row(drawn)]
        if self.has_controls:
            rows += self._accuracy_rows(sets)
        rows.append(self._distance_row(job, sets))
        if self.data == "dna":
            rows += self._law_rows(job)
        if self.data == "selfies":
            rows += self._molecule_rows(sets)
        return {
            "title": f"Sequences: {self.data}",
            "rows": rows,
            "notes": ["truth: draws of the prior, accepted with probability r(x, y)^β."],
            "texts": self._texts(job, sets),
        }

    def _sets(self, job: Job, drawn: Drawn) -> dict[str, Drawings]:
        assert job.contexts is not None
        length, count = self.found.length, len(job.contexts)
        samples = {"prior": drawn.prior, "posterior": drawn.posterior}
        found = {name: Drawings.in_turn(s.x_0, length, count) for name, s in samples.items()}
        found["truth"] = self._truth(job, self.training.seed + 5)
        return found

    def _truth(self, job: Job, seed: int) -> Drawings:
        assert job.contexts is not None
        chain = job.target.prior.chain
        return true_drawings(chain, _score(job.target), job.contexts, TRUTH_DRAWS, seed)

    def _reward_row(self, drawn: Drawn) -> dict[str, Any]:
        named = {"prior": drawn.prior, "posterior": drawn.posterior, "corrected": drawn.corrected}
        means = {
            name: float(s.log_r.mean())
            for name, s in named.items()
            if s is not None and s.log_r is not None
        }
        return metric_row("mean log r", "nats, of the wanted labels", means)

    def _accuracy_rows(self, sets: dict[str, Drawings]) -> list[dict[str, Any]]:
        right = {name: pair_accuracy(self.found, each) for name, each in sets.items()}
        rows = [
            metric_row(pair, "share with both labels", {n: each[i] for n, each in right.items()})
            for i, pair in enumerate(self._names())
        ]
        mean = {name: sum(each) / len(each) for name, each in right.items()}
        return [*rows, metric_row("both labels right", "mean over the pairs of labels", mean)]

    def _distance_row(self, job: Job, sets: dict[str, Drawings]) -> dict[str, Any]:
        again = self._truth(job, self.training.seed + 6)
        values = {
            name: distance(self.found, each, again if name == "truth" else sets["truth"])
            for name, each in sets.items()
        }
        note = "energy distance of counted tokens and pairs; of truth: to as many new draws"
        return metric_row("distance to the truth", note, values)

    def _law_rows(self, job: Job) -> list[dict[str, Any]]:
        assert job.contexts is not None
        prior, posterior = job.target.prior.chain, job.posterior.chain
        learned = learned_law(job.target.score, prior, job.contexts)
        laws = {
            "true labels'": joint_law(self.found, prior, job.contexts),
            "learned controls'": learned,
        }
        rows = []
        for name, law in laws.items():
            values = {
                "prior": chain_distance(prior, job.contexts, law),
                "posterior": chain_distance(posterior, job.contexts, law),
                "truth": 0.5 * (learned - law).abs().sum(1),
            }
            note = "exact, mean over the pairs; truth: of the learned controls' own posterior"
            means = {key: float(value.mean()) for key, value in values.items()}
            rows.append(metric_row(f"total variation to the {name} posterior", note, means))
        return rows

    def _molecule_rows(self, sets: dict[str, Drawings]) -> list[dict[str, Any]]:
        assert self.found.known is not None
        shares = {
            name: molecules.molecule_shares(
                molecules.decoded_smiles(torch.cat(each.ids)), self.found.known
            )
            for name, each in sets.items()
        }
        notes = {
            "validity": "share, by rdkit",
            "uniqueness": "share of the valid",
            "novelty": "share of the unique that the prior was not trained on",
        }
        return [
            metric_row(kind, note, {name: found[kind] for name, found in shares.items()})
            for kind, note in notes.items()
        ]

    def _texts(self, job: Job, sets: dict[str, Drawings]) -> list[dict[str, str]]:
        """Some sequences side by side, of every pair of labels."""
        rows = []
        for c, name in enumerate(self._names()):
            shown = {
                key: self.found.written(each.ids[c][:ROWS_SHOWN]) for key, each in sets.items()
            }
            for i in range(ROWS_SHOWN):
                row = {key: lines[i] if i < len(lines) else "" for key, lines in shown.items()}
                rows.append({"wanted": name, **row})
        return rows


def _score(target: Target) -> Callable[[Tensor, Tensor], Tensor]:
    """``β log r`` of ends and conditions."""
    return lambda x_0, condition: target.beta * target.score(x_0, condition)


def _said(name: str, y: int) -> str:
    return name if y else f"not {name}"
