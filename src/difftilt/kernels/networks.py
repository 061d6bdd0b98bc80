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

from difftilt.chains.chain import Chain, Kernel
from difftilt.denoisers import Denoiser, TimeInput
from difftilt.diffusions.base import Diffusion
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.errors import InputError
from difftilt.models.labels import Labels
from difftilt.models.mlp import Size, StepLinear, StepMLP
from difftilt.models.numbers import Numbers
from difftilt.models.reads import Reads
from difftilt.models.tape import Tape
from difftilt.models.time import OncePerTime
from difftilt.transitions.base import Tilt, rows_of
from difftilt.transitions.gaussian import GaussianTilt, MixtureTilt

DEFAULT_SIZE = Size()


class VectorKernel(Kernel):
    """A perceptron's tilt for states of a few dimensions.

    Arguments:
        event_shape: shape of one sample.
        steps: N.
        components: K of the mixture; 1 for a Gaussian.
        learned_variance: also learn the (diagonal) variance; always on for a mixture.
        size: of the ``StepMLP``.
        reads: the labels or the numbers of the condition, or None: it reads none. Embeddings of
            labels are added in the first layer and start at zero.

    Raises:
        InputError: fewer than one component; or, when called, a condition that is not as read.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        steps: int,
        components: int = 1,
        learned_variance: bool = False,
        size: Size = DEFAULT_SIZE,
        reads: Reads | None = None,
    ) -> None:
        super().__init__()
        if components < 1:
            raise InputError(f"a kernel needs at least 1 component, got components={components}")
        self.event_shape = tuple(event_shape)
        self.components = components
        self.learned_variance = learned_variance or components > 1
        self.dimension = math.prod(self.event_shape)
        self.reads = reads
        extra = 0 if reads is None else reads.count
        # Numbers of a component: shift and log-scale, then the logit.
        self.parts = [self.dimension * (1 + self.learned_variance), int(components > 1)]
        self.network = StepMLP(
            self.dimension,
            components * sum(self.parts),
            steps,
            size,
            mask_groups=components,
            extra=extra,
        )
        self.tape: Tape | None = None
        self.linear = StepLinear(self.dimension, self.dimension, steps) if size.linear else None
        if isinstance(reads, Labels):
            embedding = slice(2 * self.dimension, 2 * self.dimension + extra)
            nn.init.zeros_(self.network.first.weight[:, embedding].detach())

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> Tilt:
        code = None if self.reads is None else self.reads.code(condition, x)
        output = self._outputs(x, prediction, n, code)
        return self._tilt(output, None if self.linear is None else self.linear(x, prediction, n))

    def prepared(self, like: Tensor) -> "VectorKernel":
        """Its calls go to a tape, but for parts that need a graph of each step."""
        recorded = torch.is_grad_enabled()
        apart = self.linear is not None or isinstance(self.reads, Numbers)
        if like.device.type != "cpu" or (recorded and apart):
            return self
        other = copy.copy(self)
        other.tape = Tape(self.network, recorded)
        return other

    def recorded(self) -> Tilt | None:
        if self.tape is None or not self.tape.slabs:
            return None
        return self._tilt(self.tape.outputs())

    def _tilt(self, output: Float[Tensor, "B outputs"], linear: Tensor | None = None) -> Tilt:
        # The batch last, as it is in memory.
        grouped = output.T.reshape(self.components, -1, len(output))
        drift, logits = grouped.split(self.parts, 1)
        drift = drift.reshape(self.components, -1, *self.event_shape, len(output))
        if linear is not None:
            drift = torch.cat([drift[:, :1] + linear.T.reshape(drift.shape[2:]), drift[:, 1:]], 1)
        if self.components > 1:
            return MixtureTilt(drift, logits.squeeze(1))
        rest = drift[0].movedim(-1, 1)
        return GaussianTilt(rest[0], rest[1] if self.learned_variance else None)

    def _outputs(
        self, x: Tensor, prediction: Tensor, n: int | Tensor, code: Tensor | None
    ) -> Tensor:
        output = self._called(x, prediction, n, code)
        return output if self.reads is None or code is None else output * self.reads.weight(code)

    def _called(
        self, x: Tensor, prediction: Tensor, n: int | Tensor, code: Tensor | None
    ) -> Tensor:
        if self.tape is not None:
            return self.tape(x, prediction, n, code)
        data = not (x.requires_grad or prediction.requires_grad)
        if isinstance(n, int) or not (data and torch.is_grad_enabled() and x.device.type == "cpu"):
            return self.network(x, prediction, n, code)
        tape = Tape(self.network, record=True)
        tape(x, prediction, n, code)
        return tape.outputs()


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
        own = self.denoiser.given(condition)(x, self.diffusion.level(n, x, condition))
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
    for part in denoiser.modules():
        if isinstance(part, Denoiser):
            part.make_trainable()
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
        embedding: of the time, handed to the network in its place, as in ``NetworkDenoiser``.
    """

    def __init__(
        self,
        network: nn.Module,
        diffusion: GaussianDiffusion,
        call: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
        unit_input: bool = False,
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.diffusion = diffusion
        self.call = call
        self.unit_input = unit_input
        self.embedding = None if embedding is None else OncePerTime(embedding)
        self.time = TimeInput(self.embedding)

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
        time = self.time.at(level, x, x.dtype)
        if self.call is None:
            return GaussianTilt(self.network(x, time))
        return GaussianTilt(self.call(self.network, x, time))

    def prepared(self, like: Tensor) -> "DriftKernel":
        other = copy.copy(self)
        levels = (self.diffusion.level(n, like) for n in range(1, self.diffusion.steps + 1))
        other.time = self.time.prepared(levels, like, like.dtype)
        return other
