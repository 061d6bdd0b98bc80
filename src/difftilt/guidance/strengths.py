"""Guidance whose strength is learned: a direction that is given, and one number per step.

    δ_n = δ_n(beside) + strength_n d_n(x_n)

All strengths are zero at the start: the posterior is the prior. No gradient of parameters goes
through a network, so that an update costs its rollouts alone; and a few numbers along a direction
that matters are found long before a network's weights are. A balance finds strengths that are right
for the target, where training-free guidance has to guess one.

| direction | d_n |
|---|---|
| ``ClassifierFreeDirection`` | one unit of the prior's own classifier-free guidance |
| ``SlopeDirection`` | a training-free method's shift (``DPS()``, ``LGDMC()``), in its usual size |
"""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt._ops import over_event
from difftilt.chains.chain import Kernel
from difftilt.errors import InputError
from difftilt.models.heads import ZeroLinear
from difftilt.transitions.base import rows_of
from difftilt.transitions.gaussian import GaussianTilt

FARTHEST = 3.0
"""Norm of a direction, in its usual ones, beyond which it hardly grows."""


class SlopeDirection(nn.Module):
    """The shift of a training-free method, divided by its usual norm at each step.

    A reward's slope may be of any size, and far too large where a state has left the data: the
    usual norm at a step is the root mean square over the first states that are seen there, and
    longer shifts are shortened to ``FARTHEST`` of it, smoothly.

    Arguments:
        kernel: of the method; its scale does not matter.
        steps: N.
    """

    usual: Tensor

    def __init__(self, kernel: Kernel, steps: int) -> None:
        super().__init__()
        # In a tuple, so that what it refers to is neither trained nor saved with this.
        self._kernel = (kernel,)
        self.register_buffer("usual", torch.zeros(steps + 1))

    @torch.no_grad()
    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> Float[Tensor, "B ..."]:
        tilt = self._kernel[0](x, n, prediction, condition)
        assert isinstance(tilt, GaussianTilt)
        square = tilt.delta.flatten(1).square().sum(1)
        steps = torch.as_tensor(n, device=x.device).expand(len(x))
        for step in torch.unique(steps).tolist():
            if float(self.usual[step]) == 0:
                self.usual[step] = square[steps == step].mean().sqrt()
        unit = (self.usual[steps].to(square) ** 2 + square / FARTHEST**2).sqrt()
        return tilt.delta / over_event(unit.clamp(min=torch.finfo(x.dtype).tiny), x)


@final
class LearnedGuidanceKernel(Kernel):
    """Each step moved along a direction, how far being learned: one number per step.

    Arguments:
        direction: ``(x, n, prediction, condition) -> d_n (B, *event)``.
        steps: N.
        beside: a kernel of single Gaussians whose shifts are added, or None.

    Raises:
        InputError: when called: ``beside`` is a mixture.
    """

    def __init__(self, direction: nn.Module, steps: int, beside: Kernel | None = None) -> None:
        super().__init__()
        self.direction = direction
        self.beside = beside
        self.strength = ZeroLinear(steps + 1, bias=False)

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> GaussianTilt:
        direction = self.direction(x, n, prediction, condition)
        moved = rows_of(self.strength.weight[0].to(x), n, x) * direction
        if self.beside is None:
            return GaussianTilt(moved)
        tilt = self.beside(x, n, prediction, condition)
        if not isinstance(tilt, GaussianTilt):
            raise InputError(
                "a learned strength of guidance moves one Gaussian per step, and the form beside "
                "it has several; use components=1"
            )
        return GaussianTilt(tilt.delta + moved, tilt.log_scale)
