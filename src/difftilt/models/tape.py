"""Many calls of one perceptron, and one backward by hand for all of them.

Training calls a ``StepMLP`` on a few hundred states for every step of a rollout, or on all states
of all paths at once. Autograd keeps some forty nodes for each small call, and a large call runs
through arrays that no cache holds. A ``Tape`` makes its calls without a graph, in blocks that a
cache does hold, and keeps what the chain rule asks for; ``outputs`` then are a function of the
parameters with a single node. With ``σ`` the logistic function and ``∘`` elementwise:

    z_i = W_i h_{i-1} + b_i,   h_i = z_i ∘ σ(z_i),   out = (W ∘ mask) h_L + b
    ∂/∂z_i = ∂/∂h_i ∘ (σ + h_i ∘ (1 - σ))

It is for states in the processor's memory, and differentiates by parameters alone: states and
predictions are data. A graphics card wants few large calls, and keeps autograd's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from difftilt.models.mlp import StepMLP

BLOCK = 512
"""Rows whose activations stay in a core's cache from one layer to the next."""
SLAB = 4 * BLOCK
"""Rows that the backward takes at once: fewer calls, and still in the shared cache."""
RUN = 32
"""Rows of one step, on average, from which on steps are visited one by one."""


@dataclass
class _Piece:
    """Rows of a slab that were asked for together."""

    rows: slice
    n: int | Int[Tensor, " R"]
    features: Float[Tensor, "R inputs"]


class _Slab:
    """What blocks of rows leave for the backward: each hidden layer's σ and outputs."""

    def __init__(self, like: Float[Tensor, "R inputs"], layers: int, width: int) -> None:
        self.gates, self.outputs = like.new_empty(2, layers, max(SLAB, len(like)), width).unbind()
        self.pieces: list[_Piece] = []
        self.filled = 0

    def room(self, rows: int) -> bool:
        return self.filled + rows <= self.gates.shape[1]

    def piece(self, n: int | Tensor, features: Tensor) -> _Piece:
        """The next rows."""
        rows = slice(self.filled, self.filled + len(features))
        self.pieces.append(_Piece(rows, n, features))
        self.filled = rows.stop
        return self.pieces[-1]


class Tape:
    """Calls of a ``StepMLP`` without a graph.

    Arguments:
        network: its parameters must stay as they are while the tape is in use.
        record: keep what ``outputs`` needs.
    """

    def __init__(self, network: StepMLP, record: bool) -> None:
        self.network, self.record = network, record
        with torch.no_grad():
            self.biases = network.step.weight + network.first.bias
            self.rows = self.biases.unbind()
            mask = network.mask
            last = network.last.weight
            self.last = last.detach() if mask is None else last * mask
            self.last_bias = network.last.bias.detach()[:, None]
            layers = [network.first, *network.layers]
            self.weights = [layer.weight.detach() for layer in layers]
            self.hidden_biases = [layer.bias.detach() for layer in network.layers]
            self.one = self.last.new_ones(())
        self.slabs: list[_Slab] = []
        self.found: list[Tensor] = []

    @torch.no_grad()
    def __call__(
        self,
        x: Float[Tensor, "B ..."],
        prediction: Tensor,
        n: int | Int[Tensor, " B"],
        extra: Float[Tensor, "B extra"] | None = None,
    ) -> Float[Tensor, "B outputs"]:
        """The network's outputs, the batch last in memory."""
        features = self.network.features(x, prediction, extra)
        if isinstance(n, int):
            return self._block(features, n).T
        found = [self._block(features[rows], step) for rows, step in _blocks(n)]
        return torch.cat(found, 1).T

    def outputs(self) -> Float[Tensor, "R outputs"]:
        """The outputs of all calls so far, as a function of the parameters."""
        network = self.network
        found = self.found[0] if len(self.found) == 1 else torch.cat(self.found, 1)
        every = [network.first, *network.layers, network.last]
        parameters = [p for layer in every for p in (layer.weight, layer.bias)]
        return _Outputs.apply(self, found, network.step.weight, *parameters).T  # pyright: ignore[reportOptionalMemberAccess]

    def _block(self, features: Tensor, n: int | Tensor) -> Float[Tensor, "outputs R"]:
        bias = self.rows[n] if isinstance(n, int) else self.biases[n]
        places = self._places(n, features) if self.record else [None] * len(self.weights)
        h, biases = features, [bias, *self.hidden_biases]
        for weight, bias, place in zip(self.weights, biases, places, strict=True):
            h = _activated(bias, h, weight, place)
        out = torch.addmm(self.last_bias, self.last, h.T)
        if self.record:
            self.found.append(out)
        return out

    def _places(self, n: int | Tensor, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Where each layer's σ and outputs of the next rows are kept."""
        if not self.slabs or not self.slabs[-1].room(len(features)):
            width = len(self.weights[0])
            self.slabs.append(_Slab(features, len(self.weights), width))
        slab = self.slabs[-1]
        rows = slab.piece(n, features).rows
        return list(zip(slab.gates[:, rows].unbind(), slab.outputs[:, rows].unbind(), strict=True))


def _activated(
    bias: Tensor, h: Tensor, weight: Tensor, place: tuple[Tensor, Tensor] | None
) -> Tensor:
    if place is None:
        return torch.nn.functional.silu(torch.addmm(bias, h, weight.T), inplace=True)
    gate, z = place
    torch.addmm(bias, h, weight.T, out=z)
    return z.mul_(torch.sigmoid(z, out=gate))


def _blocks(n: Int[Tensor, " R"]) -> Iterator[tuple[slice, int | Tensor]]:
    """Rows in blocks: of one step each where neighbours share it, else of any steps."""
    steps, counts = torch.unique_consecutive(n, return_counts=True)
    runs = list(zip(steps.tolist(), counts.tolist(), strict=True))
    if len(runs) * RUN > len(n):
        for start in range(0, len(n), BLOCK):
            rows = slice(start, start + BLOCK)
            yield rows, n[rows]
        return
    start = 0
    for step, count in runs:
        end = start + count
        for low in range(start, end, BLOCK):
            yield slice(low, min(low + BLOCK, end)), step
        start = end


class _Outputs(torch.autograd.Function):
    """Outputs that are known already, and their gradient, block by block."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, found: Tensor, *parameters: Tensor) -> Tensor:
        ctx.tape = tape
        # Refuses, as autograd does, a backward after the parameters have moved.
        ctx.save_for_backward(*parameters)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        tape, parameters = ctx.tape, ctx.saved_tensors
        sums = _Sums(tape, [torch.zeros_like(p) for p in parameters])
        end = grad.shape[1]
        # The last slab made is the likeliest to be in the cache still.
        for slab in reversed(tape.slabs):
            start = end - slab.filled
            sums.add(slab, grad[:, start:end])
            end = start
        return None, None, *sums.total(grad)


class _Sums:
    """Gradients by step embedding, and by weight and bias of each layer, added up in place."""

    def __init__(self, tape: Tape, by: list[Tensor]) -> None:
        self.tape, self.step = tape, by[0]
        self.weights, self.biases = by[1::2], by[2::2]
        # Transposed: its product is a fifth quicker with the layer's width last.
        self.first = torch.zeros_like(self.weights[0].T, memory_format=torch.contiguous_format)

    def add(self, slab: _Slab, grad: Float[Tensor, "outputs R"]) -> None:
        """One slab's share."""
        tape = self.tape
        gates, outputs = slab.gates[:, : slab.filled], slab.outputs[:, : slab.filled]
        self.weights[-1].addmm_(grad, outputs[-1])
        by_h = torch.mm(grad.T, tape.last)
        for layer in range(len(tape.weights) - 1, 0, -1):
            by_z = by_h.mul_(torch.lerp(outputs[layer], tape.one, gates[layer]))
            self.weights[layer].addmm_(by_z.T, outputs[layer - 1])
            self.biases[layer].add_(by_z.sum(0))
            by_h = torch.mm(by_z, tape.weights[layer])
        by_z = by_h.mul_(torch.lerp(outputs[0], tape.one, gates[0]))
        for piece in slab.pieces:
            own = by_z[piece.rows]
            self.first.addmm_(piece.features.T, own)
            if isinstance(piece.n, int):
                self.step[piece.n].add_(own.sum(0))
            else:
                self.step.index_add_(0, piece.n, own)

    def total(self, grad: Float[Tensor, "outputs R"]) -> list[Tensor]:
        """In the order of the parameters."""
        self.weights[0] = self.first.T
        # The step's embedding is added to the first bias.
        self.biases[0] = self.step.sum(0)
        self.biases[-1] = grad.sum(1)
        mask = self.tape.network.mask
        if mask is not None:
            self.weights[-1].mul_(mask)
        pairs = zip(self.weights, self.biases, strict=True)
        return [self.step, *(part for pair in pairs for part in pair)]
