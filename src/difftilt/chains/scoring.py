"""Paths scored: the log-ratio of every step, and its gradient in constant memory.

    λ_n(τ) = log q(x_{n-1} | x_n) - log p(x_{n-1} | x_n),        Λ(τ) = Σ_n λ_n(τ)

* ``step_scores``: λ as a matrix, a row for each step with a density and, last, one for ``x_N``;
* ``log_ratio``: its sum Λ;
* ``backward``: the gradient of ``Σ coefficients · λ`` by re-visiting detached states in chunks. It
  is the chain rule, exact for any loss that sees the network through λ, and its memory is a
  chunk's, whatever N (Venkatraman et al. 2024, section H.1, arXiv 2405.20971).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.errors import InputError
from difftilt.transitions.base import Tilt


@dataclass(frozen=True)
class StepScores:
    """Scores of each step of paths; rows are ``chain.density_steps`` and, last, the law of x_N.

    Arguments:
        log_ratio: (rows, B) ``λ``, nats.
        divergence: (rows, B) ``KL(q ‖ p)`` of each step's law at the stored state, or None.
    """

    log_ratio: Float[Tensor, "rows B"]
    divergence: Float[Tensor, "rows B"] | None = None


def step_scores(
    chain: Chain, path: Path, chunk: int | None = None, divergence: bool = False
) -> StepScores:
    """``λ`` of given paths, from their *stored* states.

    Differentiable in the posterior's parameters when gradients are enabled; then memory grows with
    N and ``backward`` is the better choice.

    Arguments:
        chain: the posterior (a prior gives zeros).
        path: paths on the chain's levels.
        chunk: states per network call; default all at once.
        divergence: also work out each step's ``KL(q ‖ p)``.

    Raises:
        InputError: ``divergence`` of a mixture kernel, which has no closed form.
    """
    rows, zero = len(chain.density_steps) + 1, chain.like.new_zeros(path.batch)
    ratios, divergences = [zero.repeat(rows - 1)], [zero.repeat(rows - 1)]
    if chain.kernel is not None:
        bound, ratios, divergences = _bound(chain, path), [], []
        every = _all_rows(chain, _without_parts(chain, path) if divergence else path)
        for chosen in _chunks(len(every.n), chunk):
            # A tilt may hold a whole vocabulary per state: none is kept beyond its chunk.
            tilt, eps = _seen(bound, every.part(chosen))
            ratios.append(tilt.log_ratio(eps))
            if divergence:
                divergences.append(tilt.divergence())
    top, fall = zero, zero
    if chain.initial is not None:
        tilt = chain.initial(path.batch)
        top, fall = tilt.log_ratio(_initial_eps(chain, path)), tilt.divergence()
    together = torch.cat([*ratios, top]).unflatten(0, (rows, path.batch))
    if not divergence:
        return StepScores(together)
    return StepScores(together, torch.cat([*divergences, fall]).unflatten(0, (rows, path.batch)))


def log_ratio(chain: Chain, path: Path, chunk: int | None = None) -> Float[Tensor, " B"]:
    """``Λ(τ) = log q(τ) - log p(τ)`` of given paths: the sum of their ``step_scores``."""
    return step_scores(chain, path, chunk).log_ratio.sum(0)


@dataclass(frozen=True)
class Coefficients:
    """The derivatives of a loss by what it saw of each step.

    Arguments:
        log_ratio: by each path's Λ, (B,), or by each λ, (rows, B).
        divergence: by each step's ``KL(q ‖ p)``, (rows, B), or None.
    """

    log_ratio: Float[Tensor, "*rows B"]
    divergence: Float[Tensor, "rows B"] | None = None


def backward(
    chain: Chain,
    path: Path,
    coefficients: Tensor | Coefficients,
    chunk: int | None = None,
    subset: int | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Accumulate the gradient of ``Σ coefficients · λ`` into the posterior's parameters.

    Arguments:
        chain: the posterior.
        path: detached paths.
        coefficients: derivative of the loss by each path's Λ (B,), by each λ (rows, B), or both
            by λ and by the divergences of the steps.
        chunk: states per forward-backward; the peak memory is a chunk's, whatever N.
        subset: visit this many random steps of each path, re-weighted so that the gradient stays
            unbiased; default all.
        generator: for the random subset.

    Raises:
        InputError: ``subset`` is not between 1 and the number of steps with a density.
    """
    steps, scale = chain.density_steps, 1.0
    if isinstance(coefficients, Tensor):
        coefficients = Coefficients(coefficients)
    by_ratio = coefficients.log_ratio.detach().expand(len(steps) + 1, path.batch)
    by_divergence = coefficients.divergence
    if by_divergence is not None:
        path = _without_parts(chain, path)
    if subset is None:
        rows = _all_rows(chain, path)
    else:
        rows = _random_subset(chain, path, subset, generator)
        scale = len(steps) / subset
    bound = _bound(chain, path)
    for chosen in _chunks(len(rows.n), chunk):
        part = rows.part(chosen)
        where = part.n - steps[0], part.path
        tilt, eps = _seen(bound, part)
        loss = (by_ratio[where] * tilt.log_ratio(eps)).sum()
        if by_divergence is not None:
            loss = loss + (by_divergence[where] * tilt.divergence()).sum()
        (scale * loss).backward()
    if chain.initial is not None:
        top, eps = chain.initial(path.batch), _initial_eps(chain, path)
        loss = (by_ratio[-1] * top.log_ratio(eps)).sum()
        if by_divergence is not None:
            loss = loss + (by_divergence[-1] * top.divergence()).sum()
        loss.backward()


@dataclass(frozen=True)
class _Rows:
    """Single steps of paths: ``x_n -> landed = x_{n-1}``, R of them."""

    n: Int[Tensor, " R"]
    path: Int[Tensor, " R"]
    x: Shaped[Tensor, "R ..."]
    landed: Shaped[Tensor, "R ..."]
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


def _seen(chain: Chain, rows: _Rows) -> tuple[Tilt, Tensor]:
    """The posterior's tilt at single steps, and where they landed in the prior's coordinates."""
    prediction = rows.prediction
    if prediction is None:
        prediction = chain.predict(rows.x, rows.n, rows.path)
    tilt = chain.tilt(rows.x, rows.n, prediction, rows.path)
    assert tilt is not None
    return tilt, chain.law(prediction, rows.x, rows.n).standardise(rows.landed)


def _bound(chain: Chain, path: Path) -> Chain:
    return chain if path.condition is None else chain.given(path.condition)


def _without_parts(chain: Chain, path: Path) -> Path:
    """The path without predictions that say too little for a divergence, to ask for them anew."""
    return path if chain.diffusion.whole else replace(path, predictions=None)


def _initial_eps(chain: Chain, path: Path) -> Tensor:
    top = path.states[-1]
    return chain.diffusion.base(top, path.condition).standardise(top)


def _chunks(total: int, chunk: int | None) -> Iterator[slice]:
    size = total if chunk is None else max(1, chunk)
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
