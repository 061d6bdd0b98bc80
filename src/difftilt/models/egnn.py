"""An equivariant network of atoms: what it says turns with the molecule, and with the atoms' order.

Atoms carry a place ``x_i`` (3 numbers) and features ``h_i``. A block passes messages between all
pairs, updates the features, and then moves each atom along the lines to the others:

    m_ij = φ_e(h_i, h_j, |x_i - x_j|², |x_i - x_j|² at the input) · gate(m_ij)
    h_i  = h_i + φ_h(h_i, Σ_j m_ij)
    x_i  = x_i + Σ_j (x_i - x_j) / (|x_i - x_j| + 1) · φ_x(h_i, h_j, the two distances)

Only distances and differences of places are read, so rotations, reflections and permutations
commute with the network, and moving the whole molecule changes nothing. The output for places is
how far they moved, less its mean over the atoms: it lies on the zero-centre-of-mass subspace
whatever the input. Atoms that are masked out neither speak nor hear, and get zeros.

The names of the parameters are those of the published EDM checkpoints, which therefore load.

Sources: Satorras et al. 2021 (arXiv 2102.09844); Hoogeboom et al. 2022, appendix B and C (arXiv
2203.17003).
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from difftilt.errors import InputError

PLACE = 3
"""Numbers of a place in space."""


@dataclass(frozen=True)
class AtomNetworkSize:
    """Size and variant of an ``AtomNetwork``; the defaults are those of EDM on QM9, but smaller.

    Arguments:
        width: of the features and messages.
        layers: blocks.
        sublayers: updates of the features in each block.
        attention: gate each message by a number in (0, 1).
        reach: bound of a single move along a line (through a tanh), or None for no bound.
        softening: added to the distance that a difference of places is divided by.
        normaliser: what sums over the other atoms are divided by.
    """

    width: int = 64
    layers: int = 5
    sublayers: int = 1
    attention: bool = True
    reach: float | None = 15.0
    softening: float = 1.0
    normaliser: float = 1.0


def present_atoms(counts: Tensor, atoms: int) -> Bool[Tensor, "B atoms"]:
    """Which of ``atoms`` places hold an atom, from the number of atoms of each molecule (B,)."""
    return torch.arange(atoms, device=counts.device) < counts[:, None]


def centred(
    places: Float[Tensor, "B atoms 3"], present: Bool[Tensor, "B atoms"]
) -> Float[Tensor, "B atoms 3"]:
    """Places less their mean over the atoms that are present; zero at the others."""
    here = present[..., None].to(places.dtype)
    mean = (places * here).sum(1, keepdim=True) / here.sum(1, keepdim=True).clamp(min=1)
    return (places - mean) * here


class PairLayers(nn.Sequential):
    """A perceptron of (h_i, h_j, distances), for all pairs at once.

    Its first layer is a sum of three maps, so that two of them are worked out per atom, not pair.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, h: Float[Tensor, "B A W"], distances: Float[Tensor, "B A A D"]
    ) -> Float[Tensor, "B A A O"]:
        first = self[0]
        assert isinstance(first, nn.Linear)
        width = h.shape[-1]
        own, other, apart = first.weight.split([width, width, distances.shape[-1]], 1)
        pairs = nn.functional.linear(distances, apart, first.bias)
        pairs = pairs + (h @ own.T)[:, :, None] + (h @ other.T)[:, None]
        for layer in list(self)[1:]:
            pairs = layer(pairs)
        return pairs


class Messages(nn.Module):
    """One update of the features (EDM's GCL)."""

    def __init__(self, size: AtomNetworkSize) -> None:
        super().__init__()
        width = size.width
        self.edge_mlp = PairLayers(
            nn.Linear(2 * width + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.node_mlp = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.att_mlp = None
        if size.attention:
            self.att_mlp = nn.Sequential(nn.Linear(width, 1), nn.Sigmoid())
        self.normaliser = size.normaliser

    def forward(self, h: Tensor, distances: Tensor, pairs: Tensor) -> Tensor:
        message = self.edge_mlp(h, distances)
        weight = pairs if self.att_mlp is None else pairs * self.att_mlp(message)
        # A matrix product in place of a product and a sum: no (B, A, A, W) is written.
        heard = (weight.transpose(-1, -2) @ message).squeeze(-2) / self.normaliser
        return h + self.node_mlp(torch.cat([h, heard], -1))


class Moves(nn.Module):
    """One move of the atoms along the lines between them (EDM's EquivariantUpdate)."""

    def __init__(self, size: AtomNetworkSize) -> None:
        super().__init__()
        width, last = size.width, nn.Linear(size.width, 1, bias=False)
        nn.init.xavier_uniform_(last.weight, gain=0.001)
        self.coord_mlp = PairLayers(
            nn.Linear(2 * width + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
        )
        self.reach, self.normaliser = size.reach, size.normaliser

    def forward(self, h: Tensor, distances: Tensor, lines: Tensor, pairs: Tensor) -> Tensor:
        step = self.coord_mlp(h, distances)
        step = step if self.reach is None else step.tanh() * self.reach
        return (lines * step * pairs).sum(2) / self.normaliser


class AtomBlock(nn.Module):
    """Some updates of the features, and one of the places (EDM's EquivariantBlock)."""

    def __init__(self, size: AtomNetworkSize) -> None:
        super().__init__()
        self.updates = [f"gcl_{i}" for i in range(size.sublayers)]
        for name in self.updates:
            self.add_module(name, Messages(size))
        self.gcl_equiv = Moves(size)
        self.softening = size.softening

    def forward(
        self, h: Tensor, x: Tensor, at_input: Tensor, here: Tensor, pairs: Tensor
    ) -> tuple[Tensor, Tensor]:
        square, lines = _apart(x)
        distances = torch.cat([square, at_input], -1)
        lines = lines / ((square + 1e-8).sqrt() + self.softening)
        for name in self.updates:
            h = self.get_submodule(name)(h, distances, pairs) * here
        return h, (x + self.gcl_equiv(h, distances, lines, pairs)) * here


class AtomNetwork(nn.Module):
    """``(places and features, time, present, context) -> output of the same shape`` (EDM's EGNN).

    Arguments:
        features: numbers of an atom beside its place.
        context: numbers that are given to every atom, e.g. a wanted property.
        size: of the network.
    """

    def __init__(
        self, features: int, context: int = 0, size: AtomNetworkSize | None = None
    ) -> None:
        super().__init__()
        size = AtomNetworkSize() if size is None else size
        self.features, self.context = features, context
        self.further: nn.Sequential | None = None
        numbers = features + 1 + context
        self.embedding = nn.Linear(numbers, size.width)
        self.embedding_out = nn.Linear(size.width, numbers)
        self.blocks = [f"e_block_{i}" for i in range(size.layers)]
        for name in self.blocks:
            self.add_module(name, AtomBlock(size))

    def reading(self, more: int) -> "AtomNetwork":
        """A copy that reads ``more`` further numbers of the context, and does not mind them yet.

        What they are worth is added to every atom's first features, and is zero at the start.

        Raises:
            InputError: it reads further numbers already.
        """
        if self.further is not None:
            raise InputError("this network of atoms was made to read further numbers already")
        width = self.embedding.out_features
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        other = copy.deepcopy(self)
        other.further = nn.Sequential(nn.Linear(more, width), nn.SiLU(), last)
        other.further.to(self.embedding.weight)
        other.context += more
        return other

    def forward(
        self,
        state: Float[Tensor, "B atoms numbers"],
        time: Float[Tensor, " B"],
        present: Bool[Tensor, "B atoms"],
        context: Float[Tensor, "B C"] | None = None,
    ) -> Float[Tensor, "B atoms numbers"]:
        """A displacement of each place, centred, and new features; zeros where no atom is."""
        x, h = self.embedded(state, time, present, context)
        start, output = centred(state[..., :PLACE], present), self.embedding_out(h)
        here = present[..., None].to(state.dtype)
        moved = centred(x - start, present)
        return torch.cat([moved, output[..., : self.features] * here], -1)

    def embedded(
        self, state: Tensor, time: Tensor, present: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The places and the features (B, atoms, width) after the last block."""
        here = present[..., None].to(state.dtype)
        pairs = here[:, :, None] * here[:, None]
        pairs = pairs * ~torch.eye(state.shape[1], dtype=torch.bool, device=here.device)[..., None]
        x = centred(state[..., :PLACE], present)
        context = state.new_zeros(len(state), 0) if context is None else context.to(state)
        first = self.embedding.in_features - self.features - 1
        told = torch.cat([time[:, None], context[:, :first]], 1)
        told = told[:, None].expand(-1, state.shape[1], -1)
        h = self.embedding(torch.cat([state[..., PLACE:] * here, told], -1) * here)
        if self.further is not None:
            h = h + self.further(context[:, first:])[:, None] * here
        at_input, _ = _apart(x)
        for name in self.blocks:
            h, x = self.get_submodule(name)(h, x, at_input, here, pairs)
        return x, h


def _apart(x: Float[Tensor, "B A 3"]) -> tuple[Tensor, Tensor]:
    """Squared distances (B, A, A, 1) and differences (B, A, A, 3) of all pairs."""
    lines = x[:, :, None] - x[:, None]
    return (lines**2).sum(-1, keepdim=True), lines
