"""From heavy atoms in space to a molecule: kinds of atoms, bonds by distance, orders by valence.

A molecule is a set of heavy atoms. Each has a place and a *kind*: its element and how many
hydrogens sit on it (``CH2``, ``NH``, ``O``, ...), so that hydrogens need no places of their own.

    bonded(i, j)   <=>   |x_i - x_j| < 1.15 (radius_i + radius_j)       covalent radii, in Å
    order of bonds:  at each atom  Σ orders + hydrogens = valence        C 4, N 3, O 2, F 1

The orders are whole numbers 1, 2, 3. Where the kinds' hydrogens fit no assignment of orders, the
one that moves the fewest is taken, and each atom gets the hydrogens that its valence implies; a
molecule that needs no such change is *consistent*. Of several assignments, shorter bonds get the
higher order. There is no molecule if the atoms fall apart into pieces or one has more neighbours
than its valence, or if rdkit, which finds the aromatic rings, cannot sanitise it.

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


def bond_orders(pairs: Sequence[tuple[int, int]], wanted: Sequence[int]) -> tuple[list[int], int]:
    """Orders 1, 2, 3 of bonds, each atom's sum at most what is wanted and short by the fewest.

    Arguments:
        pairs: the bonds; earlier ones get the higher order where there is a choice.
        wanted: sum of the orders at each atom, at least its number of bonds.

    Returns:
        the orders, and what all atoms together are short by.
    """
    left = list(wanted)
    for i, j in pairs:
        left[i] -= 1
        left[j] -= 1
    for short in range(sum(left) + 1):
        extra = _extra_orders(list(pairs), left, 0, short)
        if extra is not None:
            return [1 + e for e in extra], short
    raise AssertionError("single bonds are short by all that is left")


def _extra_orders(
    pairs: list[tuple[int, int]], left: list[int], start: int, short: int
) -> list[int] | None:
    """Orders beyond 1 of the bonds from ``start`` on, by trying the highest first."""
    if start == len(pairs):
        return [] if sum(left) <= short else None
    i, j = pairs[start]
    for extra in range(min(left[i], left[j], MOST_ORDER - 1), -1, -1):
        remaining = left.copy()
        remaining[i] -= extra
        remaining[j] -= extra
        if _closed(pairs, remaining, start + 1) > short:
            continue
        rest = _extra_orders(pairs, remaining, start + 1, short)
        if rest is not None:
            return [extra, *rest]
    return None


def _closed(pairs: list[tuple[int, int]], left: list[int], start: int) -> int:
    """What is left at atoms that no later bond can take any of."""
    later = {k for i, j in pairs[start:] if left[i] and left[j] for k in (i, j)}
    return sum(room for k, room in enumerate(left) if k not in later)


def molecule_of(
    places: Float[ndarray, "n 3"], kinds: Int[ndarray, " n"], consistent: bool = False
) -> Any | None:
    """An rdkit molecule of heavy atoms (with its places as a conformer), or None: it is not valid.

    Arguments:
        places: in Å.
        kinds: indices into ``KINDS``.
        consistent: none either where the kinds' own hydrogens do not meet every valence.

    Raises:
        InputError: places and kinds are not of equally many atoms.
    """
    if len(places) != len(kinds):
        raise InputError(f"a molecule needs a kind for each place, got {len(kinds)}, {len(places)}")
    pairs = [(i, j) for _, i, j in bonded(places, kinds)]
    neighbours = np.bincount(np.array(pairs, dtype=int).ravel(), minlength=len(kinds))
    valences = np.array([VALENCES[KINDS[k].element] for k in kinds])
    if not _connected(len(kinds), pairs) or bool((neighbours > valences).any()):
        return None
    said = valences - np.array([KINDS[k].hydrogens for k in kinds])
    wanted = np.maximum(said, neighbours)
    orders, short = bond_orders(pairs, wanted.tolist())
    if consistent and (short or bool((wanted > said).any())):
        return None
    return _sanitised(places, kinds, pairs, orders)


def _connected(atoms: int, pairs: Sequence[tuple[int, int]]) -> bool:
    seen, grown = {0}, True
    while grown:
        reached = seen | {b for i, j in pairs for a, b in ((i, j), (j, i)) if a in seen}
        grown, seen = len(reached) > len(seen), reached
    return len(seen) == atoms


def _sanitised(places: Any, kinds: Any, pairs: Any, orders: Sequence[int]) -> Any | None:
    chem = require("rdkit.Chem", "molecules")
    taken = [
        sum(o for p, o in zip(pairs, orders, strict=True) if k in p) for k in range(len(kinds))
    ]
    kind_of = {1: chem.BondType.SINGLE, 2: chem.BondType.DOUBLE, 3: chem.BondType.TRIPLE}
    made, conformer = chem.RWMol(), chem.Conformer(len(kinds))
    for index, (place, kind) in enumerate(zip(places, kinds, strict=True)):
        element = KINDS[kind].element
        atom = chem.Atom(element)
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(VALENCES[element] - taken[index])
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
