"""Peptides as ids, and how hydrophobic they are.

Id 0 is the pad, which ends a sequence; 1 to 20 are the amino acids in the order of ``AMINO_ACIDS``.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.errors import InputError

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
LENGTH = 32
HYDROPATHY = {
    **{"I": 4.5, "V": 4.2, "L": 3.8, "F": 2.8, "C": 2.5, "M": 1.9, "A": 1.8, "G": -0.4},
    **{"T": -0.7, "S": -0.8, "W": -0.9, "Y": -1.3, "P": -1.6, "H": -3.2},
    **{"E": -3.5, "Q": -3.5, "D": -3.5, "N": -3.5, "K": -3.9, "R": -4.5},
}
"""Kyte and Doolittle 1982, table 2; above 0 is hydrophobic."""


def encoded(sequences: Sequence[str]) -> Int[Tensor, "n L"]:
    """Ids of peptides, padded.

    Raises:
        InputError: one is too long, or holds another letter.
    """
    for each in sequences:
        if len(each) > LENGTH or not set(each) <= set(AMINO_ACIDS):
            raise InputError(
                f"peptide {each[:40]!r} is longer than {LENGTH} or holds letters other than "
                f"{AMINO_ACIDS}; leave it out"
            )
    rows = [[1 + AMINO_ACIDS.index(a) for a in s] + [0] * (LENGTH - len(s)) for s in sequences]
    return torch.tensor(rows, dtype=torch.long).reshape(len(sequences), LENGTH)


def decoded(ids: Int[Tensor, "B L"]) -> list[str]:
    """Letters of each row, pads left out."""
    return ["".join(AMINO_ACIDS[i - 1] for i in row if i > 0) for row in ids.tolist()]


def hydropathy(ids: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
    """Mean hydropathy of the residues (GRAVY); 0 for a sequence of pads alone."""
    scale = torch.tensor([0.0, *(HYDROPATHY[acid] for acid in AMINO_ACIDS)])
    return scale[ids].sum(1) / (ids > 0).sum(1).clamp(min=1)
