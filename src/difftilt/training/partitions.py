"""A learned ``log Z``: one number, one per combination of labels, or a function of the condition.

Balance objectives with ``log_z="learned"`` ask for ``log Z(c)`` of each path's condition.

| conditions | log Z |
|---|---|
| none | one number |
| integer labels | one number per combination |
| real numbers | a number, and a small perceptron of the scaled numbers |
| canvases of a chain of tokens | a number, and a small perceptron of the canvas's features |
"""

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.diffusions.masked import GENERATED
from difftilt.models.labels import Labels
from difftilt.models.numbers import Numbers
from difftilt.models.reads import Reads
from difftilt.token_denoisers import TokenDenoiser, wide
from difftilt.values.functions import RunningLogMean


class LogPartition(nn.Module):
    """A learned ``log Z``: one number, or one per combination of the condition's labels.

    ``running`` is the running log mean of weights, for objectives that scale by it.

    Arguments:
        labels: of the conditions; None for one number.
    """

    def __init__(self, labels: Labels | None = None) -> None:
        super().__init__()
        self.labels = labels
        self.value = nn.Parameter(torch.zeros(1 if labels is None else labels.combinations))
        self.running = RunningLogMean()

    def forward(self, batch: int, condition: Tensor | None) -> Float[Tensor, " B"]:
        """``log Z`` of each path, (B,).

        Raises:
            InputError: another condition than it reads.
        """
        like = self.value[:1].expand(batch)
        return like if self.labels is None else self.value[self.labels.row(condition, like)]


class FeaturePartition(LogPartition):
    """``log Z(c)``: a number, and a perceptron of features of c, which is zero at the start.

    The perceptron moves with the posterior's learning rate.
    """

    def add_network(self, like: Float[Tensor, "C d"], width: int, normalised: bool) -> None:
        """Make the perceptron for features like these."""
        count = like.shape[1]
        first = [nn.LayerNorm(count, elementwise_affine=False)] if normalised else []
        hidden, last = nn.Linear(count, width), nn.Linear(width, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.network = nn.Sequential(*first, hidden, nn.GELU(), last)
        self.to(like.device, like.dtype)

    def forward(self, batch: int, condition: Tensor | None) -> Float[Tensor, " B"]:
        """``log Z`` of each path, (B,)."""
        if condition is None:
            return self.value.expand(batch)
        different, row = condition.unique(dim=0, return_inverse=True)
        return self.value + self.network(self.features(different))[row, 0]

    @abstractmethod
    def features(self, condition: Tensor) -> Float[Tensor, "C d"]:
        """What the perceptron reads of different conditions."""


class NumbersPartition(FeaturePartition):
    """``log Z(c)`` of real numbers.

    Arguments:
        reads: how they are scaled.
        like: gives dtype and device.
        width: hidden width of the perceptron.
    """

    def __init__(self, reads: Numbers, like: Tensor, width: int = 64) -> None:
        super().__init__()
        self.reads = reads
        self.add_network(like.new_zeros(1, reads.count), width, normalised=False)

    def features(self, condition: Float[Tensor, "C K"]) -> Float[Tensor, "C K"]:
        """The scaled numbers."""
        return self.reads.code(condition, self.value.expand(len(condition)))


class CanvasPartition(FeaturePartition):
    """``log Z(c)`` of canvases, by the frozen prior's features of c.

    The features are those of the canvas with all that is generated masked and the suffix shown,
    averaged over the positions. Each different canvas of a batch costs one call of the prior.

    Arguments:
        chain: of a ``TokenDenoiser``.
        length: L of the canvases.
        width: hidden width of the perceptron.
    """

    def __init__(self, chain: Chain, length: int, width: int = 64) -> None:
        super().__init__()
        # Not a submodule: the prior is frozen and no part of a checkpoint.
        self._chain = (chain.prior.given(None),)
        blank = torch.zeros(1, 2, length, dtype=torch.long, device=chain.like.device)
        self.add_network(self.features(blank), width, normalised=True)

    @torch.no_grad()
    def features(self, condition: Int[Tensor, "C 2 L"]) -> Float[Tensor, "C d"]:
        """Means of the prior's features over the positions of canvases."""
        chain = self._chain[0]
        assert isinstance(chain.denoiser, TokenDenoiser)
        tokens, roles = condition.unbind(1)
        x = torch.where(roles == GENERATED, chain.denoiser.vocab_size, tokens)
        chain.calls.prior += len(x)
        level = chain.diffusion.level(chain.steps, x, condition)
        return wide(chain.denoiser.features(x, level).mean(1))


def partition_of(chain: Chain, reads: Reads | None = None, canvases: bool = False) -> LogPartition:
    """The learned ``log Z`` that a training's conditions ask for.

    Arguments:
        chain: the posterior.
        reads: what is read of labels or numbers; None for neither.
        canvases: whether the conditions are canvases of a chain of tokens.
    """
    if canvases:
        return CanvasPartition(chain, chain.event_shape[0])
    if isinstance(reads, Numbers):
        return NumbersPartition(reads, chain.like)
    return LogPartition(reads)
