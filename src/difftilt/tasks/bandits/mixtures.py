"""Behaviour policies that are Gaussian mixtures in every state, with their exact denoisers.

    μ(a | s) = Σ_k w_k(s) N(a; m_k(s), v I)

The denoiser ``E[a | a_t, s]`` is a closed form, so a prior built on it is exact in every state. A
condition is a state, (B, S), or a state with β behind it, (B, S + 1): the prior reads the state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast

from jaxtyping import Float, Int
from torch import Tensor

from difftilt.denoisers import Denoiser, Level
from difftilt.errors import InputError

States = Float[Tensor, "B S"]
Actions = Float[Tensor, "B d"]


@dataclass(frozen=True)
class ContextualMixture:
    """A mixture whose weights and means depend on a state.

    Arguments:
        state_size: S.
        dimension: d of an action.
        log_weights: ``s (B, S) -> (B, K)``, up to a constant.
        means: ``s (B, S) -> (B, K, d)``.
        std: ``sqrt(v)``, of every component.
    """

    state_size: int
    dimension: int
    log_weights: Callable[[States], Float[Tensor, "B K"]]
    means: Callable[[States], Float[Tensor, "B K d"]]
    std: float

    def logits(self, states: States, actions: Actions) -> Float[Tensor, "B K"]:
        """``log w_k(s) N(a; m_k(s), v I)``, up to a constant."""
        log_weights = self.log_weights(states).log_softmax(1)
        gaps = (actions[:, None] - self.means(states)).square().sum(2)
        return log_weights - gaps / (2 * self.std**2)

    def responsibilities(self, states: States, actions: Actions) -> Float[Tensor, "B K"]:
        """The probability that each component made the action."""
        return self.logits(states, actions).softmax(1)

    def nearest(self, states: States, actions: Actions) -> Int[Tensor, " B"]:
        """The component whose mean is nearest."""
        return (actions[:, None] - self.means(states)).square().sum(2).argmin(1)


class ContextualDenoiser(Denoiser):
    """``E[a | a_t, s]`` of a contextual mixture.

    Arguments:
        mixture: μ.

    Raises:
        InputError: called with no state bound, or with one of another size.
    """

    def __init__(self, mixture: ContextualMixture) -> None:
        super().__init__()
        self.mixture = mixture
        self._log_weights: Tensor | None = None
        self._means: Tensor | None = None

    def given(self, condition: Tensor | None) -> Self:
        bound = type(self)(self.mixture)
        if condition is not None:
            states = self._states(condition)
            bound._log_weights = self.mixture.log_weights(states).log_softmax(1)
            bound._means = self.mixture.means(states)
        return bound

    def _states(self, condition: Tensor) -> States:
        size = self.mixture.state_size
        if condition.ndim != 2 or condition.shape[1] not in (size, size + 1):
            raise InputError(
                f"this prior reads states of shape (B, {size}), with or without β behind them, "
                f"and got a condition of shape {tuple(condition.shape)}"
            )
        return condition[:, :size]

    def forward(self, x_t: Actions, level: Level) -> Actions:
        if self._log_weights is None or self._means is None:
            raise InputError(
                "this prior reads a state; bind one with given(states of shape (1, S))"
            )
        alpha, sigma, variance = level.alpha, level.sigma, self.mixture.std**2
        total = alpha**2 * variance + sigma**2
        gaps = (x_t[:, None] - _over(alpha) * self._means).square().sum(2)
        share = (self._log_weights - gaps / (2 * total)).softmax(1)
        centre = (share[:, :, None] * self._means).sum(1)
        return (alpha * variance / total) * x_t + (sigma**2 / total) * centre


def _over(alpha: float | Tensor) -> float | Tensor:
    """α of each sample beside the components."""
    return cast(Tensor, alpha[:, None]) if isinstance(alpha, Tensor) and alpha.ndim else alpha
