"""Problems of a few numbers whose posterior is a closed form, for tests of training.

The prior is ``N(mean, std² I)`` under a closed-form denoiser, so the discrete chain is linear and
Gaussian: the law of its ``x_0``, and ``log Z`` under a Gaussian likelihood, are exact.
``LinearKernel`` holds the exactly tilted kernels of such a chain, for each of some labels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from difftilt.chains.chain import Chain, InitialTilt, Kernel
from difftilt.denoisers import Denoiser, Level
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.kernels.networks import VectorKernel
from difftilt.models.mlp import Size
from difftilt.schedules import VariancePreserving
from difftilt.training.plan import BehaviourWeights, Optimisation, Training
from difftilt.training.state import TrainingState
from difftilt.transitions.gaussian import GaussianTilt

MEAN, STD = 0.5, 0.8
LogReward = Callable[[Tensor, Tensor | None], Tensor]


class GaussianDenoiser(Denoiser):
    """``E[x_0 | x_t]`` for data ``N(mean, std² I)``."""

    def __init__(self, mean: float = MEAN, std: float = STD) -> None:
        super().__init__()
        self.mean, self.variance = mean, std**2

    def forward(self, x_t: Tensor, level: Level) -> Tensor:
        total = level.alpha**2 * self.variance + level.sigma**2
        gain = level.alpha * self.variance / total
        return self.mean + gain * (x_t - level.alpha * self.mean)


class LinearKernel(Kernel):
    """``eps ~ N(shift + slope x, exp(2 log_scale))``, one of each per label, step and dimension."""

    def __init__(self, dimension: int, steps: int, labels: int = 1) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3, labels, steps + 1, dimension))

    def forward(self, x: Tensor, n, prediction: Tensor, condition: Tensor | None) -> GaussianTilt:
        label = torch.zeros(len(x), dtype=torch.long) if condition is None else condition.long()
        shift, slope, log_scale = self.table[:, label, n]
        return GaussianTilt(shift + slope * x, log_scale)


class FragileKernel(LinearKernel):
    """Runs out of memory on more rows than ``limit`` when a gradient is wanted."""

    limit = 10**9

    def forward(self, x: Tensor, n, prediction: Tensor, condition: Tensor | None) -> GaussianTilt:
        if torch.is_grad_enabled() and len(x) > self.limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return super().forward(x, n, prediction, condition)


def gaussian_chain(dimension: int = 1, steps: int = 3) -> Chain:
    """The prior; its last step has a density too."""
    diffusion = GaussianDiffusion(VariancePreserving(clean=4.0, noisy=-6.0).levels(steps))
    diffusion = diffusion.with_std(1, float(diffusion.levels.sigma[1]))
    return Chain(GaussianDenoiser(), diffusion, (dimension,))


def linear_posterior(dimension: int = 1, steps: int = 3, labels: int = 1) -> Chain:
    """The prior with a trainable kernel that can be exact, and a trainable law of ``x_N``."""
    prior = gaussian_chain(dimension, steps)
    return prior.tilted(LinearKernel(dimension, steps, labels), InitialTilt((dimension,)))


def network_posterior(dimension: int = 2, steps: int = 3, width: int = 32) -> Chain:
    """The prior with a small network that has hidden matrices."""
    kernel = VectorKernel(
        (dimension,), steps, learned_variance=True, size=Size(width, frequencies=2)
    )
    return gaussian_chain(dimension, steps).tilted(kernel)


def end_law(chain: Chain) -> tuple[float, float]:
    """Mean and variance of each coordinate of the prior chain's own ``x_0``, by its recursion."""
    mean, variance = 0.0, chain.diffusion.base_std**2
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for n in range(chain.steps, 0, -1):
        law = chain.law(chain.predict(ends, n), ends, n)
        offset, slope = float(law.mean[0]), float(law.mean[1] - law.mean[0])
        mean, variance = offset + slope * mean, slope**2 * variance + float(law.std) ** 2
    return mean, variance


@dataclass(frozen=True)
class Likelihood:
    """``log N(y; x_0, sigma² I)``, with y by label if there is a condition."""

    y: tuple[float, ...] = (1.2,)
    sigma: float = 0.6

    def __call__(self, x_0: Tensor, condition: Tensor | None = None) -> Tensor:
        y = torch.tensor(self.y, dtype=x_0.dtype)
        y = y[0] if condition is None else y[condition.long()][:, None]
        z = (x_0 - y) / self.sigma
        return -(0.5 * z**2 + math.log(self.sigma) + 0.5 * math.log(2 * math.pi)).sum(1)

    def log_z(self, chain: Chain, label: int = 0, beta: float = 1.0) -> float:
        """``log E_p[r^β]`` of the discrete chain."""
        mean, variance = end_law(chain)
        total = variance + self.sigma**2 / beta
        per = -0.5 * (self.y[label] - mean) ** 2 / total - 0.5 * math.log(2 * math.pi * total)
        normal = 0.5 * math.log(2 * math.pi * self.sigma**2 / beta)
        powered = -0.5 * beta * math.log(2 * math.pi * self.sigma**2)
        return math.prod(chain.event_shape) * (per + normal + powered)

    def posterior(self, chain: Chain, label: int = 0) -> tuple[float, float]:
        """Mean and variance of each coordinate of ``x_0`` under the posterior."""
        mean, variance = end_law(chain)
        precision = 1 / variance + 1 / self.sigma**2
        return (mean / variance + self.y[label] / self.sigma**2) / precision, 1 / precision


def quick_plan(**changes) -> Training:
    """A plan of quick updates; ``learning_rate``, ``ema``, ... reach its optimiser."""
    fields = set(Optimisation.__dataclass_fields__)
    own = {name: changes.pop(name) for name in list(changes) if name in fields}
    optimisation = replace(Optimisation(learning_rate=0.1, ema=0.9), **own)
    own_paths = BehaviourWeights(on_policy=1.0, pool=0.0)
    base = Training(
        steps=60, batch=64, warm_start=0.0, optimisation=optimisation, behaviour=own_paths
    )
    return replace(base, **changes)


def toy_state(
    plan: Training | None = None,
    chain: Chain | None = None,
    log_reward: LogReward | None = None,
    **options,
) -> TrainingState:
    """A training of the toy problem."""
    plan = quick_plan() if plan is None else plan
    chain = linear_posterior() if chain is None else chain
    return TrainingState(
        chain, log_reward or Likelihood(), options.pop("beta", 1.0), plan, **options
    )


def image_chain(shape: tuple[int, ...] = (1, 4, 4), steps: int = 3) -> Chain:
    """Images of independent standard Gaussian pixels under their exact denoiser."""
    levels = VariancePreserving(clean=6.0, noisy=-6.0).levels(steps)
    return Chain(GaussianDenoiser(0.0, 1.0), GaussianDiffusion(levels), shape)
