"""Back-propagation through a posterior's path, a step at a time, in constant memory.

A path of a posterior is a function of its noise, ``x_{n-1} = mean_n(x_n) + std_n ε_n`` with
``ε_n = δ_n(x_n) + e^{g_n(x_n)} z_n``. For stored states the noise ``z`` is known, so a step can be
taken again, by itself and with a graph. With ``L = cost · Σ_n KL(q_n ‖ p_n) - β log r(x_0)`` the
derivatives ``a_n = ∂L/∂x_n`` and those by the parameters φ follow from the last step to the first,

    a_0 = -β ∇ log r(x_0),      a_n = (∂x_{n-1}/∂x_n)' a_{n-1} + cost ∇ KL_n(x_n),
    ∂L/∂φ = Σ_n w_n [(∂x_{n-1}/∂φ)' a_{n-1} + cost ∂KL_n/∂φ],       w_n = 1.

* ``pull_back``: exactly this, through the prior's prediction too; it is autograd of the whole path
  with the graph of one step, whatever N. Other weights w truncate it.
  ``Cost(path_derivative=True)`` leaves a term of mean zero out of it.
* ``match_lean_adjoint``: the lean adjoint, which goes through the prior's steps alone, as the
  target of a regression for δ.

A step of zero variance is a map of the prior: adjoints pass through it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difftilt.chains.chain import Chain, Path
from difftilt.errors import InputError
from difftilt.transitions.base import Tilt
from difftilt.transitions.gaussian import Gaussian, GaussianTilt


@dataclass(frozen=True)
class Cost:
    """What each step pays for leaving the prior.

    Arguments:
        weight: of the step's KL.
        path_derivative: pay the sampled λ instead of its mean, the KL, and leave the derivative by
            φ of ``log q_φ`` at the fixed path out of the gradient. It has mean zero, so the
            gradient keeps its mean; where q = π the rest is zero on every path, not on average.
            Costs a second backward pass per step.

    Source: Roeder et al. 2017 (arXiv 1703.09194) for the path derivative.
    """

    weight: float = 1.0
    path_derivative: bool = False


FULL_COST = Cost()


def pull_back(
    chain: Chain,
    path: Path,
    end: Float[Tensor, "B ..."],
    weights: Float[Tensor, " rows"],
    cost: Cost = FULL_COST,
    chunk: int | None = None,
) -> None:
    """Accumulate ``∂L/∂φ`` of paths into the posterior's parameters, summed over the paths.

    Arguments:
        chain: the posterior that drew the paths; kernel and initial tilt are Gaussian.
        path: its paths, detached; their noise was not widened.
        end: ``a_0``, the derivative of L by ``x_0``, (B, *event).
        weights: w of each row's parameter gradient; rows are ``chain.density_steps`` and, last, the
            law of x_N. Beyond the last row that has a weight nothing is visited.
        cost: of each step.
        chunk: paths at once; default all.

    Raises:
        InputError: the kernel is a mixture, whose draws have no derivative.
    """
    steps = chain.density_steps
    last = max((row for row, weight in enumerate(weights.tolist()) if weight != 0), default=-1)
    for part, adjoint in _parts(path, end, chunk):
        bound = _bound(chain, part)
        for n in range(1, _top(chain, last) + 1):
            weight = float(weights[n - steps[0]]) if n >= steps[0] else 0.0
            adjoint = _pulled(bound, part, n, adjoint, (weight, cost))
        if last == len(steps) and chain.initial is not None:
            tilt = chain.initial(part.batch)
            law = chain.gaussian.base(part.states[-1])
            eps = law.standardise(part.states[-1])
            step = _Step(tilt, law, eps, None, _trained(chain.initial), float(weights[-1]))
            step.pull(adjoint, cost)


def match_lean_adjoint(
    chain: Chain,
    path: Path,
    end: Float[Tensor, "B ..."],
    weights: Float[Tensor, " rows"],
    chunk: int | None = None,
) -> Float[Tensor, " B"]:
    """Accumulate the gradient of ``Σ_n w_n |δ_n(x_n) + std_n ã_{n-1}|² / 2``, summed over paths.

    ``ã`` goes back through the prior's steps at the path's own coordinates ε,

        ã_0 = -β ∇ log r(x_0),      ã_n = (∂[mean_n(x_n) + std_n(x_n) ε_n]/∂x_n)' ã_{n-1}.

    For ``h_n(x_n) = E_p[r^β | x_n]``, ``∇ log h_n(x_n) = -E_π[ã_n | x_n]`` at every N, and the mean
    of the exactly tilted kernel is ``δ*_n = std_n E_π[∇ log h_{n-1}(x_{n-1}) | x_n]`` (Stein).

    Arguments:
        chain: the posterior; its kernel is Gaussian, of the prior's variance.
        path: paths, detached.
        end: ``ã_0``, (B, *event).
        weights: of each row, as in ``pull_back``. The law of x_N has its shift fitted alone.
        chunk: paths at once; default all.

    Returns:
        the losses of the paths with all weights 1, detached.

    Raises:
        InputError: the kernel is a mixture, or learns its variance, which this loss does not see.
    """
    losses = []
    for part, adjoint in _parts(path, end, chunk):
        bound, loss = _bound(chain, part), part.states.new_zeros(part.batch)
        for n in range(1, chain.steps + 1):
            x = part.states[n].detach().requires_grad_()
            law, tilt, adjoint_above = _lean_step(bound, part, n, x, adjoint)
            if tilt is not None:
                weight = float(weights[n - chain.density_steps[0]])
                assert chain.kernel is not None
                loss = loss + _matched(tilt.delta, law.std * adjoint, chain.kernel, weight)
            adjoint = adjoint_above
        if chain.initial is not None:
            std = chain.gaussian.base(part.states[-1]).std
            delta = chain.initial(part.batch).delta
            loss = loss + _matched(delta, std * adjoint, chain.initial, float(weights[-1]))
        losses.append(loss)
    return torch.cat(losses)


def _parts(path: Path, end: Tensor, chunk: int | None) -> Iterator[tuple[Path, Tensor]]:
    rows = torch.arange(path.batch, device=path.states.device)
    for part in rows.split(chunk or path.batch):
        yield path.select(part), end[part]


def _bound(chain: Chain, path: Path) -> Chain:
    return chain if path.condition is None else chain.given(path.condition)


def _top(chain: Chain, last: int) -> int:
    """The highest step that has to be visited for the gradient of the rows up to ``last``."""
    if last < 0:
        return 0
    return chain.steps if last == len(chain.density_steps) else chain.density_steps[0] + last


def _pulled(
    chain: Chain, path: Path, n: int, adjoint: Tensor, weighting: tuple[float, Cost]
) -> Tensor:
    """``a_n`` from ``a_{n-1}``; accumulates the step's parameter gradient on the way."""
    weight, cost = weighting
    x = path.states[n].detach().requires_grad_()
    with torch.enable_grad():
        prediction = chain.predict(x, n, gradients=True)
        law = chain.gaussian.reverse(prediction, x, n)
        if not chain.gaussian.has_density(n):
            return torch.autograd.grad((adjoint * law.mean).sum(), x)[0]
        tilt = _gaussian(chain.tilt(x, n, prediction))
        eps = law.standardise(path.states[n - 1])
    assert chain.kernel is not None
    above = _Step(tilt, law, eps, x, _trained(chain.kernel), weight).pull(adjoint, cost)
    assert above is not None
    return above


@dataclass(frozen=True)
class _Step:
    """One step with its graph: to the state ``x`` it leaves (None for x_N) and to parameters."""

    tilt: GaussianTilt
    law: Gaussian
    eps: Tensor
    x: Tensor | None
    parameters: list[nn.Parameter]
    weight: float

    def pull(self, adjoint: Tensor, cost: Cost) -> Tensor | None:
        """The adjoint of x; accumulates the parameters' gradient."""
        with torch.enable_grad():
            eps = _redrawn(self.tilt, self.eps)
            through = (adjoint * self.law.at(eps)).sum()
            if not cost.path_derivative:
                if cost.weight != 0:
                    through = through + cost.weight * self.tilt.divergence().sum()
                return _accumulate(through, self.x, self.parameters, self.weight)
            through = through + cost.weight * self.tilt.log_ratio(eps).sum()
            fixed = cost.weight * self.tilt.log_ratio(self.eps.detach()).sum()
        above = None
        if self.x is not None:
            (above,) = torch.autograd.grad(through, self.x, retain_graph=True)
        _accumulate(through - fixed, None, self.parameters, self.weight)
        return above


def _redrawn(tilt: GaussianTilt, eps: Tensor) -> Tensor:
    """``δ + e^g z`` as a function of the tilt, at the noise z that led to ``eps``."""
    away = eps.detach() - tilt.delta.detach()
    if tilt.log_scale is None:
        return tilt.delta + away
    # e^g z = (e^g / its value) (ε - δ): the noise itself is never worked out.
    return tilt.delta + away * (tilt.log_scale - tilt.log_scale.detach()).exp()


def _accumulate(
    through: Tensor, x: Tensor | None, parameters: list[nn.Parameter], weight: float
) -> Tensor | None:
    """Add ``weight`` times the derivative by the parameters to theirs; returns the one by x."""
    wanted = parameters if weight != 0 else []
    inputs: list[Tensor] = [*wanted] if x is None else [x, *wanted]
    if not inputs:
        return None
    gradients = list(torch.autograd.grad(through, inputs, allow_unused=True))
    above = None if x is None else gradients.pop(0)
    for parameter, gradient in zip(wanted, gradients, strict=True):
        if gradient is None:
            continue
        share = weight * gradient
        parameter.grad = share if parameter.grad is None else parameter.grad.add_(share)
    return above


def _lean_step(
    chain: Chain, path: Path, n: int, x: Tensor, adjoint: Tensor
) -> tuple[Gaussian, GaussianTilt | None, Tensor]:
    """The prior's law, the posterior's tilt (None for a map) and ``ã_n`` from ``ã_{n-1}``."""
    with torch.enable_grad():
        prediction = chain.predict(x, n, gradients=True)
        law = chain.gaussian.reverse(prediction, x, n)
        if not chain.gaussian.has_density(n):
            return law, None, torch.autograd.grad((adjoint * law.mean).sum(), x)[0]
        landed = law.at(law.standardise(path.states[n - 1]).detach())
        (above,) = torch.autograd.grad((adjoint * landed).sum(), x)
        tilt = _gaussian(chain.tilt(x.detach(), n, prediction.detach()))
    if tilt.log_scale is not None:
        raise InputError(
            "adjoint matching fits the mean of each step and this kernel learns its variance too; "
            "use learned_variance=False, or KLControl(), which fits both"
        )
    return Gaussian(law.mean.detach(), law.std.detach()), tilt, above


def _matched(delta: Tensor, pull: Tensor, module: nn.Module, weight: float) -> Tensor:
    with torch.enable_grad():
        loss = 0.5 * (delta + pull.detach()).square().flatten(1).sum(1)
    if weight != 0:
        _accumulate(loss.sum(), None, _trained(module), weight)
    return loss.detach()


def _gaussian(tilt: Tilt | None) -> GaussianTilt:
    if isinstance(tilt, GaussianTilt):
        return tilt
    raise InputError(
        "a draw from a mixture kernel has no derivative, so nothing can be pulled back through it; "
        "use components=1, or an objective of log-ratios (RTB), which takes any kernel"
    )


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]
