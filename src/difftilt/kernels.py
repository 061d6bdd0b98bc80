"""Posterior kernels: networks that say how each step of the prior is tilted.

| form | kernel | starts at the prior because |
|---|---|---|
| additive drift (any N, small dimension) | ``VectorKernel`` | its last layer is zero |
| additive drift net of the prior's own class | ``DriftKernel`` | its last layer is zero |
| full copy, or adapters (LoRA) on the prior | ``DenoiserKernel`` | both predictions agree |

``log q/p`` is then exactly zero, to the bit, before the first update.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from difftilt.chains import Chain, Kernel
from difftilt.denoisers import Denoiser
from difftilt.diffusions.base import Diffusion
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.errors import InputError
from difftilt.models.labels import label_code
from difftilt.models.mlp import Size, StepLinear, StepMLP
from difftilt.transitions import GaussianTilt, MixtureTilt, Tilt, rows_of

DEFAULT_SIZE = Size()


class VectorKernel(Kernel):
    """A perceptron's tilt for states of a few dimensions.

    Arguments:
        event_shape: shape of one sample.
        steps: N.
        components: K of the mixture; 1 for a Gaussian.
        learned_variance: also learn the (diagonal) variance; always on for a mixture.
        size: of the ``StepMLP``.
        labels: number of values of each label that the condition holds, (B, K) integers; their
            embeddings are added in the first layer and start at zero. Empty: it reads no condition.

    Raises:
        InputError: fewer than one component; or, when called, a condition that is not such labels.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        steps: int,
        components: int = 1,
        learned_variance: bool = False,
        size: Size = DEFAULT_SIZE,
        labels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if components < 1:
            raise InputError(f"a kernel needs at least 1 component, got components={components}")
        self.event_shape = tuple(event_shape)
        self.components = components
        self.learned_variance = learned_variance or components > 1
        self.dimension = math.prod(self.event_shape)
        self.labels = tuple(labels)
        per_component = self.dimension * (1 + self.learned_variance) + (components > 1)
        self.network = StepMLP(
            self.dimension,
            components * per_component,
            steps,
            size,
            mask_groups=components,
            extra=sum(self.labels),
        )
        self.linear = StepLinear(self.dimension, self.dimension, steps) if size.linear else None
        embedding = slice(2 * self.dimension, 2 * self.dimension + sum(self.labels))
        nn.init.zeros_(self.network.first.weight[:, embedding].detach())

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> Tilt:
        code = label_code(condition, self.labels, x) if self.labels else None
        output = self.network(x, prediction, n, code)
        shape = (len(x), self.components, *self.event_shape)
        grouped = output.reshape(len(x), self.components, -1)
        delta, scale, logits = grouped.tensor_split([self.dimension, 2 * self.dimension], 2)
        if self.linear is not None:
            delta = delta + self.linear(x, prediction, n)[:, None]
        delta = delta.reshape(shape)
        if not self.learned_variance:
            return GaussianTilt(delta[:, 0])
        log_scale = scale.reshape(shape)
        if self.components == 1:
            return GaussianTilt(delta[:, 0], log_scale[:, 0])
        return MixtureTilt(delta, log_scale, logits.squeeze(2))


class DenoiserKernel(Kernel):
    """The step of another denoiser on the same diffusion: a full copy, or the prior with adapters.

    Arguments:
        denoiser: the posterior's denoiser (trainable).
        diffusion: shared with the prior.
        learned_variance: learn one log-scale per step (not exportable to plain diffusers).
    """

    def __init__(
        self, denoiser: Denoiser, diffusion: Diffusion, learned_variance: bool = False
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.diffusion = diffusion
        scale = nn.Parameter(torch.zeros(diffusion.steps + 1)) if learned_variance else None
        self.log_scale = scale

    def forward(
        self,
        x: Shaped[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> Tilt:
        own = self.denoiser.given(condition)(x, self.diffusion.level(n, x))
        tilt = self.diffusion.tilt_between(own, prediction, x, n)
        if self.log_scale is None:
            return tilt
        assert isinstance(tilt, GaussianTilt)
        log_scale = rows_of(self.log_scale, n, x).expand_as(tilt.delta)
        if tilt.log_scale is not None:
            log_scale = log_scale + tilt.log_scale
        return GaussianTilt(tilt.delta, log_scale)

    def on(self, diffusion: Diffusion) -> "DenoiserKernel":
        other = copy.copy(self)
        other.diffusion = diffusion
        return other


def full_copy(chain: Chain, learned_variance: bool = False) -> DenoiserKernel:
    """A trainable copy of the prior's denoiser: the posterior with most freedom.

    Arguments:
        chain: the prior.
        learned_variance: learn one log-scale per step (not exportable to plain diffusers).
    """
    denoiser = copy.deepcopy(chain.denoiser).informed().requires_grad_(True)
    return DenoiserKernel(denoiser, chain.diffusion, learned_variance)


def untilted(chain: Chain) -> Chain:
    """The same law as a chain without a tilt: one network call per step, the posterior's own.

    Raises:
        InputError: the posterior is no denoiser with the prior's variances, or a step has no
            density, which the two share.
    """
    kernel = chain.kernel
    if kernel is None and chain.initial is None:
        return chain
    shared = chain.initial is not None or len(chain.density_steps) < chain.steps
    if not isinstance(kernel, DenoiserKernel) or kernel.log_scale is not None or shared:
        raise InputError(
            "only a posterior that is a denoiser (FullCopy or LoRA, without learned variances), on "
            "steps that all have a density, is a chain by itself; sample the tilted chain instead"
        )
    return replace(chain.prior, denoiser=kernel.denoiser)


class DriftKernel(Kernel):
    """An additive drift net of any architecture: ``delta = network(x, time)``.

    Arguments:
        network: maps ``(x, time (B,))`` to the shape of x; its last parameters are zero.
        diffusion: shared with the prior (for the time that each step is told).
        call: how to call the network, as in ``NetworkDenoiser``.
        unit_input: divide the input by ``sqrt(alpha² + sigma²)``, as in ``NetworkDenoiser``.
    """

    def __init__(
        self,
        network: nn.Module,
        diffusion: GaussianDiffusion,
        call: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
        unit_input: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.diffusion = diffusion
        self.call = call
        self.unit_input = unit_input

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> Tilt:
        level = self.diffusion.level(n, x)
        if self.unit_input:
            x = x / (level.alpha**2 + level.sigma**2) ** 0.5
        time = level.times(x, x.dtype)
        if self.call is None:
            return GaussianTilt(self.network(x, time))
        return GaussianTilt(self.call(self.network, x, time))
