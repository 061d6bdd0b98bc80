"""From heavy atoms in space to a molecule: kinds of atoms, bonds by distance, orders by valence.

A molecule is a set of heavy atoms. Each has a place and a *kind*: its element and how many
hydrogens sit on it (``CH2``, ``NH``, ``O``, ...), so that hydrogens need no places of their own.

    bonded(i, j)   <=>   |x_i - x_j| < 1.15 (radius_i + radius_j)        covalent radii, in Å
    order of bonds:  at each atom  Σ orders = valence - hydrogens        C 4, N 3, O 2, F 1

The orders are whole numbers 1, 2, 3 that meet every atom's equation; where several assignments
do, shorter bonds get the higher order. If none does, or the atoms fall apart into pieces, there is
no molecule. rdkit then sanitises what was built and finds the aromatic rings.

Sources: radii Cordero et al. 2008 (doi 10.1039/b801115j); bonds by distance as in Hoogeboom et al.
2022, section 5 (arXiv 2203.17003), which sets the orders by distance too and draws the hydrogens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from difftilt.errors import InputError, require

VALENCES = {"C": 4, "N": 3, "O": 2, "F": 1}
RADII = {"C": 0.76, "N": 0.71, "O": 0.66, "F": 0.57}
TOLERANCE = 1.15
MOST_ORDER = 3


@dataclass(frozen=True)
class AtomKind:
    """An element with the hydrogens that sit on it.

    Arguments:
        element: "C", "N", "O" or "F".
        hydrogens: how many.
    """

    element: str
    hydrogens: int

    def __str__(self) -> str:
        many = "" if self.hydrogens < 2 else str(self.hydrogens)
        return self.element + ("H" + many if self.hydrogens else "")


KINDS = tuple(
    AtomKind(element, hydrogens)
    for element, valence in VALENCES.items()
    for hydrogens in range(valence)
)
"""The kinds of an atom with at least one bond to another: C, CH, CH2, CH3, N, ..., F."""


def bonded(
    places: Float[ndarray, "n 3"], kinds: Int[ndarray, " n"]
) -> list[tuple[float, int, int]]:
    """Pairs near enough for a bond, ``(distance in Å, i, j)``, the shortest first."""
    radii = np.array([RADII[KINDS[k].element] for k in kinds])
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    near = np.triu(apart < TOLERANCE * (radii[:, None] + radii[None]), 1)
    return sorted(
        (float(apart[i, j]), int(i), int(j)) for i, j in zip(*np.nonzero(near), strict=True)
    )


def bond_orders(pairs: Sequence[tuple[int, int]], wanted: Sequence[int]) -> list[int] | None:
    """Orders 1, 2, 3 of bonds such that each atom's add up to what is wanted, or None.

    Arguments:
        pairs: the bonds; earlier ones get the higher order where there is a choice.
        wanted: sum of the orders at each atom.
    """
    left = list(wanted)
    for i, j in pairs:
        left[i] -= 1
        left[j] -= 1
    if min(left, default=0) < 0:
        return None
    extra = _extra_orders(list(pairs), left, 0)
    return None if extra is None else [1 + e for e in extra]


def _extra_orders(pairs: list[tuple[int, int]], left: list[int], start: int) -> list[int] | None:
    """Orders beyond 1 of the bonds from ``start`` on, by trying the highest first."""
    if start == len(pairs):
        return [] if not any(left) else None
    i, j = pairs[start]
    for extra in range(min(left[i], left[j], MOST_ORDER - 1), -1, -1):
        remaining = left.copy()
        remaining[i] -= extra
        remaining[j] -= extra
        if any(remaining[k] and not _open(pairs, remaining, start + 1, k) for k in (i, j)):
            continue
        rest = _extra_orders(pairs, remaining, start + 1)
        if rest is not None:
            return [extra, *rest]
    return None


def _open(pairs: list[tuple[int, int]], left: list[int], start: int, atom: int) -> bool:
    """Whether the later bonds of an atom can still take what it has left."""
    room = 0
    for i, j in pairs[start:]:
        if atom in (i, j):
            room += min(left[j if atom == i else i], MOST_ORDER - 1)
    return room >= left[atom]


def molecule_of(places: Float[ndarray, "n 3"], kinds: Int[ndarray, " n"]) -> Any | None:
    """An rdkit molecule of heavy atoms (with its places as a conformer), or None: it is not valid.

    Valid: in one piece, every valence met, and rdkit sanitises it.

    Arguments:
        places: in Å.
        kinds: indices into ``KINDS``.

    Raises:
        InputError: places and kinds are not of equally many atoms.
    """
    if len(places) != len(kinds):
        raise InputError(f"a molecule needs a kind for each place, got {len(kinds)}, {len(places)}")
    near = bonded(places, kinds)
    pairs = [(i, j) for _, i, j in near]
    wanted = [VALENCES[KINDS[k].element] - KINDS[k].hydrogens for k in kinds]
    orders = bond_orders(pairs, wanted) if _connected(len(kinds), pairs) else None
    return None if orders is None else _sanitised(places, kinds, pairs, orders)


def _connected(atoms: int, pairs: Sequence[tuple[int, int]]) -> bool:
    seen, grown = {0}, True
    while grown:
        reached = seen | {b for i, j in pairs for a, b in ((i, j), (j, i)) if a in seen}
        grown, seen = len(reached) > len(seen), reached
    return len(seen) == atoms


def _sanitised(places: Any, kinds: Any, pairs: Any, orders: Sequence[int]) -> Any | None:
    chem = require("rdkit.Chem", "molecules")
    kind_of = {1: chem.BondType.SINGLE, 2: chem.BondType.DOUBLE, 3: chem.BondType.TRIPLE}
    made, conformer = chem.RWMol(), chem.Conformer(len(kinds))
    for index, (place, kind) in enumerate(zip(places, kinds, strict=True)):
        atom = chem.Atom(KINDS[kind].element)
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(KINDS[kind].hydrogens)
        made.AddAtom(atom)
        conformer.SetAtomPosition(index, [float(number) for number in place])
    for (i, j), order in zip(pairs, orders, strict=True):
        made.AddBond(i, j, kind_of[order])
    made.AddConformer(conformer)
    try:
        chem.SanitizeMol(made)
    except ValueError:
        return None
    return made.GetMol()
