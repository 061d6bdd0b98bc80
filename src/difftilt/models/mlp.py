"""A small multilayer perceptron over a state, the prior's clean guess and the step.

For problems of a few dimensions. Its last layer starts at zero.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

KNOTS = 20


@dataclass(frozen=True)
class Size:
    """Size of a ``StepMLP``.

    Arguments:
        width: hidden width.
        depth: hidden layers.
        frequencies: sines and cosines of the clean prediction per dimension, at ``k π / 4``
            for k = 1 ... frequencies (unit-variance data spans a few units); 0 for none.
        linear: a ``StepLinear`` beside it, for what is linear in many dimensions.
    """

    width: int = 96
    depth: int = 3
    frequencies: int = 8
    linear: bool = False


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
        h = self._entered(self.features(x, prediction, extra), n)
        for layer in self.hidden:
            h = layer(nn.functional.silu(h))
        h = nn.functional.silu(h)
        if self.mask is None:
            return self.last(h)
        # The batch last in memory, as the mixture's sums over few numbers of each sample want it.
        return torch.addmm(self.last.bias[:, None], self.last.weight * self.mask, h.T).T

    @property
    def layers(self) -> list[nn.Linear]:
        """The hidden layers after the first."""
        return list(self.hidden)  # pyright: ignore[reportReturnType]

    def features(
        self, x: Float[Tensor, "B ..."], prediction: Tensor, extra: Tensor | None = None
    ) -> Float[Tensor, "B inputs"]:
        """What the first layer reads."""
        flat, clean = x.flatten(1), prediction.flatten(1)
        features = [flat, clean] if extra is None else [flat, clean, extra]
        if len(self.bands):
            angles = (clean[:, :, None] * self.bands).flatten(1)
            features += [angles.sin(), angles.cos()]
        return torch.cat(features, 1)

    def _entered(
        self, features: Float[Tensor, "B inputs"], n: int | Int[Tensor, " B"]
    ) -> Float[Tensor, "B width"]:
        """The first layer, and the step's embedding added; to its bias where all share the step."""
        if isinstance(n, int):
            bias = self.first.bias + self.step.weight[n]
            return nn.functional.linear(features, self.first.weight, bias)
        return self.first(features) + self.step(n)


class StepLinear(nn.Module):
    """``(x_n, clean prediction, n) -> W_n (x_n, prediction, 1)``, zero at the start.

    Each step has its own map, interpolated between those of a few steps where there are many: what
    neighbours learn serves both. The best shift of a Gaussian target's steps is such a map.

    Arguments:
        dimension: numbers in one state.
        outputs: numbers in one output.
        steps: N.
        knots: steps with a map of their own, at least 2; with N or more, all.
    """

    low: Tensor
    share: Tensor

    def __init__(self, dimension: int, outputs: int, steps: int, knots: int = KNOTS) -> None:
        super().__init__()
        places = _places(steps, knots)
        n = torch.arange(steps + 1).clamp(min=1)
        low = (torch.searchsorted(places, n, right=True) - 1).clamp(max=max(0, len(places) - 2))
        high = (low + 1).clamp(max=len(places) - 1)
        gap = (places[high] - places[low]).clamp(min=1)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("share", (n - places[low]) / gap, persistent=False)
        self.maps = nn.Parameter(torch.zeros(len(places), outputs, 2 * dimension + 1))

    def forward(
        self, x: Float[Tensor, "B ..."], prediction: Tensor, n: int | Int[Tensor, " B"]
    ) -> Float[Tensor, "B outputs"]:
        one = x.new_ones(1).expand(len(x), 1)
        features = torch.cat([x.flatten(1), prediction.flatten(1), one], 1)
        if isinstance(n, int):
            return (self._map(n) @ features.T).T
        order = n.argsort(stable=True)
        counts = torch.bincount(n).tolist()
        parts = features[order].split(counts)
        found = [self._map(k) @ part.T for k, part in enumerate(parts) if len(part)]
        # The batch last in memory, as in ``StepMLP``.
        return torch.cat(found, 1)[:, order.argsort()].T

    def _map(self, n: int) -> Float[Tensor, "outputs inputs"]:
        low, share = int(self.low[n]), float(self.share[n])
        if share == 0:
            return self.maps[low]
        return torch.lerp(self.maps[low], self.maps[low + 1], share)


def _places(steps: int, knots: int) -> Tensor:
    """Steps with a map of their own; the first, whose variance is often set by hand, is one."""
    if knots >= steps:
        return torch.arange(1, steps + 1)
    rest = torch.linspace(2, steps, knots - 1).round().long()
    return torch.cat([torch.ones(1, dtype=torch.long), rest])
