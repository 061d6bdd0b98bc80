"""A learned ``log h`` of noisy molecules, and the form of a posterior that its gradient guides."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.chains.chain import Chain, Kernel
from difftilt.forms import Form
from difftilt.models.egnn import PLACE, AtomNetwork, AtomNetworkSize, present_atoms
from difftilt.values.functions import Value
from difftilt.values.kernel import ValueKernel


class AtomValue(Value):
    """What a noisy molecule is worth: an invariant network of the state and the prior's guess.

    It reads distances in the guess, and the features of both; zero at the start, up to its anchor.

    Arguments:
        event_shape: (A, 3 + F).
        steps: N.
        size: of the network.
    """

    def __init__(self, event_shape: Sequence[int], steps: int, size: AtomNetworkSize) -> None:
        super().__init__(None)
        self.steps = steps
        self.network = AtomNetwork(2 * (event_shape[1] - PLACE), 0, size)
        self.last = nn.Linear(size.width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        x: Float[Tensor, "B A F"],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None = None,
        beta: float | Float[Tensor, " B"] = 1.0,
    ) -> Float[Tensor, " B"]:
        present = x.new_ones(x.shape[:2], dtype=torch.bool)
        if condition is not None:
            present = present_atoms(condition.reshape(len(x), -1)[:, 0], x.shape[1])
        level = torch.as_tensor(n, device=x.device).to(x.dtype).expand(len(x)) / self.steps
        seen = torch.cat([prediction, x[..., PLACE:]], -1)
        _, h = self.network.embedded(seen, level, present)
        here = present[..., None].to(h.dtype)
        return self.last((h * here).sum(1) / here.sum(1))[:, 0] + self.anchor(beta)


@dataclass(frozen=True)
class AtomGuided(Form):
    """The prior of molecules guided by the gradient of a learned ``log h``; what ``CEP`` trains.

    Arguments:
        width: of the value's network.
        layers: its blocks.
    """

    width: int = 32
    layers: int = 3

    def kernel(self, chain: Chain) -> Kernel:
        """The kernel on a prior's chain, at its starting point."""
        size = AtomNetworkSize(self.width, self.layers)
        value = AtomValue(chain.event_shape, chain.steps, size)
        value.to(dtype=chain.like.dtype, device=chain.like.device)
        return ValueKernel(value, chain.denoiser, chain.gaussian)
