"""Objectives that follow the reward's gradient back through the posterior's own path.

They minimise ``E_q[kl · Λ(τ) - β log r(x_0)]``, with paths drawn as functions of their noise. An
objective decides on the weight of the divergence and on the steps whose parameters get a gradient;
the derivative itself is the adjoint's (``difftilt.chains.adjoint``).

| objective | aims at | steps with a gradient |
|---|---|---|
| ``KLControl`` | the posterior | all, or a random suffix, re-weighted: unbiased |
| ``AlignProp`` | large rewards | a random suffix, not re-weighted |
| ``DRaFT`` | large rewards | the last K |
| ``AdjointMatching`` | the posterior | all, as a regression on the lean adjoint |

Each needs a reward with a gradient and a Gaussian kernel (one component).
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.base import Door, Objective


@dataclass(frozen=True)
class PathwiseObjective(Objective):
    """An objective of the third door.

    Rows are the steps with a density, from the one next to ``x_0`` on, and, last, the law of
    ``x_N``, as in ``Scores``.

    Class attributes:
        lean: whether the lean adjoint is matched, instead of the whole one pulled back.
    """

    door: ClassVar[Door] = "pathwise"
    on_policy: ClassVar[bool] = True
    lean: ClassVar[bool] = False

    @property
    def divergence_weight(self) -> float:
        """Weight of ``KL(q ‖ p)`` beside ``-β log r``."""
        return 1.0

    @property
    def drops_score(self) -> bool:
        """Whether the gradient leaves out the term of mean zero (``adjoint.Cost``)."""
        return False

    @abstractmethod
    def weights(self, rows: int, generator: torch.Generator) -> Float[Tensor, " rows"]:
        """Weight of each row's parameter gradient in this update."""


@dataclass(frozen=True)
class KLControl(PathwiseObjective):
    """``min E_q[Λ - β log r]``: the reverse KL to the posterior, up to ``log Z``.

    The divergences of the steps are closed forms, summed (never averaged) over steps and event. Its
    optimum is the posterior where the kernels can be exact, and else the nearest q in KL(q ‖ π),
    which may leave out a mode. With the log-probability of classifiers as its reward it is CTRL.

    Arguments:
        truncation: None, or "random": in each update the gradient goes back through the last K
            steps only, K uniform, and step n's is divided by ``P(K >= n)``: unbiased, on average at
            half the cost, and noisier.
        path_derivative: leave the derivative of ``log q`` at the fixed path out of the gradient: it
            has mean zero, and without it the gradient's noise vanishes where q = π. One more
            backward pass per step.

    Raises:
        InputError: unknown truncation.

    Source: Zhao et al. 2024, CTRL (arXiv 2406.12120), in discrete time; Roeder et al. 2017 (arXiv
    1703.09194) for the path derivative.
    """

    truncation: Literal["random"] | None = None
    path_derivative: bool = False

    def __post_init__(self) -> None:
        if self.truncation not in (None, "random"):
            raise InputError(f"truncation={self.truncation!r}; choose 'random' or None")

    @property
    def drops_score(self) -> bool:
        return self.path_derivative

    def weights(self, rows: int, generator: torch.Generator) -> Float[Tensor, " rows"]:
        if self.truncation is None:
            return torch.ones(rows, dtype=torch.float64)
        return suffix_weights(rows, _uniform(rows, generator), unbiased=True)


@dataclass(frozen=True)
class _RewardSeeking(PathwiseObjective):
    """Maximises the reward, with a weight ``kl`` on the divergence."""

    kl: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        _check_kl(self.kl)

    @property
    def consistent(self) -> bool:
        """No; ``kl=1`` without truncation is the one exception."""
        return False

    @property
    def divergence_weight(self) -> float:
        return self.kl


@dataclass(frozen=True)
class AlignProp(_RewardSeeking):
    """``max E_q[β log r]`` by a gradient that is cut after a random number of steps.

    Not consistent: it maximises the reward, and a biased gradient does so in few steps. With
    ``kl=1`` and ``truncation=None`` it is ``KLControl``.

    Arguments:
        truncation: "random" (the last K steps, K uniform in each update), a fixed K, or None.
        kl: weight of ``KL(q ‖ p)``; 0 as published.

    Raises:
        InputError: unknown truncation, or a negative ``kl``.

    Source: Prabhudesai et al. 2023 (arXiv 2310.03739).
    """

    truncation: Literal["random"] | int | None = "random"

    def __post_init__(self) -> None:
        cut = self.truncation
        if cut not in (None, "random") and not (isinstance(cut, int) and cut >= 1):
            raise InputError(f"truncation={cut!r}; choose 'random', a number of steps or None")
        super().__post_init__()

    def weights(self, rows: int, generator: torch.Generator) -> Float[Tensor, " rows"]:
        if self.truncation is None:
            return torch.ones(rows, dtype=torch.float64)
        cut = self.truncation
        return suffix_weights(rows, _uniform(rows, generator) if cut == "random" else cut)


@dataclass(frozen=True)
class DRaFT(_RewardSeeking):
    """``max E_q[β log r]`` by the gradient of the last K steps alone (DRaFT-K).

    Not consistent: it maximises the reward. With ``kl=1`` and K = N it is ``KLControl``.

    Arguments:
        last: K, counted in steps with a density.
        kl: weight of ``KL(q ‖ p)``; 0 as published.

    Raises:
        InputError: ``last`` below 1, or a negative ``kl``.

    Source: Clark et al. 2023 (arXiv 2309.17400).
    """

    last: int = 1

    def __post_init__(self) -> None:
        if self.last < 1:
            raise InputError(f"last={self.last}; DRaFT needs the gradient of at least 1 step")
        super().__post_init__()

    def weights(self, rows: int, generator: torch.Generator) -> Float[Tensor, " rows"]:
        return suffix_weights(rows, self.last)


@dataclass(frozen=True)
class AdjointMatching(PathwiseObjective):
    """``Σ_n |δ_n(x_n) + std_n ã_{n-1}|² / 2``: a regression on the lean adjoint ã.

    ã starts as ``-β ∇ log r(x_0)`` and is pulled back through the prior's steps alone, so it costs
    no derivative of the sampler by its state. On paths of the target π itself the minimiser is the
    mean of the exactly tilted kernel, at any N (``adjoint.match_lean_adjoint``). On q's own paths
    it is a fixed point: exact for linear and Gaussian problems, and else up to an error of kernels
    with the prior's variance that falls with N. It fits means only: the kernel must not learn its
    variance.

    Consistent on memoryless chains, whose x_N says nothing of x_0: ancestral samplers (DDPM, DDIM
    with η = 1). Elsewhere the law of x_N has to be tilted too (``initial=True`` fits its shift).

    Source: Domingo-Enrich et al. 2024, sections 4 and 5 (arXiv 2409.08861), in discrete time.
    """

    lean: ClassVar[bool] = True

    def weights(self, rows: int, generator: torch.Generator) -> Float[Tensor, " rows"]:
        return torch.ones(rows, dtype=torch.float64)


def suffix_weights(rows: int, last: int, unbiased: bool = False) -> Float[Tensor, " rows"]:
    """Weights 1 for the last K steps of a path and 0 for the others.

    The law of x_N is reached where all steps are.

    Arguments:
        rows: steps with a density, and one for the law of x_N.
        last: K; more than there are means all.
        unbiased: divide each by the probability that a uniform K reaches it,
            ``P(K >= n) = (S - n + 1) / S`` for S steps; the mean over K is then 1 for every row.
    """
    steps = rows - 1
    place = torch.arange(rows, dtype=torch.float64).clamp(max=steps - 1)
    weights = (place < last).double()
    return weights * steps / (steps - place) if unbiased else weights


def _uniform(rows: int, generator: torch.Generator) -> int:
    return int(torch.randint(1, rows, (), generator=generator))


def _check_kl(kl: float) -> None:
    if kl < 0:
        raise InputError(f"kl={kl}; the weight of KL(q ‖ p) must not be negative")
