"""A learned ``log h`` of noisy clouds, and the form of a posterior that its gradient guides."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.chains.chain import Chain, Kernel
from difftilt.forms import Form
from difftilt.values.functions import Value
from difftilt.values.kernel import ValueKernel


class CloudValue(Value):
    """What a noisy cloud is worth: each point and its prediction, pooled over the points.

    The same for every order of the points; zero at the start, up to its anchor.

    Arguments:
        event_shape: (P, 3).
        steps: N; each has an embedding that scales and shifts what is seen of the points.
        width: of the layers.
    """

    def __init__(self, event_shape: Sequence[int], steps: int, width: int = 64) -> None:
        super().__init__(None)
        self.steps = steps
        self.first = nn.Linear(2 * event_shape[1], width)
        self.modulation = nn.Embedding(steps + 1, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        self.second = nn.Linear(width, 2 * width)
        self.pooled = nn.Linear(4 * width, width)
        self.last = nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        x: Float[Tensor, "B P 3"],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None = None,
        beta: float | Float[Tensor, " B"] = 1.0,
    ) -> Float[Tensor, " B"]:
        levels = torch.as_tensor(n, device=x.device).expand(len(x))
        scale, shift = self.modulation(levels)[:, None].chunk(2, 2)
        h = self.first(torch.cat([x, prediction], 2))
        h = nn.functional.silu(self.second(nn.functional.silu(h * (1 + scale) + shift)))
        seen = nn.functional.silu(self.pooled(torch.cat([h.mean(1), h.amax(1)], 1)))
        return self.last(seen)[:, 0] + self.anchor(beta)


@dataclass(frozen=True)
class CloudGuided(Form):
    """The prior of clouds guided by the gradient of a learned ``log h``; what ``CEP`` trains.

    Arguments:
        width: of the value's layers.
    """

    width: int = 64

    def kernel(self, chain: Chain) -> Kernel:
        """The kernel on a prior's chain, at its starting point."""
        value = CloudValue(chain.event_shape, chain.steps, self.width)
        value.to(dtype=chain.like.dtype, device=chain.like.device)
        return ValueKernel(value, chain.denoiser, chain.gaussian)
