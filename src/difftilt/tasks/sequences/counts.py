"""Sequences as vectors, and classifiers of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.tasks.controls import Fit, LabelledSet, calibrated_classifier


def counts(ids: Int[Tensor, "B L"], vocab_size: int, longest: int = 2) -> Float[Tensor, "B d"]:
    """Occurrences of every run of 1 ... ``longest`` tokens, pads included; d = V + V^2 + ..."""
    parts = []
    for k in range(1, longest + 1):
        place = vocab_size ** torch.arange(k - 1, -1, -1, device=ids.device)
        codes = (ids.unfold(1, k, 1) * place).sum(2)
        none = torch.zeros(len(ids), vocab_size**k, device=ids.device)
        parts.append(none.scatter_add(1, codes, torch.ones_like(codes, dtype=none.dtype)))
    return torch.cat(parts, 1)


def placed(ids: Int[Tensor, "B L"], vocab_size: int) -> Float[Tensor, "B d"]:
    """Which token stands where; d = L V."""
    return torch.nn.functional.one_hot(ids, vocab_size).flatten(1).float()


Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SequenceClassifier:
    """A calibrated classifier of sequences, ``ids (B, L) -> logits (B, 2)``.

    Arguments:
        network: of the features.
        features: of the sequences.
    """

    network: Callable[[Tensor], Tensor]
    features: Features

    def __call__(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B 2"]:
        return self.network(self.features(ids))


def sequence_classifier(
    ids: Int[Tensor, "n L"], y: Int[Tensor, " n"], features: Features, fit: Fit | None = None
) -> SequenceClassifier:
    """The classifier of labelled sequences.

    Raises:
        InputError: a label that is neither 0 nor 1, or not one for each sequence.
    """
    pairs = LabelledSet(features(ids), y.long())
    return SequenceClassifier(calibrated_classifier(pairs, 2, fit), features)
