"""A residual perceptron over a small vector, its time and a condition: the network of policies.

    h = first(x, time features, standardised condition);   h += block(h), ...;   last(h)

A block is a normalisation of the layer, a wider hidden layer and a way back. The same body reads
actions that are denoised given a state, and gives one number where it is a value's.

Source of the architecture: Hansen-Estruch et al. 2023, IDQL (arXiv 2304.10573).
"""

import copy
from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difftilt.errors import InputError
from difftilt.models.time import OncePerTime

SLOWEST = 10_000.0
Activation = Literal["silu", "mish"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "mish": nn.Mish}


@dataclass(frozen=True)
class ResidualSize:
    """Size of a ``ResidualMLP``.

    Arguments:
        width: of the residual stream.
        blocks: residual blocks.
        expansion: hidden width of a block, in widths.
        embedding: numbers that the time becomes, even.
        activation: of the hidden layers: "silu", or "mish", whose gradient takes a processor twenty
            times as long and which policies of other libraries have.

    Raises:
        InputError: a number out of range, or an unknown activation.
    """

    width: int = 128
    blocks: int = 3
    expansion: int = 2
    embedding: int = 32
    activation: Activation = "silu"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"unknown activation {self.activation!r}; choose {' or '.join(ACTIVATIONS)}"
            )
        if min(self.width, self.expansion) < 1 or self.blocks < 0:
            raise InputError(
                f"a network needs width and expansion >= 1 and blocks >= 0, got {self.width}, "
                f"{self.expansion} and {self.blocks}"
            )
        if self.embedding < 2 or self.embedding % 2:
            raise InputError(f"embedding={self.embedding} of the time must be even, 2 or more")


class TimeFeatures(nn.Module):
    """``time (B,) -> (B, width)``: cosines and sines of falling frequency, and two layers.

    Arguments:
        width: numbers that the time becomes, even.
        activation: of the hidden layer.
    """

    frequencies: Tensor

    def __init__(self, width: int, activation: Activation = "mish") -> None:
        super().__init__()
        share = torch.arange(width // 2) / (width // 2)
        self.register_buffer("frequencies", SLOWEST**-share, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width), ACTIVATIONS[activation](), nn.Linear(2 * width, width)
        )

    def forward(self, time: Float[Tensor, " B"]) -> Float[Tensor, "B width"]:
        """The features of each time."""
        angles = time[:, None] * self.frequencies
        return self.layers(torch.cat([angles.cos(), angles.sin()], 1))


class ResidualBlock(nn.Module):
    """``h + layers(h)``, normalised first.

    Arguments:
        width: of h.
        expansion: hidden width in widths.
        activation: of the hidden layer.
    """

    def __init__(self, width: int, expansion: int, activation: Activation) -> None:
        super().__init__()
        hidden = expansion * width
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            ACTIVATIONS[activation](),
            nn.Linear(hidden, width),
        )

    def forward(self, h: Float[Tensor, "B width"]) -> Float[Tensor, "B width"]:
        """The next h."""
        return h + self.layers(h)


class ResidualMLP(nn.Module):
    """``(x, time, condition) -> outputs``.

    The condition is standardised by buffers that are saved with the weights.

    Arguments:
        dimension: numbers in x.
        condition: numbers in the condition.
        outputs: numbers in one output; default as many as in x.
        size: of the network.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        dimension: int,
        condition: int,
        outputs: int | None = None,
        size: ResidualSize | None = None,
    ) -> None:
        super().__init__()
        size = ResidualSize() if size is None else size
        self.dimension, self.condition = dimension, condition
        self.register_buffer("centre", torch.zeros(condition))
        self.register_buffer("spread", torch.ones(condition))
        self.time = OncePerTime(TimeFeatures(size.embedding, size.activation))
        self.first = nn.Linear(dimension + size.embedding + condition, size.width)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(size.width, size.expansion, size.activation)
                for _ in range(size.blocks)
            )
        )
        self.last = nn.Linear(size.width, dimension if outputs is None else outputs)

    def forward(
        self,
        x: Float[Tensor, "B dimension"],
        time: Float[Tensor, " B"],
        condition: Float[Tensor, "B condition"],
    ) -> Float[Tensor, "B outputs"]:
        """What the network says of each row.

        Raises:
            InputError: the condition has another number of numbers.
        """
        if condition.ndim != 2 or condition.shape[1] != self.condition:
            raise InputError(
                f"this network reads conditions of {self.condition} numbers, (B, "
                f"{self.condition}), and got one of shape {tuple(condition.shape)}"
            )
        standardised = (condition.to(x) - self.centre) / self.spread
        h = self.first(torch.cat([x, self.time(time.to(x)), standardised], 1))
        return self.last(self.blocks(h))

    def standardised_by(self, conditions: Float[Tensor, "n condition"]) -> Self:
        """Take centre and spread from a set of conditions; a constant number is only centred."""
        spread = conditions.std(0)
        self.centre.copy_(conditions.mean(0))
        self.spread.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))
        return self

    def reading(self, more: int) -> Self:
        """A copy that reads ``more`` further numbers of the condition, and does not mind them yet.

        Their weights are zero, so that the copy says what this network says.
        """
        wider = copy.deepcopy(self)
        first = wider.first
        wider.first = nn.Linear(first.in_features + more, first.out_features).to(first.weight)
        with torch.no_grad():
            wider.first.weight.zero_()
            wider.first.weight[:, : first.in_features].copy_(first.weight)
            wider.first.bias.copy_(first.bias)
        wider.condition += more
        wider.centre = torch.cat([wider.centre, wider.centre.new_zeros(more)])
        wider.spread = torch.cat([wider.spread, wider.spread.new_ones(more)])
        return wider
