"""What the sequence task is run on: priors, labelled pairs of two controls, and a judge of both.

| set | sequences | control 1 | control 2 | the judge |
|---|---|---|---|---|
| ``dna`` | 6 bases of a Markov chain | activity A | activity B | the law of the labels itself |
| ``peptides`` | real, at most 32 residues | antimicrobial | hydrophobic | a classifier; the scale |
| ``selfies`` | real, at most 9 heavy atoms | lipophilic | with a carbonyl group | rdkit |

Each control has pairs (x, y_k) of its own, and no sample carries both labels. The judge sees both,
and nothing is trained on it: the peptides' antimicrobial classifier is of pairs that neither the
prior nor a control has seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.models.token_transformer import TransformerSize
from difftilt.tasks.controls import Fit
from difftilt.tasks.sequences import dna, molecules, peptides
from difftilt.tasks.sequences.counts import (
    Features,
    SequenceClassifier,
    counts,
    placed,
    sequence_classifier,
)
from difftilt.tasks.sequences.network import SequenceNetwork
from difftilt.tasks.shipped import filled, shipped_folder, unusable

SequenceName = Literal["dna", "peptides", "selfies"]
SCRIPT = "scripts/train_sequences.py"
SIZES = {
    "dna": (len(dna.BASES), TransformerSize(32, 2, 2)),
    "peptides": (1 + len(peptides.AMINO_ACIDS), TransformerSize(64, 3, 4)),
    "selfies": (1 + len(molecules.TOKENS), TransformerSize(64, 3, 4)),
}
"""Vocabulary and network of each prior."""

OFFLINE = 100_000
Pairs = tuple[Tensor, Tensor]
"""Sequences, (n, L) ids, and the label of each, (n,); n differs from set to set."""


@dataclass(frozen=True, eq=False)
class SequenceSet:
    """Sequences with two controls.

    Arguments:
        length: L.
        network: the prior's.
        controls: what ``y_k = 1`` says.
        pairs: the labelled pairs of each control, apart.
        judge: ``ids -> p(y_k = 1 | x)``, (B, 2); 0 or 1 where the label is certain.
        written: sequences as text.
        features: what the controls' classifiers see.
        fit: of them.
        known: fingerprints of the prior's molecules; empty for other sequences.
    """

    length: int
    network: SequenceNetwork
    controls: tuple[str, str]
    pairs: tuple[Pairs, Pairs]
    judge: Callable[[Int[Tensor, "B L"]], Float[Tensor, "B 2"]]
    written: Callable[[Int[Tensor, "B L"]], list[str]]
    features: Features
    fit: Fit
    known: Int[Tensor, " m"] | None = None

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.network.vocab_size

    def classifiers(self, seed: int = 0) -> list[SequenceClassifier]:
        """One for each control, learned from its own pairs alone; the same for the same seed."""
        return list(_learned(self, seed))


@cache
def _learned(found: SequenceSet, seed: int) -> tuple[SequenceClassifier, ...]:
    fit = replace(found.fit, seed=seed)
    return tuple(sequence_classifier(*each, found.features, fit) for each in found.pairs)


def sequence_set(name: SequenceName) -> SequenceSet:
    """A set by name; nothing in it changes, so that it is built once.

    Raises:
        CheckpointError: a shipped file is missing.
        MissingPackage: "selfies" without rdkit or selfies.
    """
    return _BUILT[name]()


@cache
def _dna() -> SequenceSet:
    generator = torch.Generator().manual_seed(0)
    pairs = [_labelled_dna(activity, generator) for activity in dna.ACTIVITIES]
    return SequenceSet(
        dna.LENGTH,
        _network("dna", dna.LENGTH),
        ("active in A", "active in B"),
        (pairs[0], pairs[1]),
        dna.activities,
        lambda ids: ["".join(dna.BASES[i] for i in row) for row in ids.tolist()],
        partial(placed, vocab_size=len(dna.BASES)),
        Fit(updates=1500),
    )


def _labelled_dna(activity: dna.Activity, generator: torch.Generator) -> Pairs:
    x = dna.drawn_dna(OFFLINE, generator)
    return x, (torch.rand(len(x), generator=generator) < activity(x)).long()


@cache
def _peptides() -> SequenceSet:
    shipped, fit = _shipped_pairs("peptides"), Fit(updates=120)
    features = partial(counts, vocab_size=SIZES["peptides"][0])
    oracle = sequence_classifier(*_pairs(shipped, "judge"), features, replace(fit, seed=1))

    def judge(ids: Int[Tensor, "B L"]) -> Float[Tensor, "B 2"]:
        hydrophobic = (peptides.hydropathy(ids) > 0).float()
        return torch.stack([oracle(ids).softmax(1)[:, 1], hydrophobic], 1)

    return SequenceSet(
        peptides.LENGTH,
        _network("peptides", peptides.LENGTH),
        ("antimicrobial", "hydrophobic"),
        (_pairs(shipped, "first"), _pairs(shipped, "second")),
        judge,
        peptides.decoded,
        features,
        fit,
    )


@cache
def _selfies() -> SequenceSet:
    shipped = _shipped_pairs("selfies")
    return SequenceSet(
        molecules.LENGTH,
        _network("selfies", molecules.LENGTH),
        ("lipophilic", "with a carbonyl group"),
        (_pairs(shipped, "first"), _pairs(shipped, "second")),
        molecules.controls,
        molecules.decoded_smiles,
        partial(counts, vocab_size=SIZES["selfies"][0]),
        Fit(updates=500),
        torch.from_numpy(shipped["known"].astype(np.int64)),
    )


_BUILT: dict[SequenceName, Callable[[], SequenceSet]] = {
    "dna": _dna,
    "peptides": _peptides,
    "selfies": _selfies,
}


def _network(name: SequenceName, length: int) -> SequenceNetwork:
    path = shipped_folder("sequences") / f"{name}.safetensors"
    vocab_size, size = SIZES[name]
    return filled(SequenceNetwork(vocab_size, length, size), path, SCRIPT)


def _shipped_pairs(name: SequenceName) -> dict[str, np.ndarray]:
    path = shipped_folder("sequences") / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as opened:
            return dict(opened)
    except (OSError, ValueError) as error:
        raise unusable(path, error, SCRIPT) from error


def _pairs(shipped: dict[str, np.ndarray], name: str) -> Pairs:
    x, y = shipped[f"{name}_x"], shipped[f"{name}_y"]
    return torch.from_numpy(x.astype(np.int64)), torch.from_numpy(y.astype(np.int64))
