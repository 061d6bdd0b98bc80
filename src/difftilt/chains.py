"""A diffusion model as a finite Markov chain with known kernels, and the paths it draws.

    p(τ) = p(x_N) Π_n p(x_{n-1} | x_n),      τ = (x_N, ..., x_1, x_0)

A ``Chain`` is a denoiser on a diffusion's levels: the prior. A posterior is the *same* chain with a
``Kernel`` that tilts each step and, if wanted, an ``InitialTilt`` of the law of ``x_N``; without
them its log-ratio to the prior is exactly zero. A ``Path`` records tensors only.

* ``rollout``: draw paths;           ``bridge``: noise a given ``x_0`` to a path;
* ``log_ratio``: ``Λ(τ) = Σ_n log q/p`` in nats;
* ``backward``: the gradient of ``Σ_b c_b Λ(τ_b)`` by re-visiting detached states in chunks. It is
  the chain rule, exact for any loss that sees the network through Λ, and its memory is a chunk's,
  whatever N (Venkatraman et al. 2024, section H.1, arXiv 2405.20971).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.denoisers import Denoiser
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise, Noise
from difftilt.transitions import Gaussian, GaussianTilt, Tilt


class Kernel(nn.Module, ABC):
    """What a posterior adds to each step of its prior.

    A kernel stays in eval mode, so that its density is a function of the state alone.
    """

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> Tilt:
        """The tilt of step ``x_n -> x_{n-1}``.

        Arguments:
            x: states x_n, (B, *event).
            n: the step, one int or one per sample.
            prediction: the prior's clean prediction at x_n.
            condition: (B, ...) or None.
        """

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: dropout would make the ratio of a path a random number."""
        return super().train(False)


class InitialTilt(nn.Module):
    """A learned shift and log-scale of the standardised ``x_N``, zero at the start.

    Arguments:
        event_shape: shape of one sample.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(tuple(event_shape)))
        self.log_scale = nn.Parameter(torch.zeros(tuple(event_shape)))

    def forward(self, batch: int) -> GaussianTilt:
        """The tilt for ``batch`` samples."""
        shape = (batch, *self.delta.shape)
        return GaussianTilt(self.delta.expand(shape), self.log_scale.expand(shape))


@dataclass
class NetworkCalls:
    """How many states each network has seen without and with a graph (one row, one call)."""

    prior: int = 0
    posterior: int = 0

    @property
    def total(self) -> int:
        """All calls."""
        return self.prior + self.posterior


@dataclass(frozen=True)
class Path:
    """A batch of paths: tensors only, detached.

    Arguments:
        states: (N + 1, B, *event); ``states[n]`` is x_n, so ``states[0]`` is data.
        predictions: (N, B, *prediction), the prior's clean predictions at ``x_1 ... x_N``
            (``predictions[n - 1]``), or None where they were not kept.
        log_ratio: (B,) ``Λ`` under the chain that drew the path, or None where it is not known.
        condition: (B, ...) or None.
    """

    states: Float[Tensor, "levels B ..."]
    predictions: Tensor | None = None
    log_ratio: Float[Tensor, " B"] | None = None
    condition: Tensor | None = None

    @property
    def x_0(self) -> Float[Tensor, "B ..."]:
        """The ends of the paths, (B, *event)."""
        return self.states[0]

    @property
    def batch(self) -> int:
        """Number of paths B."""
        return self.states.shape[1]

    def select(self, rows: Tensor) -> "Path":
        """The paths of some rows (an index tensor or mask over B)."""
        return Path(
            self.states[:, rows],
            None if self.predictions is None else self.predictions[:, rows],
            None if self.log_ratio is None else self.log_ratio[rows],
            None if self.condition is None else self.condition[rows],
        )

    @staticmethod
    def joined(paths: Sequence["Path"]) -> "Path":
        """Paths of several batches as one; a field is kept where every batch has it."""
        if len(paths) == 1:
            return paths[0]

        def join(values: list[Tensor | None], dim: int) -> Tensor | None:
            present = [v for v in values if v is not None]
            return torch.cat(present, dim) if len(present) == len(values) else None

        states = torch.cat([p.states for p in paths], 1)
        return Path(
            states,
            join([p.predictions for p in paths], 1),
            join([p.log_ratio for p in paths], 0),
            join([p.condition for p in paths], 0),
        )


@dataclass(frozen=True)
class Chain:
    """A prior (no kernel) or a posterior (a kernel on the same prior).

    Arguments:
        denoiser: the prior's.
        diffusion: levels and reverse kernels.
        event_shape: shape of one sample.
        kernel: the tilt of each step, or None for the prior.
        initial: the tilt of ``x_N``, or None to keep the prior's.
        condition: bound condition (B, ...), see ``given``.
    """

    denoiser: Denoiser
    diffusion: GaussianDiffusion
    event_shape: tuple[int, ...]
    kernel: Kernel | None = None
    initial: InitialTilt | None = None
    condition: Tensor | None = None
    like: Tensor = field(default_factory=lambda: torch.zeros(()))
    calls: NetworkCalls = field(default_factory=NetworkCalls, compare=False)

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return self.diffusion.steps

    @property
    def density_steps(self) -> list[int]:
        """The steps n that have a density; the others are maps shared by prior and posterior."""
        return [n for n in range(1, self.steps + 1) if self.diffusion.has_density(n)]

    @property
    def prior(self) -> "Chain":
        """This chain without its tilts."""
        return replace(self, kernel=None, initial=None)

    def tilted(self, kernel: Kernel, initial: InitialTilt | None = None) -> "Chain":
        """The posterior of this prior with the given tilts.

        Raises:
            InputError: no step of the chain has a density, so that none can be tilted.
        """
        if not self.density_steps:
            raise InputError(
                "this sampler has no stochastic step (a DDIM with eta = 0 or an ODE), so its steps "
                "have no density to tilt; use eta > 0, or tilt its noise with difftilt.latent(...)"
            )
        return replace(self, kernel=kernel, initial=initial)

    def given(self, condition: Tensor | None) -> "Chain":
        """This chain with a condition of shape (B, ...) bound to it."""
        return replace(self, condition=condition)

    def predict(self, x: Float[Tensor, "B ..."], n: int | Tensor, rows=None) -> Tensor:
        """The prior's clean prediction at ``x_n``; never with gradients."""
        self.calls.prior += x.shape[0]
        denoiser = self.denoiser.given(self._condition_of(rows))
        with torch.no_grad():
            return denoiser(x, self.diffusion.level(n, x))

    def law(self, prediction: Tensor, x: Float[Tensor, "B ..."], n: int | Tensor) -> Gaussian:
        """The prior's law of ``x_{n-1}`` from its prediction at ``x_n``."""
        return self.diffusion.reverse(prediction, x, n)

    def tilt(self, x: Tensor, n: int | Tensor, prediction: Tensor, rows=None) -> Tilt | None:
        """The posterior's tilt of step n, or None for a prior."""
        if self.kernel is None:
            return None
        self.calls.posterior += x.shape[0]
        return self.kernel(x, n, prediction, self._condition_of(rows))

    def _condition_of(self, rows: Tensor | None) -> Tensor | None:
        return self.condition if rows is None or self.condition is None else self.condition[rows]

    def empty(self, batch: int) -> Float[Tensor, "B ..."]:
        """A tensor (B, *event) of the chain's dtype and device."""
        return self.like.new_zeros((batch, *self.event_shape))


@dataclass(frozen=True)
class _Drawing:
    """How paths are drawn: scale of the noise, whether to keep states, whether to sum up Λ."""

    widen: float = 1.0
    record: bool = True
    ratio: bool = True


@torch.no_grad()
def rollout(
    chain: Chain,
    batch: int,
    noise: Noise | None = None,
    widen: float = 1.0,
    record: bool = True,
    ratio: bool = True,
) -> Path:
    """Draw ``batch`` paths of a chain, with their log-ratio to the prior.

    Arguments:
        chain: prior or posterior.
        batch: number of paths B; a bound condition must have as many rows.
        noise: source of randomness; default torch's global generator.
        widen: scale of the noise relative to the chain's own (exploration); Λ stays the chain's.
        record: keep all states and predictions; otherwise ``states`` holds x_0 alone.
        ratio: work out Λ; False leaves it None, for who will visit the paths again anyway.

    Returns:
        the paths; ``log_ratio`` is ``Σ_n log q/p`` of the chain itself.
    """
    noise = GeneratorNoise() if noise is None else noise
    base = chain.diffusion.base(chain.empty(batch))
    tilt = None if chain.initial is None else chain.initial(batch)
    drawing = _Drawing(widen, record, ratio)
    x, gain = _step(base, tilt, noise, drawing)
    total = x.new_zeros(batch) + gain
    return _descend(chain, x, chain.steps, total, noise, drawing)


@torch.no_grad()
def _descend(
    chain: Chain, x: Tensor, start: int, total: Tensor, noise: Noise, drawing: _Drawing
) -> Path:
    """Run the steps ``start ... 1`` from x at level ``start``."""
    states, predictions = [x], []
    for n in range(start, 0, -1):
        prediction = chain.predict(x, n)
        law = chain.law(prediction, x, n)
        if chain.diffusion.has_density(n):
            x, gain = _step(law, chain.tilt(x, n, prediction), noise, drawing)
            total = total + gain
        else:
            x = law.mean
        if drawing.record:
            states.append(x)
            predictions.append(prediction)
    log_ratio = total if drawing.ratio else None
    if not drawing.record:
        return Path(x[None], None, log_ratio, chain.condition)
    states, predictions = torch.stack(states[::-1]), torch.stack(predictions[::-1])
    return Path(states, predictions, log_ratio, chain.condition)


def _step(
    law: Gaussian, tilt: Tilt | None, noise: Noise, drawing: _Drawing
) -> tuple[Tensor, Tensor | float]:
    """The next state, and what the step adds to Λ (0 where it is not asked for)."""
    if tilt is None:
        eps = noise.normal(law.mean)
        return law.at(eps if drawing.widen == 1.0 else eps * drawing.widen), 0.0
    eps = tilt.draw(noise, drawing.widen)
    return law.at(eps), tilt.log_ratio(eps) if drawing.ratio else 0.0


@torch.no_grad()
def noised(chain: Chain, x_0: Float[Tensor, "B ..."], upto: int, noise: Noise) -> list[Tensor]:
    """States ``x_0, x_1, ..., x_upto`` of the forward process started at data."""
    states = [x_0]
    for n in range(1, upto + 1):
        law = chain.diffusion.forward_step(states[-1], n)
        states.append(law.at(noise.normal(x_0)))
    return states


@torch.no_grad()
def bridge(chain: Chain, x_0: Float[Tensor, "B ..."], noise: Noise | None = None) -> Path:
    """Paths of the forward process through given ends; off-policy data for any balance.

    A step without density (a zero-variance last step) is made consistent with the chain: its end
    is the chain's own map of the state above it, so ``path.x_0`` may differ slightly from ``x_0``
    and it is ``path.x_0`` that has to be scored.
    """
    noise = GeneratorNoise() if noise is None else noise
    states = noised(chain, x_0, chain.steps, noise)
    predictions = []
    for n in range(chain.steps, 0, -1):
        predictions.append(chain.predict(states[n], n))
        if not chain.diffusion.has_density(n):
            states[n - 1] = chain.law(predictions[-1], states[n], n).mean
    return Path(torch.stack(states), torch.stack(predictions[::-1]), None, chain.condition)


@torch.no_grad()
def back_and_forth(chain: Chain, x_0: Float[Tensor, "B ..."], level: int, noise: Noise) -> Path:
    """Noise ends up to ``level`` and denoise them again: a path near a given ``x_0``.

    The states above ``level`` come from the forward process, those below from the chain.

    Raises:
        InputError: ``level`` is not between 1 and N.
    """
    if not 1 <= level <= chain.steps:
        raise InputError(f"level={level} must lie between 1 and the chain's {chain.steps} steps")
    above = noised(chain, x_0, chain.steps, noise)
    zero = x_0.new_zeros(len(x_0))
    below = _descend(chain, above[level], level, zero, noise, _Drawing(ratio=False))
    assert below.predictions is not None
    upper = [chain.predict(above[n], n) for n in range(level + 1, chain.steps + 1)]
    predictions = torch.cat([below.predictions, torch.stack(upper)]) if upper else below.predictions
    states = torch.cat([below.states, torch.stack(above[level + 1 :])]) if upper else below.states
    return Path(states, predictions, None, chain.condition)


@dataclass(frozen=True)
class _Rows:
    """Single steps of paths: ``x_n -> landed = x_{n-1}``, R of them."""

    n: Int[Tensor, " R"]
    path: Int[Tensor, " R"]
    x: Float[Tensor, "R ..."]
    landed: Float[Tensor, "R ..."]
    prediction: Tensor | None

    def part(self, part: slice) -> "_Rows":
        prediction = None if self.prediction is None else self.prediction[part]
        return _Rows(self.n[part], self.path[part], self.x[part], self.landed[part], prediction)


def _all_rows(chain: Chain, path: Path) -> _Rows:
    """Every step with a density, step by step; views of the path, no copies."""
    steps, batch, device = chain.density_steps, path.batch, path.states.device
    # Only the last steps of a sampler can be maps, so the others are one range first ... N.
    first = steps[0]
    assert steps == list(range(first, chain.steps + 1))
    predictions = path.predictions
    return _Rows(
        torch.arange(first, chain.steps + 1, device=device).repeat_interleave(batch),
        torch.arange(batch, device=device).repeat(len(steps)),
        path.states[first:].flatten(0, 1),
        path.states[first - 1 : -1].flatten(0, 1),
        None if predictions is None else predictions[first - 1 :].flatten(0, 1),
    )


def _some_rows(path: Path, n: Int[Tensor, " R"], rows: Int[Tensor, " R"]) -> _Rows:
    prediction = None if path.predictions is None else path.predictions[n - 1, rows]
    return _Rows(n, rows, path.states[n, rows], path.states[n - 1, rows], prediction)


def _row_ratios(chain: Chain, rows: _Rows) -> Float[Tensor, " R"]:
    """``log q/p`` of single steps; differentiable in q."""
    prediction = rows.prediction
    if prediction is None:
        prediction = chain.predict(rows.x, rows.n, rows.path)
    tilt = chain.tilt(rows.x, rows.n, prediction, rows.path)
    assert tilt is not None
    return tilt.log_ratio(chain.law(prediction, rows.x, rows.n).standardise(rows.landed))


def _bound(chain: Chain, path: Path) -> Chain:
    return chain if path.condition is None else chain.given(path.condition)


def _initial_ratio(chain: Chain, path: Path) -> Tensor | None:
    if chain.initial is None:
        return None
    top = path.states[-1]
    return chain.initial(path.batch).log_ratio(chain.diffusion.base(top).standardise(top))


def _chunks(total: int, chunk: int | None) -> Iterator[slice]:
    size = total if chunk is None else max(1, chunk)
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def log_ratio(chain: Chain, path: Path, chunk: int | None = None) -> Float[Tensor, " B"]:
    """``Λ(τ) = log q(τ) - log p(τ)`` of given paths, nats summed over steps and event.

    Computed from the *stored* states. Differentiable in the posterior's parameters when gradients
    are enabled; then memory grows with N and ``backward`` is the better choice.

    Arguments:
        chain: the posterior (a prior gives zeros).
        path: paths on the chain's levels.
        chunk: states per network call; default all at once.
    """
    total = path.states.new_zeros(path.batch)
    if chain.kernel is not None:
        bound = _bound(chain, path)
        rows = _all_rows(chain, path)
        parts = [_row_ratios(bound, rows.part(p)) for p in _chunks(len(rows.n), chunk)]
        total = torch.cat(parts).unflatten(0, (-1, path.batch)).sum(0)
    initial = _initial_ratio(chain, path)
    return total if initial is None else total + initial


def backward(
    chain: Chain,
    path: Path,
    coefficients: Float[Tensor, " B"],
    chunk: int | None = None,
    subset: int | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Accumulate the gradient of ``Σ_b coefficients_b Λ(τ_b)`` into the posterior's parameters.

    Arguments:
        chain: the posterior.
        path: detached paths.
        coefficients: (B,) derivative of the loss by each path's Λ, detached.
        chunk: states per forward-backward; the peak memory is a chunk's, whatever N.
        subset: visit this many random steps of each path, re-weighted so that the gradient stays
            unbiased; default all.
        generator: for the random subset.

    Raises:
        InputError: ``subset`` is not between 1 and the number of steps with a density.
    """
    scale = 1.0
    if subset is None:
        rows = _all_rows(chain, path)
    else:
        rows = _random_subset(chain, path, subset, generator)
        scale = len(chain.density_steps) / subset
    bound, coefficients = _bound(chain, path), scale * coefficients.detach()
    for chosen in _chunks(len(rows.n), chunk):
        part = rows.part(chosen)
        (coefficients[part.path] * _row_ratios(bound, part)).sum().backward()
    initial = _initial_ratio(chain, path)
    if initial is not None:
        (coefficients / scale * initial).sum().backward()


def _random_subset(
    chain: Chain, path: Path, subset: int, generator: torch.Generator | None
) -> _Rows:
    steps = torch.tensor(chain.density_steps, device=path.states.device)
    if not 1 <= subset <= len(steps):
        raise InputError(
            f"subset={subset} must lie between 1 and {len(steps)}, the chain's stochastic steps"
        )
    device = steps.device if generator is None else generator.device
    keys = torch.rand((len(steps), path.batch), generator=generator, device=device).to(steps.device)
    chosen = keys.argsort(0)[:subset]
    rows = torch.arange(path.batch, device=steps.device).expand(subset, -1)
    return _some_rows(path, steps[chosen].flatten(), rows.flatten())
