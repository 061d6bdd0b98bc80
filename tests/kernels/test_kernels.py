"""Every form of posterior starts at its prior, to the bit, and tilts as its equation says."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from difftilt.chains.chain import Chain, InitialTilt, Kernel
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import backward, log_ratio
from difftilt.denoisers import Denoiser, Level, NetworkDenoiser
from difftilt.diffusions.gaussian import GaussianDiffusion, ancestral_tables
from difftilt.errors import InputError
from difftilt.kernels.networks import (
    DenoiserKernel,
    DriftKernel,
    VectorKernel,
    full_copy,
)
from difftilt.models.mlp import Size
from difftilt.noise import GeneratorNoise, StreamNoise
from difftilt.schedules import VariancePreserving
from difftilt.transitions.gaussian import GaussianTilt, MixtureTilt

STEPS, SHAPE = 6, (2, 3)


class Network(nn.Module):
    """A small network over flattened states and time."""

    def __init__(self, outputs: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 16), nn.Linear(16, outputs)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(torch.cat([x.flatten(1), time[:, None]], 1)))
        return self.last(hidden).reshape(len(x), -1, SHAPE[1])


class Zero(Network):
    """Zero at the start."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)


def diffusion(learned_range: bool = False) -> GaussianDiffusion:
    levels = VariancePreserving().levels(STEPS)
    if not learned_range:
        return GaussianDiffusion(levels, clip=1.5)
    std = torch.full((STEPS + 1,), 0.2, dtype=torch.float64)
    bounds = (2 * std.log() - 1, 2 * std.log() + 1)
    return GaussianDiffusion(levels, ancestral_tables(levels, std), learned_range=bounds)


def prior(learned_range: bool = False) -> Chain:
    network = Network(outputs=12 if learned_range else 6).requires_grad_(False)
    return Chain(NetworkDenoiser(network, "sample"), diffusion(learned_range), SHAPE)


FORMS: dict[str, Callable[[Chain], Kernel]] = {
    "shift": lambda chain: VectorKernel(SHAPE, STEPS),
    "shift and linear map": lambda chain: VectorKernel(SHAPE, STEPS, size=Size(linear=True)),
    "shift and variance": lambda chain: VectorKernel(SHAPE, STEPS, learned_variance=True),
    "copy": full_copy,
    "copy and variance": lambda chain: full_copy(chain, learned_variance=True),
    "drift": lambda chain: DriftKernel(Zero(), chain.diffusion),
    "drift of unit input": lambda chain: DriftKernel(Zero(), chain.diffusion, unit_input=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("initial", [False, True])
def test_a_posterior_starts_at_its_prior(form: str, initial: bool):
    chain = prior()
    posterior = chain.tilted(FORMS[form](chain), InitialTilt(SHAPE) if initial else None)
    path = rollout(posterior, 5, StreamNoise(1, range(5)))
    before = rollout(chain, 5, StreamNoise(1, range(5)))
    assert torch.equal(path.states, before.states)
    assert torch.equal(path.log_ratio, torch.zeros(5))
    assert torch.equal(log_ratio(posterior, before).detach().abs() < 1e-4, torch.ones(5) > 0)


@pytest.mark.parametrize("components", [2, 3, 4])
def test_a_mixture_starts_at_the_prior(components: int):
    """Its draws spend uniforms too, so its paths are others, of the same law."""
    chain = prior()
    posterior = chain.tilted(VectorKernel(SHAPE, STEPS, components=components))
    path = rollout(posterior, 5)
    assert torch.allclose(path.log_ratio, torch.zeros(5), rtol=0, atol=1e-5)
    normals = torch.randn(5, *SHAPE)
    tilt = posterior.tilt(normals, 4, normals)
    assert isinstance(tilt, MixtureTilt)
    assert torch.equal(tilt.delta, torch.zeros(components, *SHAPE, 5))


@pytest.mark.parametrize("variance", [False, True])
def test_a_copy_starts_at_a_prior_with_a_learned_range(variance: bool):
    chain = prior(learned_range=True)
    path = rollout(chain.tilted(full_copy(chain, variance)), 5, StreamNoise(1, range(5)))
    assert torch.equal(path.states, rollout(chain, 5, StreamNoise(1, range(5))).states)
    assert torch.equal(path.log_ratio, torch.zeros(5))


def test_a_learned_variance_adds_to_a_learned_range():
    chain = prior(learned_range=True)
    kernel = full_copy(chain, learned_variance=True)
    moved(kernel)
    x = torch.randn(4, *SHAPE)
    prediction = chain.predict(x, 3)
    own = DenoiserKernel(kernel.denoiser, chain.diffusion)(x, 3, prediction, None)
    both = kernel(x, 3, prediction, None)
    assert isinstance(own, GaussianTilt) and isinstance(both, GaussianTilt)
    assert own.log_scale is not None and both.log_scale is not None and kernel.log_scale is not None
    assert torch.allclose(both.log_scale, own.log_scale + kernel.log_scale[3])
    assert torch.equal(both.delta, own.delta)


def moved(kernel: Kernel, scale: float = 0.1) -> Kernel:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return kernel


@pytest.mark.parametrize("form", FORMS)
def test_the_first_gradient_is_not_zero(form: str):
    """At the start ``Λ = 0``, but ``∇Λ`` is not: a kernel that cannot leave its prior is broken."""
    chain = prior()
    posterior = chain.tilted(FORMS[form](chain))
    backward(posterior, rollout(posterior, 8), torch.randn(8))
    largest = max(
        float(p.grad.abs().max()) for p in posterior.kernel.parameters() if p.grad is not None
    )
    assert largest > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_a_moved_posterior_leaves_its_prior_alone(form: str):
    chain = prior()
    before = rollout(chain, 5, StreamNoise(1, range(5))).states
    posterior = chain.tilted(moved(FORMS[form](chain)))
    path = rollout(posterior, 5, StreamNoise(1, range(5)))
    assert float(path.log_ratio.abs().max()) > 1e-3
    assert torch.equal(rollout(chain, 5, StreamNoise(1, range(5))).states, before)


def test_a_copys_step_is_the_step_of_its_denoiser():
    """``x' = mean_p + std (delta + eps)`` is the other denoiser's own ``mean_q + std eps``."""
    chain = prior()
    kernel = moved(full_copy(chain))
    other = Chain(kernel.denoiser, chain.diffusion, SHAPE)
    x, eps = torch.randn(4, *SHAPE), torch.randn(4, *SHAPE)
    for n in range(2, STEPS + 1):
        law = chain.law(chain.predict(x, n), x, n)
        tilt = kernel(x, n, chain.predict(x, n), None)
        expected = other.law(other.predict(x, n), x, n).at(eps)
        assert torch.allclose(law.at(tilt.delta + eps), expected, rtol=0, atol=2e-5)


def test_parameters_are_the_trainable_ones():
    chain = prior()
    for form, make in FORMS.items():
        parameters = list(make(chain).parameters())
        assert parameters and all(p.requires_grad for p in parameters), form
    shared = {p.data_ptr() for p in full_copy(chain).parameters()}
    assert not shared & {p.data_ptr() for p in chain.denoiser.parameters()}


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("learned_variance", [False, True])
def test_vector_kernels_keep_the_events_shape(components: int, learned_variance: bool):
    kernel = VectorKernel(SHAPE, STEPS, components, learned_variance, Size(8, 2))
    x = torch.randn(5, *SHAPE)
    with torch.no_grad():
        tilt = moved(kernel)(x, torch.tensor([1, 2, 3, 4, 6]), x, None)
    if components == 1:
        assert isinstance(tilt, GaussianTilt) and tilt.delta.shape == x.shape
        assert (tilt.log_scale is not None) == learned_variance
    else:
        assert isinstance(tilt, MixtureTilt)
        assert tilt.delta.shape == tilt.log_scale.shape == (3, *SHAPE, 5)
        # Components that start equal must be able to part.
        assert float((tilt.delta[0] - tilt.delta[1]).abs().max()) > 0


def test_a_kernel_needs_a_component():
    with pytest.raises(InputError, match="at least 1 component, got components=0"):
        VectorKernel(SHAPE, STEPS, components=0)


class Told(nn.Module):
    """Remembers what it was told."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.x, self.time = x, time
        return torch.zeros_like(x)


def test_a_drift_is_told_its_time():
    network, own = Told(), diffusion()
    x = torch.randn(3, *SHAPE)
    DriftKernel(network, own)(x, torch.tensor([6, 2, 1]), x, None)
    expected = own.levels.time[torch.tensor([6, 2, 1])].float()
    assert torch.equal(network.time, expected)
    DriftKernel(network, own)(x, 2, x, None)
    assert torch.equal(network.time, expected[1].expand(3))
    called = DriftKernel(network, own, call=lambda net, x, time: net(x, time) + 1)
    assert torch.equal(called(x, 2, x, None).delta, torch.ones_like(x))


class Conditional(Denoiser):
    """``x_0`` is the condition, whatever the state."""

    def __init__(self, gain: nn.Parameter, condition: Tensor | None = None) -> None:
        super().__init__()
        self.gain, self.condition = gain, condition

    def forward(self, x_t: Tensor, level: Level) -> Tensor:
        return self.gain * (torch.zeros_like(x_t) if self.condition is None else self.condition)

    def given(self, condition: Tensor | None) -> "Conditional":
        return Conditional(self.gain, condition)


def test_a_copy_is_given_the_condition():
    chain = Chain(Conditional(nn.Parameter(torch.ones(()))), diffusion(), SHAPE)
    kernel = full_copy(chain)
    with torch.no_grad():
        kernel.denoiser.gain += 1
    condition = torch.tensor([[[0.5]], [[-0.25]], [[0.0]]]).expand(3, *SHAPE)
    posterior = chain.given(condition).tilted(kernel)
    tilt = posterior.tilt(torch.zeros(3, *SHAPE), 4, posterior.predict(torch.zeros(3, *SHAPE), 4))
    tables = chain.diffusion.tables
    assert torch.allclose(tilt.delta, condition * float(tables.clipped[4] / tables.std[4]))


def test_one_path_is_one_call_per_step_and_network():
    chain = prior()
    posterior = chain.tilted(full_copy(chain))
    rollout(posterior, 5, GeneratorNoise())
    # The last step is a map, which the posterior does not look at.
    assert (chain.calls.prior, chain.calls.posterior) == (5 * STEPS, 5 * (STEPS - 1))
    assert chain.calls.total == 5 * (2 * STEPS - 1)


def test_dropout_is_never_on():
    network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    denoiser = NetworkDenoiser(network, "sample", call=lambda net, x, time: net(x))
    chain = Chain(denoiser, diffusion(), SHAPE)
    kernel = full_copy(chain).train()
    path = rollout(chain.tilted(kernel), 4)
    assert torch.equal(path.log_ratio, torch.zeros(4))
    assert not any(module.training for module in kernel.modules())
