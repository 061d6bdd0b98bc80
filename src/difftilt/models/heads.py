"""Heads that are added to a network which has been trained already."""

from torch import nn


class ZeroLinear(nn.Linear):
    """A linear layer of zeros: what it adds is nothing at the start.

    A head has few weights beside the network's millions, and takes steps of another size
    (``Optimisation.head_learning_rate``).

    Arguments:
        width: columns of the features.
        outputs: numbers that it gives.
        bias: whether it has one.
    """

    def __init__(self, width: int, outputs: int = 1, bias: bool = True) -> None:
        super().__init__(width, outputs, bias)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
