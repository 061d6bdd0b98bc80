"""The models of small molecules that difftilt ships: the prior, and the regressor of properties.

A state is (B, 9, 13): places in Å, and a one-hot of the atom's kind (``chemistry.KINDS``) times
1/4, so that the places are decided before the kinds. Both networks are equivariant
(``models.egnn``). The prior was trained on one half of QM9, the regressor on the other; the weights
are made by ``scripts/train_molecules.py``.
"""

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt64
from numpy import ndarray
from torch import Tensor, nn

from difftilt.adapters.folders import Network
from difftilt.adapters.molecules import AtomDenoiser, molecule_chain
from difftilt.chains.chain import Chain
from difftilt.models.egnn import PLACE, AtomNetwork, AtomNetworkSize, centred
from difftilt.models.numbers import Numbers
from difftilt.schedules import Polynomial
from difftilt.tasks.molecules.chemistry import KINDS
from difftilt.tasks.shipped import filled, shipped_folder

MOST_ATOMS = 9
KIND_SCALE = 0.25

Property = Literal["alpha", "gap", "homo", "lumo", "mu", "cv"]
PROPERTIES: tuple[Property, ...] = get_args(Property)
"""Polarisability (Bohr³), gap, HOMO and LUMO (eV), dipole (Debye), heat capacity (cal/mol/K)."""


def schedule() -> Polynomial:
    """The noise of the shipped prior."""
    return Polynomial(power=2.0, precision=1e-5)


def new_prior_network() -> AtomNetwork:
    """The prior's network before training; it predicts v."""
    return AtomNetwork(len(KINDS), 0, AtomNetworkSize(width=64, layers=5))


def molecule_prior(steps: int = 50, reads: Numbers | None = None) -> Chain:
    """The shipped prior, trained to make molecules of 2 to 9 heavy atoms like those of QM9.

    Its condition is the number of atoms, (B,); without one it makes molecules of 9.

    Arguments:
        steps: N.
        reads: numbers that follow the number of atoms in a condition (B, 1 + K), which a posterior
            reads and this prior does not.

    Raises:
        CheckpointError: its weights are missing or do not fit.
    """
    network = _filled(new_prior_network(), "prior")
    return molecule_chain(AtomDenoiser(network, reads=reads), schedule().levels(steps), MOST_ATOMS)


def load_regressor() -> "PropertyNetwork":
    """The shipped regressor of ``PROPERTIES``, frozen.

    Raises:
        CheckpointError: its weights are missing or do not fit.
    """
    return _filled(PropertyNetwork(), "regressor")


def seen_molecules() -> UInt64[ndarray, " n"]:
    """Sorted fingerprints (``metrics.fingerprint``) of the molecules that the prior has seen."""
    return np.load(shipped_folder("molecules") / "seen.npz")["fingerprints"]


def _filled(network: Network, name: str) -> Network:
    path = shipped_folder("molecules") / f"{name}.safetensors"
    return filled(network, path, "scripts/train_molecules.py")


def read_kinds(states: Float[Tensor, "B A F"]) -> Int[Tensor, "B A"]:
    """The kind of each atom: its largest number, or -1 where there is no atom."""
    found = states[..., PLACE:]
    return torch.where((found != 0).any(-1), found.argmax(-1), -1)


def encoded(places: Float[Tensor, "B A 3"], kinds: Int[Tensor, "B A"]) -> Float[Tensor, "B A F"]:
    """States of molecules; a kind of -1 is no atom."""
    codes = nn.functional.one_hot(kinds.long().clamp(min=0), len(KINDS)).to(places.dtype)
    here = (kinds >= 0)[..., None]
    return torch.cat([places, KIND_SCALE * codes], -1) * here


class PropertyNetwork(nn.Module):
    """``(states, present) -> the six properties``, an invariant network read out atom by atom.

    Arguments:
        size: of the network.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, size: AtomNetworkSize | None = None) -> None:
        super().__init__()
        size = AtomNetworkSize(width=64, layers=4) if size is None else size
        self.network = AtomNetwork(len(KINDS), 0, size)
        self.readout = nn.Sequential(
            nn.Linear(size.width, size.width), nn.SiLU(), nn.Linear(size.width, len(PROPERTIES))
        )
        self.register_buffer("centre", torch.zeros(len(PROPERTIES)))
        self.register_buffer("spread", torch.ones(len(PROPERTIES)))

    def standardise(self, properties: Float[Tensor, "n 6"]) -> None:
        """Take centre and spread from a set of molecules."""
        self.centre.copy_(properties.mean(0))
        self.spread.copy_(properties.std(0))

    def features(
        self, states: Float[Tensor, "B A F"], present: Bool[Tensor, "B A"]
    ) -> Float[Tensor, "B W"]:
        """The mean of the atoms' features after the last block."""
        x = torch.cat([centred(states[..., :PLACE], present), states[..., PLACE:]], -1)
        _, h = self.network.embedded(x, x.new_zeros(len(x)), present)
        here = present[..., None].to(h.dtype)
        return (h * here).sum(1) / here.sum(1)

    def standardised(
        self, states: Float[Tensor, "B A F"], present: Bool[Tensor, "B A"]
    ) -> Float[Tensor, "B 6"]:
        """The properties, less their centre, in units of their spread."""
        x = torch.cat([centred(states[..., :PLACE], present), states[..., PLACE:]], -1)
        _, h = self.network.embedded(x, x.new_zeros(len(x)), present)
        here = present[..., None].to(h.dtype)
        return (self.readout(h) * here).sum(1) / MOST_ATOMS

    def forward(
        self, states: Float[Tensor, "B A F"], present: Bool[Tensor, "B A"]
    ) -> Float[Tensor, "B 6"]:
        """The properties, in the units of ``PROPERTIES``."""
        return self.centre + self.spread * self.standardised(states, present)
