"""A network that moves each point of a cloud by itself, given a latent of the whole shape.

Every layer is gated and shifted by what it is told: with c the time's numbers and the latent,

    layer(x, c) = (W x + b) * sigmoid(G c + g) + H c.

Source: Luo and Hu 2021, section 4 and appendix (arXiv 2103.01458).
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

WIDTHS = (3, 128, 256, 512, 256, 128, 3)
TIME_NUMBERS = 3


class ConcatSquash(nn.Module):
    """One gated and shifted layer.

    Arguments:
        inputs: numbers of a point before it.
        outputs: numbers after it.
        told: numbers that it is told.
    """

    def __init__(self, inputs: int, outputs: int, told: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(told, outputs)
        self.shift = nn.Linear(told, outputs, bias=False)

    def forward(
        self, x: Float[Tensor, "B P inputs"], told: Float[Tensor, "B 1 told"]
    ) -> Float[Tensor, "B P outputs"]:
        return self.layer(x) * torch.sigmoid(self.gate(told)) + self.shift(told)


class PointwiseNetwork(nn.Module):
    """``(points (B, P, 3), time (B,), latent (B, F)) -> (B, P, 3)``.

    Arguments:
        latent: F.
        residual: add the points to the last layer's output.
        widths: of the layers, the points' own 3 first and last.
    """

    def __init__(
        self, latent: int, residual: bool = True, widths: tuple[int, ...] = WIDTHS
    ) -> None:
        super().__init__()
        self.latent, self.residual = latent, residual
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(ConcatSquash(a, b, latent + TIME_NUMBERS) for a, b in pairs)

    def forward(
        self, x: Float[Tensor, "B P 3"], time: Float[Tensor, " B"], latent: Float[Tensor, "B F"]
    ) -> Float[Tensor, "B P 3"]:
        moment = torch.stack([time, time.sin(), time.cos()], 1)
        told = torch.cat([moment, latent], 1)[:, None]
        h = x
        for k, layer in enumerate(self.layers):
            h = layer(h if k == 0 else nn.functional.leaky_relu(h), told)
        return x + h if self.residual else h
