"""Balance on pieces of a path, with a learned ``log h`` between them.

The tilted chain satisfies ``π(x_{n-1} | x_n) h_n(x_n) = p(x_{n-1} | x_n) h_{n-1}(x_{n-1})``, so

    log h_j(x_j) + Σ_{i < n <= j} λ_n - log h_i(x_i) = 0        for all i < j,

with ``h_0 = r^β`` and ``log h = log Z`` before ``x_N`` is drawn. One step gives detailed balance,
the whole path relative trajectory balance, every window path consistency.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.balance import squared
from difftilt.objectives.base import PathObjective, Scores


def levels(scores: Scores) -> Float[Tensor, "levels B"]:
    """``G_k = log h_k + Σ_{n <= k} λ_n``, from the end (``β log r``) to the source: all equal at π.

    Raises:
        InputError: no per-step log-ratios or no ``log h``.
    """
    if scores.steps is None or scores.log_h is None:
        raise InputError("balance on pieces of a path needs scores.steps and scores.log_h")
    flow = torch.cat([scores.log_r[None].to(scores.log_h), scores.log_h])
    gained = torch.cat([torch.zeros_like(scores.steps[:1]), scores.steps.cumsum(0)])
    return flow + gained


@dataclass(frozen=True)
class _Pieces(PathObjective):
    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"steps", "log_h"})


@dataclass(frozen=True)
class DetailedBalance(_Pieces):
    """Detailed balance: the mean over the steps of ``(log h_n + λ_n - log h_{n-1})²``.

    Arguments:
        residual_clip: beyond this many nats the squared residual goes on linearly; None: never.

    Source: Bengio et al. 2023, GFlowNet Foundations, section 3.2 (arXiv 2111.09266).
    """

    residual_clip: float | None = None

    def losses(self, scores: Scores) -> Float[Tensor, " B"]:
        return squared(levels(scores).diff(dim=0), self.residual_clip).mean(0)


@dataclass(frozen=True)
class SubTrajectoryBalance(_Pieces):
    """Sub-trajectory balance: every piece ``i < j``, weighted by ``decay^(j - i)``.

    Arguments:
        decay: in (0, 1]; towards 0 it is detailed balance, 1 weighs all pieces alike.
        residual_clip: beyond this many nats the squared residual goes on linearly; None: never.

    Raises:
        InputError: ``decay`` outside (0, 1].

    Source: Madan et al. 2022, eq. 9 (arXiv 2209.12782).
    """

    decay: float = 0.9
    residual_clip: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise InputError(f"decay must lie in (0, 1], got {self.decay}")

    def losses(self, scores: Scores) -> Float[Tensor, " B"]:
        level = levels(scores)
        count = len(level)
        lower, upper = torch.triu_indices(count, count, offset=1, device=level.device)
        weight = self.decay ** (upper - lower).to(level.dtype)
        pieces = squared(level[upper] - level[lower], self.residual_clip)
        return (weight[:, None] * pieces).sum(0) / weight.sum()


@dataclass(frozen=True)
class PathConsistency(_Pieces):
    """Path consistency learning with the prior as the trusted policy (Trust-PCL).

    In units of a reward ``R = temperature · β log r`` and a value ``V = temperature · log h``, a
    window of d steps has the residual ``V(x_n) - V(x_{n-d}) + temperature Σ λ``: the balance of
    that piece times the temperature. On the whole path it is relative trajectory balance with a
    learned log Z, times ``temperature²``.

    Arguments:
        window: steps of a window d, or None for the whole path.
        temperature: α of the entropy-regularised problem, > 0.

    Raises:
        InputError: ``window`` or ``temperature`` is out of range.

    Source: Nachum et al. 2017, eq. 15 (arXiv 1702.08892); with a reference policy, Trust-PCL
    (arXiv 1707.01891).
    """

    window: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or (self.window is not None and self.window < 1):
            raise InputError(
                "path consistency needs temperature > 0 and a window of at least 1 step, got "
                f"temperature={self.temperature}, window={self.window}"
            )

    def losses(self, scores: Scores) -> Float[Tensor, " B"]:
        level = levels(scores)
        window = len(level) - 1 if self.window is None else min(self.window, len(level) - 1)
        residual = self.temperature * (level[window:] - level[:-window])
        return (residual**2).mean(0)
