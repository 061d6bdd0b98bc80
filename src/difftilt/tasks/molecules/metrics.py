"""What is said of a set of molecules: valid, unique, new, and their properties by rdkit.

A sample is *valid* if ``chemistry.molecule_of`` finds a molecule in it, and *consistent* if every
atom also has the hydrogens that its kind says; *unique* is the share of different SMILES among the
valid ones, and *new* the share of these that the prior has not seen.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError, require
from difftilt.models.egnn import PLACE
from difftilt.tasks.molecules.chemistry import molecule_of
from difftilt.tasks.molecules.models import PropertyNetwork, read_kinds, seen_molecules

Score = Literal["qed", "logp", "sa"]
SCORES: tuple[Score, ...] = get_args(Score)
"""Drug-likeness in [0, 1], octanol-water log P (Crippen), synthetic accessibility in [1, 10]."""


def molecules_of(states: Float[Tensor, "B A F"], consistent: bool = False) -> list[Any | None]:
    """The rdkit molecule of each state, or None where there is none (``chemistry.molecule_of``)."""
    kinds, places = read_kinds(states).numpy(), states[..., :PLACE].detach().double().numpy()
    each = zip(places, kinds, strict=True)
    return [molecule_of(x[k >= 0], k[k >= 0], consistent) for x, k in each]


def consistency(states: Float[Tensor, "B A F"]) -> float:
    """The share of states whose kinds meet every valence by themselves."""
    return sum(m is not None for m in molecules_of(states, consistent=True)) / len(states)


def smiles_of(molecules: Sequence[Any | None]) -> list[str | None]:
    """Canonical SMILES without stereochemistry, None where there is no molecule."""
    chem = require("rdkit.Chem", "molecules")
    write = chem.MolToSmiles
    return [None if m is None else write(m, isomericSmiles=False) for m in molecules]


def fingerprint(smiles: str) -> int:
    """64 bits of a SMILES, for the list of molecules that were seen."""
    return int.from_bytes(hashlib.blake2b(smiles.encode(), digest_size=8).digest(), "little")


def quality(molecules: Sequence[Any | None]) -> dict[str, float]:
    """Shares of valid samples, of different ones among these, and of new ones among those.

    Raises:
        InputError: there is no sample.
    """
    if not molecules:
        raise InputError("the quality of no molecules is undefined; draw at least one")
    valid = [s for s in smiles_of(molecules) if s is not None]
    different = sorted(set(valid))
    prints = np.array([fingerprint(s) for s in different], dtype=np.uint64)
    new = ~np.isin(prints, seen_molecules())
    return {
        "valid": len(valid) / len(molecules),
        "unique": len(different) / max(1, len(valid)),
        "new": float(new.mean()) if len(new) else 0.0,
    }


def score(name: Score) -> Callable[[Any], float]:
    """A property of rdkit's, by name.

    Raises:
        InputError: an unknown name.
    """
    if name == "qed":
        return require("rdkit.Chem.QED", "molecules").qed
    if name == "logp":
        return require("rdkit.Chem.Crippen", "molecules").MolLogP
    if name == "sa":
        return _accessibility().calculateScore
    raise InputError(f"rdkit's properties here are {', '.join(SCORES)}; got {name!r}")


@cache
def _accessibility() -> Any:
    """The scorer that rdkit ships among its contributions (Ertl and Schuffenhauer 2009)."""
    config = require("rdkit.RDConfig", "molecules")
    folder = str(Path(config.RDContribDir) / "SA_Score")
    sys.path.append(folder)
    try:
        return require("sascorer", "molecules")
    finally:
        sys.path.remove(folder)


@torch.no_grad()
def regressor_features(
    network: PropertyNetwork, states: Float[Tensor, "B A F"]
) -> Float[Tensor, "B W"]:
    """What a regressor sees of molecules, for distances between sets of them."""
    return network.features(states, read_kinds(states) >= 0)
