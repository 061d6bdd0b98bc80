"""A network of point clouds that reads all points through a few learned tokens.

    tokens <- attention to the points; attention among themselves; a perceptron
    points <- attention to the tokens;                             a perceptron

and so in every block. The tokens hold what the cloud is as a whole, the points where each of them
goes; the cost grows linearly with the number of points, and a permutation of the points permutes
the output. The time shifts and scales what both perceptrons read.

Source: Jabri et al. 2023, recurrent interface networks (arXiv 2212.11972); Lee et al. 2019, set
transformer (arXiv 1810.00825).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difftilt.models.residual import TimeFeatures
from difftilt.models.time import OncePerTime

TIME_SCALE = 1000.0


@dataclass(frozen=True)
class PointNetworkSize:
    """Size of a ``PointNetwork``.

    Arguments:
        width: of the points.
        token_width: of the tokens.
        tokens: how many.
        blocks: how often both are revised.
        heads: of every attention; divides both widths.
        frequencies: octaves of sines and cosines of the coordinates, the lowest of period 8.
    """

    width: int = 64
    token_width: int = 128
    tokens: int = 16
    blocks: int = 3
    heads: int = 4
    frequencies: int = 4


class PointNetwork(nn.Module):
    """``(points (B, P, 3), time (B,)) -> (B, P, outputs)`` for any number P of points.

    Arguments:
        size: of the network.
        outputs: numbers for each point; zero at the start.
    """

    bands: Tensor

    def __init__(self, size: PointNetworkSize | None = None, outputs: int = 3) -> None:
        super().__init__()
        size = PointNetworkSize() if size is None else size
        bands = (torch.pi / 4) * 2.0 ** torch.arange(size.frequencies)
        self.register_buffer("bands", bands, persistent=False)
        self.first = nn.Linear(3 * (1 + 2 * size.frequencies), size.width)
        self.time = OncePerTime(TimeFeatures(size.token_width))
        self.tokens = nn.Parameter(torch.randn(size.tokens, size.token_width))
        self.blocks = nn.ModuleList(PointBlock(size) for _ in range(size.blocks))
        self.norm = nn.LayerNorm(size.width)
        self.last = nn.Linear(size.width, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Float[Tensor, "B P 3"], time: Float[Tensor, " B"]
    ) -> Float[Tensor, "B P outputs"]:
        """What the network says of each point."""
        points, _ = self.read(x, time)
        return self.last(self.norm(points))

    def read(
        self, x: Float[Tensor, "B P 3"], time: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B P width"], Float[Tensor, "B tokens token_width"]]:
        """Points and tokens after the last block."""
        moment = nn.functional.silu(self.time(TIME_SCALE * time.to(x)))
        angles = (x[..., None] * self.bands).flatten(2)
        points = self.first(torch.cat([x, angles.sin(), angles.cos()], 2))
        tokens = self.tokens.expand(len(x), -1, -1)
        for block in self.blocks:
            points, tokens = block(points, tokens, moment)
        return points, tokens


class PointBlock(nn.Module):
    """One revision of tokens and points."""

    def __init__(self, size: PointNetworkSize) -> None:
        super().__init__()
        points, tokens, heads = size.width, size.token_width, size.heads
        self.reading = Attention(tokens, points, points, heads)
        self.thinking = Attention(tokens, tokens, tokens, heads)
        self.token_layers = TimedPerceptron(tokens, tokens)
        self.writing = Attention(points, tokens, points, heads)
        self.point_layers = TimedPerceptron(points, tokens)

    def forward(
        self,
        points: Float[Tensor, "B P width"],
        tokens: Float[Tensor, "B T token_width"],
        moment: Float[Tensor, "B token_width"],
    ) -> tuple[Tensor, Tensor]:
        tokens = tokens + self.reading(tokens, points)
        tokens = tokens + self.thinking(tokens, tokens)
        tokens = tokens + self.token_layers(tokens, moment)
        points = points + self.writing(points, tokens)
        return points + self.point_layers(points, moment), tokens


class Attention(nn.Module):
    """``(asking (B, A, a), asked (B, C, c)) -> (B, A, a)``, both normalised first.

    Arguments:
        asking: width of what asks.
        asked: width of what is asked.
        width: of all heads together.
        heads: divides ``width``.
    """

    def __init__(self, asking: int, asked: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_asking, self.norm_asked = nn.LayerNorm(asking), nn.LayerNorm(asked)
        self.query = nn.Linear(asking, width, bias=False)
        self.key_value = nn.Linear(asked, 2 * width, bias=False)
        self.out = nn.Linear(width, asking)

    def forward(
        self, asking: Float[Tensor, "B A a"], asked: Float[Tensor, "B C c"]
    ) -> Float[Tensor, "B A a"]:
        query = self._split(self.query(self.norm_asking(asking)))
        key, value = self.key_value(self.norm_asked(asked)).chunk(2, 2)
        found = nn.functional.scaled_dot_product_attention(
            query, self._split(key), self._split(value)
        )
        return self.out(found.transpose(1, 2).flatten(2))

    def _split(self, h: Float[Tensor, "B A width"]) -> Float[Tensor, "B heads A head"]:
        return h.unflatten(2, (self.heads, -1)).transpose(1, 2)


class TimedPerceptron(nn.Module):
    """``(h (B, A, width), moment (B, m)) -> (B, A, width)``: what it reads is shifted and scaled.

    Arguments:
        width: of h.
        moment: of the embedding of the time.
    """

    def __init__(self, width: int, moment: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(moment, 2 * width)
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(
        self, h: Float[Tensor, "B A width"], moment: Float[Tensor, "B m"]
    ) -> Float[Tensor, "B A width"]:
        scale, shift = self.modulation(moment)[:, None].chunk(2, 2)
        return self.layers(self.norm(h) * (1 + scale) + shift)
