"""Short DNA with two known activities: the sequences whose posterior can be summed.

    x ~ a Markov chain of bases in which CG is rare, as in vertebrate genomes
    p(y_k = 1 | x) = sigmoid(slope (best match of motif k in x - threshold)),     k = 1, 2

A match counts the letters that agree with a motif, at its best place. The two activities stand for
two cell types that read one sequence each with their own factor (GATA, and the half-site TGAC that
AP-1 and CREB share); they are independent given x, and no sample carries both.

The scheme follows the second experiment of Zhao et al. 2024 (CTRL, arXiv 2406.12120).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BASES = "ACGT"
MOTIFS = ("GATA", "TGAC")
LENGTH = 6
FIRST = (0.29, 0.21, 0.21, 0.29)
NEXT = (
    (0.33, 0.17, 0.25, 0.25),
    (0.35, 0.25, 0.05, 0.35),
    (0.29, 0.21, 0.25, 0.25),
    (0.22, 0.20, 0.25, 0.33),
)
"""Probabilities of the base after A, C, G, T; close to those of the human genome."""


def drawn_dna(n: int, generator: torch.Generator, length: int = LENGTH) -> Int[Tensor, "n L"]:
    """``n`` sequences of the Markov chain, as ids of A, C, G, T."""
    table = torch.tensor(NEXT)
    found = [torch.multinomial(torch.tensor(FIRST), n, replacement=True, generator=generator)]
    for _ in range(length - 1):
        found.append(torch.multinomial(table[found[-1]], 1, generator=generator)[:, 0])
    return torch.stack(found, 1)


@dataclass(frozen=True)
class Activity:
    """``p(y = 1 | x)`` from the best match of a motif.

    Arguments:
        motif: over A, C, G, T.
        slope: nats of log-odds per matching letter.
        threshold: letters of a match at even odds.
    """

    motif: str
    slope: float = 2.5
    threshold: float = 3.0

    def __call__(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        wanted = torch.tensor([BASES.index(base) for base in self.motif], device=ids.device)
        matches = (ids.unfold(1, len(wanted), 1) == wanted).sum(2).amax(1)
        return torch.sigmoid(self.slope * (matches.float() - self.threshold))


ACTIVITIES = tuple(Activity(motif) for motif in MOTIFS)


def activities(ids: Int[Tensor, "B L"]) -> Float[Tensor, "B 2"]:
    """``p(y_k = 1 | x)`` of both activities."""
    return torch.stack([activity(ids) for activity in ACTIVITIES], 1)
