"""A learned ``log Z``: one number, one per label, or a function of what a canvas says.

Balance objectives with ``log_z="learned"`` ask for ``log Z(c)`` of each path's condition.

| conditions | log Z |
|---|---|
| none | one number |
| integer labels | one number per label |
| canvases of a chain of tokens | a number, and a small perceptron of the canvas's features |
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.chains import Chain
from difftilt.diffusions.masked import GENERATED
from difftilt.token_denoisers import TokenDenoiser, wide
from difftilt.values import RunningLogMean


class LogPartition(nn.Module):
    """A learned ``log Z``: one number, or one per condition label.

    ``running`` is the running log mean of weights, for objectives that scale by it.

    Arguments:
        labels: number of conditions when they are integers 0 ... labels - 1; 0 for one number.
    """

    def __init__(self, labels: int = 0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(max(labels, 1)))
        self.labels = labels
        self.running = RunningLogMean()

    def forward(self, batch: int, condition: Tensor | None) -> Tensor:
        """``log Z`` of each path, (B,)."""
        if self.labels == 0 or condition is None:
            return self.value.expand(batch)
        return self.value[condition.long()]


class CanvasPartition(LogPartition):
    """``log Z(c)`` of canvases: a number, and a perceptron of the frozen prior's features of c.

    The features are those of the canvas with all that is generated masked and the suffix shown,
    averaged over the positions. Each different canvas of a batch costs one call of the prior. The
    perceptron is zero at the start and moves with the posterior's learning rate.

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
        features = self.features(blank)
        self.network = nn.Sequential(
            nn.LayerNorm(features.shape[1], elementwise_affine=False),
            nn.Linear(features.shape[1], width),
            nn.GELU(),
            nn.Linear(width, 1, bias=False),
        )
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        self.to(features.device, features.dtype)

    def forward(self, batch: int, condition: Tensor | None) -> Float[Tensor, " B"]:
        """``log Z`` of each path, (B,)."""
        if condition is None:
            return self.value.expand(batch)
        different, row = condition.unique(dim=0, return_inverse=True)
        return self.value + self.network(self.features(different))[row, 0]

    @torch.no_grad()
    def features(self, condition: Int[Tensor, "C 2 L"]) -> Float[Tensor, "C d"]:
        """Means of the prior's features over the positions of canvases."""
        chain = self._chain[0]
        assert isinstance(chain.denoiser, TokenDenoiser)
        tokens, roles = condition.unbind(1)
        x = torch.where(roles == GENERATED, chain.denoiser.vocab_size, tokens)
        chain.calls.prior += len(x)
        return wide(chain.denoiser.features(x, chain.diffusion.level(chain.steps, x)).mean(1))


def partition_of(chain: Chain, labels: int, conditional: bool) -> LogPartition:
    """The learned ``log Z`` that a training's conditions ask for.

    Arguments:
        chain: the posterior.
        labels: number of conditions that are integers; 0 otherwise.
        conditional: whether paths have conditions.
    """
    if conditional and not labels and isinstance(chain.denoiser, TokenDenoiser):
        return CanvasPartition(chain, chain.event_shape[0])
    return LogPartition(labels)
