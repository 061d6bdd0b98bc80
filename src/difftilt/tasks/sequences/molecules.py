"""Molecules as SELFIES: every sequence of tokens is a valid molecule (rdkit and selfies).

Id 0 is the pad; the others are the tokens of ``TOKENS``. What rdkit says of a molecule is a black
box: it is asked for numbers, one molecule at a time.

Sources: Krenn et al. 2020, SELFIES (arXiv 1905.13741); Bickerton et al. 2012, QED; Wildman and
Crippen 1999, logP; Ertl and Schuffenhauer 2009, synthetic accessibility.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.errors import InputError, require

TOKENS = (
    *("[C]", "[=C]", "[#C]", "[N]", "[=N]", "[#N]", "[O]", "[=O]", "[F]"),
    *("[Ring1]", "[Ring2]", "[Branch1]", "[=Branch1]", "[#Branch1]"),
    *("[Branch2]", "[=Branch2]", "[#Branch2]"),
)
LENGTH = 17
CARBONYL = "[CX3]=[OX1]"
LIPOPHILIC = 1.0
"""logP above which a molecule counts as lipophilic: a quarter of QM9."""

Property = Literal["qed", "logp", "sa"]
PROPERTIES: tuple[Property, ...] = ("qed", "logp", "sa")


def encoded_smiles(smiles: str) -> list[int] | None:
    """Ids of a molecule, padded; None where it is too long or has other tokens."""
    selfies = require("selfies", "molecules")
    tokens = list(selfies.split_selfies(selfies.encoder(canonical(smiles), strict=False)))
    if len(tokens) > LENGTH or not set(tokens) <= set(TOKENS):
        return None
    ids = [1 + TOKENS.index(token) for token in tokens]
    return ids + [0] * (LENGTH - len(ids))


def decoded_smiles(ids: Int[Tensor, "B L"]) -> list[str]:
    """Canonical SMILES of each row, pads left out; empty where rdkit finds no molecule."""
    selfies = require("selfies", "molecules")
    rows = ["".join(TOKENS[i - 1] for i in row if i > 0) for row in ids.tolist()]
    return [canonical(selfies.decoder(row)) for row in rows]


def canonical(smiles: str) -> str:
    """Canonical SMILES without stereochemistry; empty for what is no molecule."""
    found = _molecule(smiles)
    if found is None or found.GetNumAtoms() == 0:
        return ""
    return _chemistry().MolToSmiles(found, isomericSmiles=False)


def molecule_property(kind: Property, smiles: str) -> float:
    """QED in [0, 1], Crippen's logP, or the synthetic accessibility from 1 (easy) to 10.

    Raises:
        InputError: no molecule.
    """
    found = _known(smiles)
    module, function = _ASKED[kind]
    return float(getattr(require(module, "molecules"), function)(found))


_ASKED: dict[Property, tuple[str, str]] = {
    "qed": ("rdkit.Chem.QED", "qed"),
    "logp": ("rdkit.Chem.Crippen", "MolLogP"),
    "sa": ("rdkit.Contrib.SA_Score.sascorer", "calculateScore"),
}


def has_part(pattern: str, smiles: str) -> bool:
    """Whether a molecule holds a substructure.

    Arguments:
        pattern: SMARTS.
        smiles: the molecule.

    Raises:
        InputError: no molecule, or no readable pattern.
    """
    found, part = _known(smiles), _chemistry().MolFromSmarts(pattern)
    if part is None:
        raise InputError(f"{pattern!r} is not a substructure in SMARTS; an example is {CARBONYL}")
    return bool(found.HasSubstructMatch(part))


def controls(ids: Int[Tensor, "B L"]) -> Float[Tensor, "B 2"]:
    """1 or 0: is it lipophilic, and does it hold a carbonyl group; 0 for what is no molecule."""
    rows = [
        (molecule_property("logp", each) > LIPOPHILIC, has_part(CARBONYL, each))
        if each
        else (False, False)
        for each in decoded_smiles(ids)
    ]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(ids), 2)


@dataclass(frozen=True)
class MoleculeReward:
    """A reward of SELFIES from a score of their molecules, ``ids (B, L) -> log r (B,)``.

    Arguments:
        score: from SMILES to nats.
        bound: most that it gives.
        invalid: nats of what is no molecule.
    """

    score: Callable[[str], float]
    bound: float
    invalid: float = -20.0

    def __call__(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        found = decoded_smiles(ids)
        return torch.tensor([self.score(each) if each else self.invalid for each in found])


def property_reward(kind: Property, wanted: float, width: float) -> MoleculeReward:
    """``-(property - wanted)² / (2 width²)``, at most 0.

    Arguments:
        kind: "qed", "logp" or "sa".
        wanted: its value.
        width: standard deviation that is let pass, above 0.

    Raises:
        InputError: the width is not positive, or no such property.
    """
    if not width > 0 or kind not in PROPERTIES:
        raise InputError(
            f"property {kind!r} with width {width}; give one of {', '.join(PROPERTIES)} and a "
            "width above 0"
        )
    return MoleculeReward(partial(_near, kind, wanted, width), 0.0)


def part_reward(pattern: str = CARBONYL, without: float = -5.0) -> MoleculeReward:
    """0 for molecules with a substructure, ``without`` nats for the others."""
    return MoleculeReward(lambda smiles: 0.0 if has_part(pattern, smiles) else without, 0.0)


def _near(kind: Property, wanted: float, width: float, smiles: str) -> float:
    return -0.5 * ((molecule_property(kind, smiles) - wanted) / width) ** 2


def fingerprints(smiles: Iterable[str]) -> Int[Tensor, " n"]:
    """A number for each string, by which a set of them can be kept small (CRC-32)."""
    return torch.tensor([zlib.crc32(each.encode()) for each in smiles], dtype=torch.int64)


def molecule_shares(smiles: Sequence[str], known: Int[Tensor, " n"]) -> dict[str, float]:
    """Validity; uniqueness among the valid; novelty among the unique, as shares.

    Arguments:
        smiles: canonical, empty where invalid.
        known: fingerprints of the training set; one in 100,000 other strings shares one by chance.
    """
    valid = [each for each in smiles if each]
    unique = sorted(set(valid))
    new = ~torch.isin(fingerprints(unique), known)
    return {
        "validity": len(valid) / max(1, len(smiles)),
        "uniqueness": len(unique) / max(1, len(valid)),
        "novelty": float(new.double().mean()) if unique else 0.0,
    }


def _known(smiles: str) -> Any:
    found = _molecule(smiles)
    if found is None:
        raise InputError(f"{smiles!r} is not the SMILES of a molecule; filter those out first")
    return found


def _molecule(smiles: str) -> Any:
    return _chemistry().MolFromSmiles(smiles)


def _chemistry() -> Any:
    require("rdkit", "molecules")
    from rdkit import Chem, RDLogger

    # rdkit reports every string that it cannot read to the terminal.
    RDLogger.DisableLog("rdApp.*")  # pyright: ignore[reportAttributeAccessIssue]
    return Chem
