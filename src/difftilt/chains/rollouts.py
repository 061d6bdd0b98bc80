"""Paths drawn: by a chain, or by the forward process through given ends.

* ``rollout``: paths of a chain, with their log-ratio to its prior;
* ``bridge``: a given ``x_0`` noised to a path;
* ``back_and_forth``: a given ``x_0`` noised part of the way and denoised again.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from difftilt.chains.chain import Chain, Kernel, Path
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise, Noise
from difftilt.transitions.base import Tilt, Transition, log_ratios

Ratio = bool | Literal["differentiable"]
"""Whether a rollout works out Λ, and whether Λ keeps its gradient."""


@dataclass(frozen=True)
class _Drawing:
    """How paths are drawn: scale of the noise, whether to keep states, whether to sum up Λ.

    ``planned``: the first state is one of a path, so that its step is planned already.
    """

    widen: float = 1.0
    record: bool = True
    ratio: Ratio = True
    planned: bool = False

    @property
    def graph(self) -> bool:
        return self.ratio == "differentiable"


class _RatioSum:
    """Λ of paths while they are drawn.

    A graph keeps all steps anyway, and then their log-ratios are worked out in one go at the end.
    """

    def __init__(self, drawing: _Drawing) -> None:
        self.drawing = drawing
        self.known: list[Tensor] = []
        self.tilts: list[Tilt] = []
        self.eps: list[Tensor] = []

    def add(self, tilt: Tilt | None, eps: Tensor) -> None:
        """A step that landed at ``eps``; nothing for a prior, or if Λ is not asked for."""
        if tilt is None or not self.drawing.ratio:
            return
        if self.drawing.graph:
            self.tilts.append(tilt)
            self.eps.append(eps)
        else:
            self.known.append(tilt.log_ratio(eps))

    def settle(self, kernel: Kernel | None = None) -> None:
        """Work out what has been left for the end, of steps that ``kernel`` has tilted."""
        if self.tilts:
            with torch.enable_grad():
                joined = None if kernel is None else kernel.recorded()
                self.known.append(log_ratios(self.tilts, self.eps, joined).sum(0))
            self.tilts, self.eps = [], []

    def total(self, nothing: Tensor) -> Tensor | None:
        """Λ of each path; ``nothing`` (B,) for a prior, None if it is not asked for."""
        if not self.drawing.ratio:
            return None
        with torch.set_grad_enabled(self.drawing.graph):
            return torch.stack(self.known).sum(0) if self.known else nothing


@torch.no_grad()
def rollout(
    chain: Chain,
    batch: int,
    noise: Noise | None = None,
    widen: float = 1.0,
    record: bool = True,
    ratio: Ratio = True,
) -> Path:
    """Draw ``batch`` paths of a chain, with their log-ratio to the prior.

    Arguments:
        chain: prior or posterior.
        batch: number of paths B; a bound condition must have as many rows.
        noise: source of randomness; default torch's global generator.
        widen: scale of the noise relative to the chain's own (exploration); Λ stays the chain's.
        record: keep all states and predictions; otherwise ``states`` holds x_0 alone.
        ratio: work out Λ; False leaves it None, for who will visit the paths again anyway.
            "differentiable": Λ of the (detached) paths with its gradient in the posterior's
            parameters, which saves that visit; the memory grows with N and B.

    Returns:
        the paths; ``log_ratio`` is ``Σ_n log q/p`` of the chain itself.
    """
    noise = GeneratorNoise() if noise is None else noise
    base = chain.base(batch)
    drawing = _Drawing(widen, record, ratio)
    with torch.set_grad_enabled(drawing.graph):
        tilt = None if chain.initial is None else chain.initial(batch)
    total = _RatioSum(drawing)
    x = _step(base, tilt, noise, total)
    total.settle()
    return _descend(chain, x, chain.steps, noise, total)


@torch.no_grad()
def _descend(chain: Chain, x: Tensor, start: int, noise: Noise, ratio: _RatioSum) -> Path:
    """Run the steps ``start ... 1`` from x at level ``start``; ``ratio`` is what Λ has so far."""
    drawing, states, predictions = ratio.drawing, [], []
    chain = _prepared(chain, start, drawing.graph)
    for n in range(start, 0, -1):
        if n < start or not drawing.planned:
            with torch.set_grad_enabled(drawing.graph):
                x = chain.planned(x, n, noise)
        prediction = chain.predict(x, n)
        law = chain.law(prediction, x, n)
        if drawing.record:
            states.append(x)
        if chain.diffusion.has_density(n):
            with torch.set_grad_enabled(drawing.graph):
                tilt = chain.tilt(x, n, prediction)
            x = _step(law, tilt, noise, ratio)
        else:
            x = law.landing
        if drawing.record:
            predictions.append(chain.diffusion.kept(prediction, law, x))
    ratio.settle(chain.kernel)
    log_ratio = ratio.total(chain.like.new_zeros(len(x)))
    if not drawing.record:
        return Path(x[None], None, log_ratio, chain.condition)
    states, predictions = torch.stack([*states, x][::-1]), torch.stack(predictions[::-1])
    return Path(states, predictions, log_ratio, chain.condition)


def _prepared(chain: Chain, start: int, graph: bool) -> Chain:
    """The chain with what depends on the step alone worked out for steps ``start ... 1``."""
    levels = (chain.diffusion.level(n, chain.like) for n in range(start, 0, -1))
    denoiser = chain.denoiser.prepared(levels, chain.like)
    with torch.set_grad_enabled(graph):
        kernel = None if chain.kernel is None else chain.kernel.prepared(chain.like)
    return replace(chain, denoiser=denoiser, kernel=kernel)


def _step(law: Transition, tilt: Tilt | None, noise: Noise, ratio: _RatioSum) -> Tensor:
    """The next state; ``ratio`` takes note of the step."""
    eps = (law if tilt is None else tilt).draw(noise, ratio.drawing.widen)
    ratio.add(tilt, eps)
    return law.at(eps)


@torch.no_grad()
def noised(chain: Chain, x_0: Shaped[Tensor, "B ..."], upto: int, noise: Noise) -> list[Tensor]:
    """States ``x_0, x_1, ..., x_upto`` of the forward process started at data."""
    return chain.diffusion.noised(x_0, upto, noise, chain.condition)


@torch.no_grad()
def bridge(chain: Chain, x_0: Shaped[Tensor, "B ..."], noise: Noise | None = None) -> Path:
    """Paths of the forward process through given ends; off-policy data for any balance.

    A step without density (a zero-variance last step) is made consistent with the chain: its end
    is the chain's own map of the state above it, so ``path.x_0`` may differ slightly from ``x_0``
    and it is ``path.x_0`` that has to be scored.
    """
    noise = GeneratorNoise() if noise is None else noise
    states = noised(chain, x_0, chain.steps, noise)
    predictions = []
    for n in range(chain.steps, 0, -1):
        prediction = chain.predict(states[n], n)
        law = chain.law(prediction, states[n], n)
        if not chain.diffusion.has_density(n):
            states[n - 1] = law.landing
        predictions.append(chain.diffusion.kept(prediction, law, states[n - 1]))
    return Path(torch.stack(states), torch.stack(predictions[::-1]), None, chain.condition)


@torch.no_grad()
def back_and_forth(chain: Chain, x_0: Shaped[Tensor, "B ..."], level: int, noise: Noise) -> Path:
    """Noise ends up to ``level`` and denoise them again: a path near a given ``x_0``.

    The states above ``level`` come from the forward process, those below from the chain.

    Raises:
        InputError: ``level`` is not between 1 and N.
    """
    if not 1 <= level <= chain.steps:
        raise InputError(f"level={level} must lie between 1 and the chain's {chain.steps} steps")
    above = noised(chain, x_0, chain.steps, noise)
    drawing = _Drawing(ratio=False, planned=True)
    below = _descend(chain, above[level], level, noise, _RatioSum(drawing))
    assert below.predictions is not None
    upper = [_kept(chain, above[n], above[n - 1], n) for n in range(level + 1, chain.steps + 1)]
    predictions = torch.cat([below.predictions, torch.stack(upper)]) if upper else below.predictions
    states = torch.cat([below.states, torch.stack(above[level + 1 :])]) if upper else below.states
    return Path(states, predictions, None, chain.condition)


def _kept(chain: Chain, x: Tensor, landed: Tensor, n: int) -> Tensor:
    """What a path keeps of the prior's prediction of one of its steps."""
    prediction = chain.predict(x, n)
    return chain.diffusion.kept(prediction, chain.law(prediction, x, n), landed)
