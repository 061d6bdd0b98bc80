"""The adjoint against autograd of the whole path, and the lean one against the exact tilt."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from difftilt.chains.adjoint import Cost, match_lean_adjoint, pull_back
from difftilt.chains.chain import Chain, InitialTilt, Path
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.errors import InputError
from difftilt.kernels.networks import VectorKernel
from difftilt.tasks.exact.affine import TiltedAffineChain
from difftilt.tasks.exact.linear_gaussian import LinearModel
from difftilt.tasks.exact.neural import neural_ring8
from difftilt.training.pathwise import reward_gradient
from difftilt.training.state import trainable
from difftilt.transitions.gaussian import GaussianTilt
from small_chains import CONDITION, moved, noise, posterior_of, prior
from toys import GaussianDenoiser, LinearKernel, gaussian_chain

GAUSSIAN_FORMS = ["shift", "variance", "copy", "copy and variance", "drift"]


def log_reward(x: Tensor, condition: Tensor | None = None) -> Tensor:
    wanted = 0.3 if condition is None else condition
    return -(x[:, 0].sin() + (x - wanted).pow(4).sum(1))


def autograd_loss(chain: Chain, path: Path, sampled: bool = False) -> Tensor:
    """``Σ KL - log r`` (or ``Λ - log r``) of paths drawn again from their own noise, with graph."""
    batch, total = path.batch, torch.zeros(())
    x = path.states[-1]
    base = chain.diffusion.base(x)
    if chain.initial is not None:
        tilt = chain.initial(batch)
        eps = again(tilt, base.standardise(x))
        x, total = base.at(eps), tilt.log_ratio(eps) if sampled else tilt.divergence()
    for n in range(chain.steps, 0, -1):
        prediction = chain.predict(x, n, gradients=True)
        law = chain.law(prediction, x, n)
        if not chain.diffusion.has_density(n):
            x = law.mean
            continue
        tilt = chain.tilt(x, n, prediction)
        assert isinstance(tilt, GaussianTilt)
        stored = path.states[n]
        given = chain.law(chain.predict(stored, n), stored, n).standardise(path.states[n - 1])
        eps = again(tilt, given)
        x = law.at(eps)
        total = total + (tilt.log_ratio(eps) if sampled else tilt.divergence())
    return (total - log_reward(x, path.condition)).sum()


def again(tilt: GaussianTilt, eps: Tensor) -> Tensor:
    scale = torch.ones(()) if tilt.log_scale is None else tilt.log_scale.exp()
    return tilt.delta + scale * ((eps - tilt.delta) / scale).detach()


def gradient(chain: Chain, run: Callable[[], None]) -> Tensor:
    parameters = trainable(chain)
    for parameter in parameters:
        parameter.grad = None
    run()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )


def both(chain: Chain, path: Path, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Our gradient and autograd's."""
    weights = torch.ones(len(chain.density_steps) + 1)
    end = -reward_gradient(log_reward, path)[1]
    ours = gradient(chain, lambda: pull_back(chain, path, end, weights, Cost(), chunk))
    full = gradient(chain, lambda: autograd_loss(chain, path).backward())
    assert float(full.norm()) > 1e-2
    return ours, full


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("form", GAUSSIAN_FORMS)
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize(("initial", "conditional"), [(True, True), (False, False)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_adjoint_is_backpropagation(form, chunk, initial, conditional, dtype, tolerance):
    """The small chain ends with a map: its last step has no variance."""
    chain = prior(dtype=dtype)
    assert not chain.diffusion.has_density(1)
    chain = chain.given(CONDITION.to(dtype)) if conditional else chain
    chain = posterior_of(chain, form, initial=initial)
    ours, full = both(chain, rollout(chain, 5, noise()), chunk)
    assert relative(ours, full) < tolerance


@pytest.mark.parametrize("variance", [True, False])
def test_a_density_at_every_step(variance: bool):
    chain = gaussian_chain(2, 6)
    kernel = VectorKernel((2,), 6, learned_variance=variance)
    moved(kernel)
    chain = replace(chain.tilted(kernel.double()), like=torch.zeros(()).double())
    assert relative(*both(chain, rollout(chain, 5, noise()))) < 1e-12


def test_a_prior_that_learned_its_variance_is_followed_too():
    """The std of a step then depends on the state."""
    chain = learned_range_chain()
    chain = posterior_of(chain, "copy", initial=True)
    ours, full = both(chain, rollout(chain, 5, noise()))
    assert relative(ours, full) < 1e-12


class TwoHeads(GaussianDenoiser):
    """A clean prediction and, beside it, a fraction of the range of the log-variance."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2).double()

    def forward(self, x_t: Tensor, level) -> Tensor:
        return torch.cat([super().forward(x_t, level), self.linear(x_t).tanh()], 1)


def learned_range_chain() -> Chain:
    chain = gaussian_chain(2, 4)
    levels = chain.diffusion.tables.std.clamp(min=1e-3).log() * 2
    diffusion = type(chain.diffusion)(
        chain.diffusion.levels,
        chain.diffusion.tables,
        learned_range=(levels, levels + 1.0),
    )
    like = torch.zeros((), dtype=torch.float64)
    return Chain(TwoHeads().requires_grad_(False), diffusion, (2,), like=like)


def test_the_cost_scales_the_divergence():
    chain = posterior_of(prior(), "variance")
    path = rollout(chain, 5, noise())
    end, ones = -reward_gradient(log_reward, path)[1], torch.ones(5)
    parts = [
        gradient(chain, lambda c=c, e=e: pull_back(chain, path, end * e, ones, Cost(c)))
        for c, e in [(0.0, 1.0), (1.0, 0.0), (0.3, 2.0)]
    ]
    assert relative(2 * parts[0] + 0.3 * parts[1], parts[2]) < 1e-12


@pytest.mark.parametrize("form", GAUSSIAN_FORMS)
def test_the_path_derivative_is_autograd_of_the_weight_with_its_density_frozen(form: str):
    """``Λ - log r`` by autograd through the path, less the score ``∂ log q`` at the stored path."""
    chain = posterior_of(prior().given(CONDITION), form)
    path = rollout(chain, 5, noise())
    end = -reward_gradient(log_reward, path)[1]
    ours = gradient(chain, lambda: pull_back(chain, path, end, torch.ones(5), Cost(1.0, True)))
    sampled = gradient(chain, lambda: autograd_loss(chain, path, sampled=True).backward())
    score = gradient(chain, lambda: log_ratio(chain, path).sum().backward())
    assert float(score.norm()) > 1e-2
    assert relative(ours, sampled - score) < 1e-12


def test_the_path_derivative_vanishes_at_the_optimum():
    """Where q = π its noise is rounding; the plain gradient's is not. One dimension, float64."""
    model = one_dimensional_model()
    chain = model.chain(6, torch.float64)
    answer = model.tilted(chain)
    kernel, initial = LinearKernel(1, 6).double(), InitialTilt((1,)).double()
    exact(kernel, initial, answer)
    with torch.no_grad():
        for n, tilt in enumerate(answer.tilts, 1):
            kernel.table[2, 0, n] = 0.5 * tilt.covariance[0, 0].log()
    chain = chain.tilted(kernel, initial)
    path = rollout(chain, 50, noise())
    end = -reward_gradient(lambda x, _: model.log_reward(x), path)[1]
    plain, quiet = (
        gradient(chain, lambda c=cost: pull_back(chain, path, end, torch.ones(7), c))
        for cost in (Cost(), Cost(path_derivative=True))
    )
    assert float(quiet.norm()) < 1e-10 < 1e-1 < float(plain.norm())


def test_rows_are_linear_and_unvisited_beyond_the_last_weight():
    """The gradient is the sum of the rows' own, and a short suffix asks the networks less."""
    chain = posterior_of(prior(), "variance")
    path = rollout(chain, 5, noise())
    end, rows = -reward_gradient(log_reward, path)[1], len(chain.density_steps) + 1
    assert rows == 5
    single = torch.eye(rows)
    calls = []

    def of(weights: Tensor) -> Tensor:
        before = chain.calls.total
        found = gradient(chain, lambda: pull_back(chain, path, end, weights))
        calls.append(chain.calls.total - before)
        return found

    parts = torch.stack([of(single[row]) for row in range(rows)])
    mixed = torch.tensor([1.0, 0.0, 3.0, 0.5, -2.0])
    assert relative(mixed.double() @ parts, of(mixed)) < 1e-12
    # Step 1 is a map (5 prior calls); each step above it asks both networks.
    assert calls[:5] == [15, 25, 35, 45, 45]


def test_no_weight_no_visit():
    chain = posterior_of(prior(), "shift")
    path = rollout(chain, 5, noise())
    before = chain.calls.total
    found = gradient(chain, lambda: pull_back(chain, path, path.x_0, torch.zeros(5)))
    assert chain.calls.total == before and not found.any()


def test_memory_is_one_steps():
    """No graph outlives its step: what autograd keeps does not grow with N."""

    def kept(steps: int) -> int:
        chain = gaussian_chain(2, steps)
        kernel = VectorKernel((2,), steps)
        chain = chain.tilted(kernel)
        path = rollout(chain, 64, noise())
        alive, most = 0, 0

        class Held:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal alive, most
                self.tensor = tensor
                alive += 1
                most = max(most, alive)

            def __del__(self) -> None:
                nonlocal alive
                alive -= 1

        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            pull_back(chain, path, path.x_0, torch.ones(steps + 1))
        return most

    assert 0 < kept(16) == kept(4)


def test_the_priors_parameters_are_left_alone():
    chain = posterior_of(prior(), "shift")
    chain.denoiser.requires_grad_(True)
    path = rollout(chain, 5, noise())
    pull_back(chain, path, path.x_0, torch.ones(5))
    assert all(p.grad is None for p in chain.denoiser.parameters())


def test_a_mixture_cannot_be_pulled_back_through():
    chain = posterior_of(prior(), "mixture")
    path = rollout(chain, 5, noise())
    for run in (pull_back, match_lean_adjoint):
        with pytest.raises(InputError, match="components=1"):
            run(chain, path, path.x_0, torch.ones(5))


def test_a_learned_variance_cannot_be_matched():
    chain = posterior_of(prior(), "variance")
    path = rollout(chain, 5, noise())
    with pytest.raises(InputError, match="learned_variance=False"):
        match_lean_adjoint(chain, path, path.x_0, torch.ones(5))


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("form", ["shift", "copy", "drift"])
def test_the_lean_adjoint_is_the_derivative_of_the_priors_path(form: str, chunk: int | None):
    """``a_n = ∂(-log r)/∂x_n`` with ε fixed, by autograd; then the regression and its gradient."""
    chain = posterior_of(prior().given(CONDITION), form)
    path = rollout(chain, 5, noise())
    end = -reward_gradient(log_reward, path)[1]
    targets = lean_targets(chain, path)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5])

    def by_autograd() -> None:
        regression_losses(chain, path, targets, weights).sum().backward()

    losses: list[Tensor] = []
    ours = gradient(
        chain, lambda: losses.append(match_lean_adjoint(chain, path, end, weights, chunk))
    )
    assert relative(ours, gradient(chain, by_autograd)) < 1e-12
    unweighted = regression_losses(chain, path, targets, torch.ones(5)).detach()
    assert torch.allclose(losses[0], unweighted, rtol=1e-12)


def lean_targets(chain: Chain, path: Path) -> list[Tensor]:
    """``ã_0 ... ã_N`` by autograd through all the prior's steps below each state."""
    found = []
    for start in range(chain.steps + 1):
        top = path.states[start].clone().requires_grad_()
        x = top
        for n in range(start, 0, -1):
            law = chain.law(chain.predict(x, n, gradients=True), x, n)
            if not chain.diffusion.has_density(n):
                x = law.mean
                continue
            stored = path.states[n]
            given = chain.law(chain.predict(stored, n), stored, n).standardise(path.states[n - 1])
            x = law.at(given)
        (slope,) = torch.autograd.grad(-log_reward(x, path.condition).sum(), top)
        found.append(slope)
    return found


def regression_losses(chain: Chain, path: Path, targets: list[Tensor], weights: Tensor) -> Tensor:
    losses = torch.zeros(path.batch, dtype=torch.float64)
    for row, n in enumerate(chain.density_steps):
        x = path.states[n]
        prediction = chain.predict(x, n)
        tilt, law = chain.tilt(x, n, prediction), chain.law(prediction, x, n)
        assert isinstance(tilt, GaussianTilt)
        gap = tilt.delta + law.std * targets[n - 1]
        losses = losses + 0.5 * weights[row] * gap.square().sum(1)
    assert chain.initial is not None
    gap = chain.initial(path.batch).delta + chain.diffusion.base_std * targets[-1]
    return losses + 0.5 * weights[-1] * gap.square().sum(1)


class TabledKernel(LinearKernel):
    """The shifts of ``LinearKernel``, at the prior's variance."""

    def forward(self, x: Tensor, n, prediction: Tensor, condition: Tensor | None) -> GaussianTilt:
        return GaussianTilt(super().forward(x, n, prediction, condition).delta)


@pytest.mark.parametrize("steps", [2, 12])
def test_matching_is_exact_for_linear_gaussian_problems(steps: int):
    """The shift of the exactly tilted kernel makes the regression's gradient zero, at every N.

    5 standard errors for each of 2 (N + 1) numbers; and by 10 % from it, the gradient is not zero.
    """
    model = one_dimensional_model()
    chain, weights = exact_shifts(model, steps)
    assert chain.kernel is not None
    at_optimum, error = mean_gradient(chain, model, weights)
    assert float((at_optimum.abs() / error).max()) < 5
    with torch.no_grad():
        chain.kernel.table.mul_(1.1)
    elsewhere, error = mean_gradient(chain, model, weights)
    assert float((elsewhere.abs() / error).max()) > 8


def one_dimensional_model() -> LinearModel:
    number = lambda value: torch.tensor([value], dtype=torch.float64)  # noqa: E731
    return LinearModel(number(0.4), number(0.8)[None], number(1.0)[None], number(1.5))


def exact_shifts(model: LinearModel, steps: int) -> tuple[Chain, Tensor]:
    """The posterior whose means are those of the Doob kernels, its variance the prior's."""
    chain = model.chain(steps, torch.float64)
    answer = model.tilted(chain)
    kernel, initial = TabledKernel(1, steps).double(), InitialTilt((1,)).double()
    exact(kernel, initial, answer)
    return chain.tilted(kernel, initial), torch.ones(steps + 1)


def exact(kernel: LinearKernel, initial: InitialTilt, answer: TiltedAffineChain) -> None:
    """The means of the Doob kernels, and the law of x_N."""
    with torch.no_grad():
        for n, tilt in enumerate(answer.tilts, 1):
            slope = tilt.gain @ answer.prior.weights[n]
            kernel.table[0, 0, n] = tilt.gain @ answer.prior.offsets[n] + tilt.shift
            kernel.table[1, 0, n] = slope[0]
        initial.delta.copy_(answer.initial.shift)
        initial.log_scale.copy_(0.5 * answer.initial.covariance[0].log())


def mean_gradient(chain: Chain, model: LinearModel, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean gradient by the table and the initial shift over 20 batches, and its standard error."""
    found = []
    for seed in range(20):
        path = rollout(chain, 500, noise(seed))
        end = -reward_gradient(lambda x, _: model.log_reward(x), path)[1]

        def run(path: Path = path, end: Tensor = end) -> None:
            match_lean_adjoint(chain, path, end, weights)

        assert chain.initial is not None
        gradient(chain, run)
        table = chain.kernel.table.grad[:2, 0, 1:]
        found.append(torch.cat([table.flatten(), chain.initial.delta.grad]) / 500)
    values = torch.stack(found)
    return values.mean(0), values.std(0) / 20**0.5


def test_matching_nears_the_exact_tilt_as_steps_are_added():
    """On a grid, for ``r`` with two wells: the fixed point's shift against the tilted kernel's."""
    errors = [matched_shift_error(steps) for steps in (5, 15, 45)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.015


def matched_shift_error(steps: int) -> float:
    """Largest ``|δ - δ*| / std`` over steps and the bulk of states; δ solves its regression."""
    grid = torch.linspace(-5, 5, 501, dtype=torch.float64)
    chain = gaussian_chain(1, steps)
    nodes, mass = gauss_hermite()
    log_h = -2 * (grid**2 - 1) ** 2 / (1 + grid**2)
    slope = torch.gradient(-log_h, spacing=(grid,))[0]
    worst, bulk = 0.0, grid.abs() < 2
    for n in range(1, steps + 1):
        column = grid[:, None]
        law = chain.law(chain.predict(column, n), column, n)
        mean, std = law.mean[:, 0], float(law.std)
        landed = mean[:, None] + std * nodes
        h = mass * interpolated(grid, log_h, landed).exp()
        exact = (h * nodes).sum(1) / h.sum(1)
        delta = exact.clone()
        for _ in range(25):
            at = mean[:, None] + std * (delta[:, None] + nodes)
            delta = -std * (mass * interpolated(grid, slope, at)).sum(1)
        worst = max(worst, float((delta - exact)[bulk].abs().max()))
        log_h = h.sum(1).log()
        slope = -torch.gradient(mean, spacing=(grid,))[0] * delta / std
    return worst


def gauss_hermite() -> tuple[Tensor, Tensor]:
    import numpy as np

    nodes, mass = np.polynomial.hermite_e.hermegauss(40)
    return torch.from_numpy(nodes), torch.from_numpy(mass / mass.sum())


def interpolated(grid: Tensor, values: Tensor, x: Tensor) -> Tensor:
    place = (x - grid[0]) / (grid[1] - grid[0])
    left = place.floor().clamp(0, len(grid) - 2).long()
    share = (place - left).clamp(0, 1)
    return values[left] * (1 - share) + values[left + 1] * share


def test_closed_form_denoisers_and_networks_keep_their_graph():
    """``predict`` with gradients, by central differences, on every kind of exact prior."""
    from difftilt.tasks.exact.grid25 import prior25
    from difftilt.tasks.exact.toys import ring_toy

    for chain in (prior25(), ring_toy().chain(20), neural_ring8().chain):
        chain = replace(chain, denoiser=chain.denoiser.double())
        x = torch.randn(7, 2, dtype=torch.float64).requires_grad_()
        for n in (1, 10, 20):
            value = chain.predict(x, n, gradients=True)
            assert not chain.predict(x, n).requires_grad
            assert torch.allclose(value, chain.predict(x.detach(), n), atol=1e-12)
            probe = torch.randn(7, 2, dtype=torch.float64)
            (slope,) = torch.autograd.grad((value * probe).sum(), x)
            step = 1e-6 * torch.randn(7, 2, dtype=torch.float64)
            up, down = (chain.predict(x.detach() + s * step, n) for s in (1, -1))
            assert torch.allclose(
                ((up - down) / 2 * probe).sum(1), (slope * step).sum(1), rtol=1e-4, atol=1e-10
            )
