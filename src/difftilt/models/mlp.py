"""A small multilayer perceptron over a state, the prior's clean guess and the step.

For problems of a few dimensions. Its last layer starts at zero.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """Size of a ``StepMLP``.

    Arguments:
        width: hidden width.
        depth: hidden layers.
        frequencies: sines and cosines of the clean prediction per dimension, at ``k π / 4``
            for k = 1 ... frequencies (unit-variance data spans a few units); 0 for none.
    """

    width: int = 96
    depth: int = 3
    frequencies: int = 8


class StepMLP(nn.Module):
    """``(x_n, clean prediction, n) -> outputs``; every output is zero at the start.

    Arguments:
        dimension: numbers in one state.
        outputs: numbers in one output.
        steps: N; each step has a learned embedding.
        size: of the network.
        mask_groups: outputs come in this many equal groups, each reading its own random three
            quarters of the last hidden layer, so that groups started equal do not stay equal.
        extra: further numbers per state that the network reads (a condition, β).
    """

    bands: Tensor
    mask: Tensor | None

    def __init__(
        self,
        dimension: int,
        outputs: int,
        steps: int,
        size: Size,
        mask_groups: int = 1,
        extra: int = 0,
    ) -> None:
        super().__init__()
        width = size.width
        bands = torch.arange(1, size.frequencies + 1) * (torch.pi / 4)
        self.register_buffer("bands", bands, persistent=False)
        inputs = dimension * (2 + 2 * size.frequencies) + extra
        self.first = nn.Linear(inputs, width)
        self.step = nn.Embedding(steps + 1, width)
        nn.init.normal_(self.step.weight, std=0.1)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(size.depth - 1))
        self.last = nn.Linear(width, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        generator = torch.Generator().manual_seed(0)
        keep = torch.rand(mask_groups, 1, width, generator=generator) < 0.75
        mask = keep.expand(-1, outputs // mask_groups, -1).reshape(outputs, width).float()
        self.register_buffer("mask", mask if mask_groups > 1 else None, persistent=False)

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        prediction: Tensor,
        n: int | Int[Tensor, " B"],
        extra: Float[Tensor, "B extra"] | None = None,
    ) -> Float[Tensor, "B outputs"]:
        flat, clean = x.flatten(1), prediction.flatten(1)
        features = [flat, clean] if extra is None else [flat, clean, extra]
        if len(self.bands):
            angles = (clean[:, :, None] * self.bands).flatten(1)
            features += [angles.sin(), angles.cos()]
        h = self.first(torch.cat(features, 1)) + self._embedding(n)
        for layer in self.hidden:
            h = layer(nn.functional.silu(h))
        h = nn.functional.silu(h)
        if self.mask is None:
            return self.last(h)
        # The batch last in memory, as the mixture's sums over few numbers of each sample want it.
        return torch.addmm(self.last.bias[:, None], self.last.weight * self.mask, h.T).T

    def _embedding(self, n: int | Int[Tensor, " B"]) -> Tensor:
        return self.step.weight[n] if isinstance(n, int) else self.step(n)
