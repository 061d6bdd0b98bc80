"""Embeddings of the time, evaluated once for all neighbours that share it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class OncePerTime(nn.Module):
    """``time (B,) -> network(time) (B, width)``, asking the network once per run of equal times.

    The states of a rollout's step share one time, and a gradient visits its rows step by step, so
    an embedding of the time has far fewer distinct rows than its output. The function and its
    parameters are the network's; what changes is how often it is asked:

        distinct, row = runs of equal consecutive times
        output = network(distinct)[row]

    Exact when each row of the network's output is a function of that row's time alone (no batch
    normalisation, no dropout in train mode). A time that carries a gradient, or has no equal
    neighbours, is handed to the network as it is.

    Arguments:
        network: maps ``(B,)`` to ``(B, width)``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, time: Float[Tensor, " B"]) -> Float[Tensor, "B width"]:
        """The network's output at each time."""
        if time.requires_grad or len(time) < 2:
            return self.network(time)
        if time.stride(0) == 0:
            # One number that was expanded; asking whether its copies differ would be a waste.
            return self.network(time[:1]).expand(len(time), -1)
        distinct, row = torch.unique_consecutive(time, return_inverse=True)
        if len(distinct) == len(time):
            return self.network(time)
        # The backward of a look-up is one dense scatter, unlike that of an index.
        return nn.functional.embedding(row, self.network(distinct))
