"""Chains of two dimensions and five steps, in float64: a conditional prior and its posteriors."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from difftilt.chains.chain import Chain, InitialTilt, Kernel
from difftilt.denoisers import Denoiser, Level, to_clean
from difftilt.diffusions.gaussian import GaussianDiffusion, implicit_tables
from difftilt.kernels.networks import DriftKernel, VectorKernel, full_copy
from difftilt.models.mlp import Size
from difftilt.noise import GeneratorNoise
from difftilt.schedules import VariancePreserving

STEPS, DIMENSION = 5, 2


class Conditional(Denoiser):
    """A perceptron of state, time and, if bound, a condition; never of another row's."""

    def __init__(self, network: nn.Module, condition: Tensor | None = None) -> None:
        super().__init__()
        self.network, self.condition = network, condition

    def forward(self, x_t: Tensor, level: Level) -> Tensor:
        condition = x_t.new_zeros(len(x_t), 1) if self.condition is None else self.condition
        assert len(condition) == len(x_t)
        time = torch.as_tensor(level.time, dtype=x_t.dtype).reshape(-1, 1).expand(len(x_t), 1)
        output = self.network(torch.cat([x_t, time, condition], 1))
        return to_clean("v_prediction", output, x_t, level)

    def given(self, condition: Tensor | None) -> "Conditional":
        return Conditional(self.network, condition)


def perceptron(inputs: int, zero: bool = False) -> nn.Sequential:
    last = nn.Linear(16, DIMENSION)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), last)


class Drift(nn.Module):
    """A drift of state and time, zero at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.network = perceptron(DIMENSION + 1, zero=True)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.network(torch.cat([x, time[:, None]], 1))


class Waves(nn.Module):
    """An embedding of the time that counts the rows it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.randn(1, 4))
        self.rows = 0

    def forward(self, time: Tensor) -> Tensor:
        self.rows += len(time)
        return (3 * time[:, None] * torch.arange(1, 5) + self.phase).sin()


class EmbeddedDrift(nn.Module):
    """A drift of state and embedded time, zero at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.network = perceptron(DIMENSION + 4, zero=True)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        return self.network(torch.cat([x, code], 1))


def prior(eta: float = 1.0, dtype: torch.dtype = torch.float64) -> Chain:
    denoiser = Conditional(perceptron(DIMENSION + 2)).to(dtype).requires_grad_(False)
    levels = VariancePreserving(clean=6.0, noisy=-6.0).levels(STEPS)
    diffusion = GaussianDiffusion(levels, implicit_tables(levels, eta))
    return Chain(denoiser, diffusion, (DIMENSION,), like=torch.zeros((), dtype=dtype))


def vector(components: int, variance: bool = False) -> Callable[[Chain], Kernel]:
    return lambda chain: VectorKernel((DIMENSION,), STEPS, components, variance, Size(16))


FORMS: dict[str, Callable[[Chain], Kernel]] = {
    "shift": vector(1),
    "variance": vector(1, variance=True),
    "mixture": vector(3),
    "copy": full_copy,
    "copy and variance": lambda chain: full_copy(chain, learned_variance=True),
    "drift": lambda chain: DriftKernel(Drift(), chain.gaussian),
    "embedded drift": lambda chain: DriftKernel(EmbeddedDrift(), chain.gaussian, embedding=Waves()),
}


def moved(module: nn.Module, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter += scale * noise


def posterior_of(chain: Chain, form: str, initial: bool = True, scale: float = 0.1) -> Chain:
    """A posterior away from its prior, in the prior's dtype."""
    dtype = chain.like.dtype
    kernel = FORMS[form](chain).to(dtype)
    start = InitialTilt(chain.event_shape).to(dtype) if initial else None
    for module in (kernel, start):
        if module is not None:
            moved(module, scale)
    return chain.tilted(kernel, start)


def noise(seed: int = 1) -> GeneratorNoise:
    return GeneratorNoise(torch.Generator().manual_seed(seed))


CONDITION = torch.tensor([[-2.0], [-0.5], [0.0], [1.0], [2.5]]).double()
