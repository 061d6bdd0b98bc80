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
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from difftilt.models.mlp import StepMLP

BLOCK = 512
"""Rows whose activations stay in a core's cache from one layer to the next."""
RUN = 32
"""Rows of one step, on average, from which on steps are visited one by one."""


@dataclass
class _Block:
    """What one block of rows leaves for the backward: layer inputs, and σ of each hidden layer."""

    n: int | Int[Tensor, " R"]
    inputs: list[Tensor]
    gates: list[Tensor] = field(default_factory=list)


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
        self.blocks: list[_Block] = []
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
        block = _Block(n, [features])
        h = torch.addmm(bias, features, self.weights[0].T)
        for weight, bias in zip(self.weights[1:], self.hidden_biases, strict=True):
            h = torch.addmm(bias, self._activated(h, block), weight.T)
        out = torch.addmm(self.last_bias, self.last, self._activated(h, block).T)
        if self.record:
            self.blocks.append(block)
            self.found.append(out)
        return out

    def _activated(self, z: Tensor, block: _Block) -> Tensor:
        if not self.record:
            return torch.nn.functional.silu(z, inplace=True)
        gate = torch.sigmoid(z)
        block.gates.append(gate)
        block.inputs.append(z.mul_(gate))
        return z


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
        # The last block made is the likeliest to be in the cache still.
        for block in reversed(tape.blocks):
            start = end - len(block.inputs[0])
            sums.add(block, grad[:, start:end])
            end = start
        return None, None, *sums.total(grad)


class _Sums:
    """Gradients by step embedding, and by weight and bias of each layer, added up in place."""

    def __init__(self, tape: Tape, by: list[Tensor]) -> None:
        self.tape, self.step = tape, by[0]
        self.weights, self.biases = by[1::2], by[2::2]

    def add(self, block: _Block, grad: Float[Tensor, "outputs R"]) -> None:
        """One block's share."""
        tape = self.tape
        self.weights[-1].addmm_(grad, block.inputs[-1])
        by_h = torch.mm(grad.T, tape.last)
        for layer in range(len(tape.weights) - 1, -1, -1):
            slope = torch.lerp(block.inputs[layer + 1], tape.one, block.gates[layer])
            by_z = by_h.mul_(slope)
            self.weights[layer].addmm_(by_z.T, block.inputs[layer])
            if layer:
                self.biases[layer].add_(by_z.sum(0))
                by_h = torch.mm(by_z, tape.weights[layer])
            elif isinstance(block.n, int):
                self.step[block.n].add_(by_z.sum(0))
            else:
                self.step.index_add_(0, block.n, by_z)

    def total(self, grad: Float[Tensor, "outputs R"]) -> list[Tensor]:
        """In the order of the parameters."""
        # The step's embedding is added to the first bias.
        self.biases[0] = self.step.sum(0)
        self.biases[-1] = grad.sum(1)
        mask = self.tape.network.mask
        if mask is not None:
            self.weights[-1].mul_(mask)
        pairs = zip(self.weights, self.biases, strict=True)
        return [self.step, *(part for pair in pairs for part in pair)]
