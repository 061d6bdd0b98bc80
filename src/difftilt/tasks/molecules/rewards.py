"""Rewards of molecules: a wanted value of a property, or a wanted part.

    log r(x) = max(-(y(x) - wanted)² / (2 width²), floor)        floor where x is no molecule

All are bounded by 0 and never below ``floor``: a sample without valid bonds is unlikely, not
impossible, so that every path has a finite weight. They are black boxes: kinds of atoms are read as
the largest number, and rdkit has no gradient. For methods that ask for one, ``PropertyReward`` has
the gradient of its quadratic as if kinds were read as they are (straight through); its values are
the same.
"""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError, require
from difftilt.models.egnn import PLACE
from difftilt.tasks.molecules.metrics import SCORES, Score, molecules_of, score
from difftilt.tasks.molecules.models import (
    PROPERTIES,
    Property,
    PropertyNetwork,
    encoded,
    load_regressor,
    read_kinds,
)

FLOOR = -10.0


@final
class PropertyReward:
    """A wanted value of a property that the shipped regressor predicts.

    Arguments:
        name: one of ``PROPERTIES``.
        wanted: its value; None takes it from the last column of the condition (B, 1 + C).
        width: standard deviation around it, above 0.
        valid: whether samples that are no molecule get the floor.
        floor: the least log r.
        network: the regressor; default the shipped one.

    Raises:
        InputError: an unknown property, or a width that is not positive.
    """

    def __init__(
        self,
        name: Property,
        wanted: float | None,
        width: float,
        *,
        valid: bool = True,
        floor: float = FLOOR,
        network: PropertyNetwork | None = None,
    ) -> None:
        if name not in PROPERTIES:
            raise InputError(f"the regressor knows {', '.join(PROPERTIES)}; got {name!r}")
        self.name, self.wanted, self.width = name, wanted, _positive(width)
        self.valid, self.floor = valid, floor
        self.network = load_regressor() if network is None else network
        self.bound: float | None = 0.0

    def values(self, x_0: Float[Tensor, "B A F"]) -> Float[Tensor, " B"]:
        """The predicted property."""
        kinds = read_kinds(x_0)
        seen = encoded(x_0[..., :PLACE], kinds)
        if x_0.requires_grad:
            seen = seen + torch.cat([torch.zeros_like(x_0[..., :PLACE]), _slope(x_0)], -1)
        return self.network(seen, kinds >= 0)[:, PROPERTIES.index(self.name)]

    def __call__(
        self, x_0: Float[Tensor, "B A F"], condition: Tensor | None = None
    ) -> Float[Tensor, " B"]:
        wanted = self.wanted if self.wanted is not None else _last(condition, x_0)
        square = -0.5 * ((self.values(x_0) - wanted) / self.width) ** 2
        log_r = square.detach().clamp(min=self.floor)
        if self.valid:
            found = torch.tensor([m is not None for m in molecules_of(x_0)])
            log_r = torch.where(found, log_r, self.floor)
        return log_r + (square - square.detach()) if x_0.requires_grad else log_r


@final
class ScoreReward:
    """A wanted value of one of rdkit's properties.

    Arguments:
        name: "qed", "logp" or "sa".
        wanted: its value; None takes it from the last column of the condition (B, 1 + C).
        width: standard deviation around it, above 0.
        floor: the least log r, and that of samples that are no molecule.

    Raises:
        InputError: an unknown property, or a width that is not positive.
    """

    def __init__(
        self, name: Score, wanted: float | None, width: float, floor: float = FLOOR
    ) -> None:
        if name not in SCORES:
            raise InputError(f"rdkit's properties here are {', '.join(SCORES)}; got {name!r}")
        self.name, self.wanted, self.width, self.floor = name, wanted, _positive(width), floor
        self.bound: float | None = 0.0
        self._score = score(name)

    def values(self, x_0: Float[Tensor, "B A F"]) -> Float[Tensor, " B"]:
        """The property, NaN where there is no molecule."""
        found = [float("nan") if m is None else self._score(m) for m in molecules_of(x_0)]
        return torch.tensor(found, dtype=torch.float32)

    def __call__(
        self, x_0: Float[Tensor, "B A F"], condition: Tensor | None = None
    ) -> Float[Tensor, " B"]:
        wanted = self.wanted if self.wanted is not None else _last(condition, x_0)
        log_r = -0.5 * ((self.values(x_0) - wanted) / self.width) ** 2
        return log_r.nan_to_num(self.floor).clamp(min=self.floor)


@final
class SubstructureReward:
    """A part that the molecule is to have: ``log r`` is 0 with it, ``without`` without it.

    Arguments:
        smarts: the part, as SMARTS.
        without: log r of molecules that lack it, below 0.
        floor: log r of samples that are no molecule.

    Raises:
        InputError: rdkit cannot read the SMARTS.
    """

    def __init__(self, smarts: str, without: float = -5.0, floor: float = FLOOR) -> None:
        chem = require("rdkit.Chem", "molecules")
        self._part = chem.MolFromSmarts(smarts)
        if self._part is None:
            raise InputError(f"rdkit cannot read the SMARTS {smarts!r}")
        self.name, self.without, self.floor = f"substructure {smarts}", without, floor
        self.bound: float | None = 0.0

    def __call__(
        self, x_0: Float[Tensor, "B A F"], condition: Tensor | None = None
    ) -> Float[Tensor, " B"]:
        return torch.tensor([self._of(molecule) for molecule in molecules_of(x_0)])

    def _of(self, molecule: Any | None) -> float:
        if molecule is None:
            return self.floor
        return 0.0 if molecule.HasSubstructMatch(self._part) else self.without


def _slope(x_0: Tensor) -> Tensor:
    """Zeros, with the gradient of the features."""
    features = x_0[..., PLACE:]
    return features - features.detach()


def _positive(width: float) -> float:
    if not width > 0:
        raise InputError(f"the width of a wanted value must be above 0, got {width}")
    return float(width)


def _last(condition: Tensor | None, x_0: Tensor) -> Tensor:
    """The wanted value of each sample, the last number of its condition."""
    if condition is None or condition.ndim != 2 or len(condition) != len(x_0):
        raise InputError(
            f"a reward without a wanted value needs a condition of {len(x_0)} rows (atoms, value)"
        )
    return condition[:, -1].to(x_0)
