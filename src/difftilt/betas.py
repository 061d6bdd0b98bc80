"""One posterior for every β: β as the last number of the condition.

    log r(x, (c, β)) = β log r(x, c),      p(x | (c, β)) = p(x | c)

With such a reward, trained at β = 1 over conditions whose last number varies, a posterior that
reads them is that of ``p(x | c) r(x, c)^β`` for every β at once; at β = 0 it is the prior. No
objective knows: it sees conditions.
"""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from difftilt.denoisers import Denoiser
from difftilt.errors import InputError
from difftilt.rewards.contract import LogReward, as_reward


@final
class BetaReward:
    """``β log r(x, c)``, β the last number of the condition; it keeps the reward's graph.

    Arguments:
        log_reward: ``x -> log r`` or ``(x, c) -> log r``, nats. Where it never exceeds 0, neither
            does this.

    Raises:
        InputError: called without a condition of floats (B, K), K >= 1.
    """

    def __init__(self, log_reward: LogReward) -> None:
        self._log_reward = as_reward(log_reward)
        bound = self._log_reward.bound
        self.bound: float | None = 0.0 if bound is not None and bound <= 0 else None
        self.name = self._log_reward.name

    def __call__(
        self, x_0: Shaped[Tensor, "B ..."], condition: Tensor | None = None
    ) -> Float[Tensor, " B"]:
        rest, beta = split_beta(condition)
        log_r = self._log_reward.differentiable(x_0, rest)
        # 0 · (-inf) is nan: at β = 0 every sample counts as one.
        return torch.where(beta > 0, beta.to(log_r) * log_r, 0.0)


@final
class BetaBlind(Denoiser):
    """A prior that does not read β: it is given the condition without its last number.

    Arguments:
        denoiser: of the condition without β; an unconditional one is told nothing.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_t: Shaped[Tensor, "B ..."], level: object) -> Float[Tensor, "B ..."]:
        return self.denoiser(x_t, level)

    def given(self, condition: Tensor | None) -> Denoiser:
        return self.denoiser.given(None if condition is None else split_beta(condition)[0])


def with_beta(
    draw: Callable[[int, torch.Generator], Float[Tensor, "count K"]], largest_beta: float
) -> Callable[[int, torch.Generator], Float[Tensor, "count more"]]:
    """Conditions for training: those of ``draw``, with β uniform in [0, largest_beta] behind them.

    Raises:
        InputError: ``largest_beta`` is not positive.
    """
    if not largest_beta > 0:
        raise InputError(f"largest_beta must be positive, got {largest_beta}")

    def conditions(count: int, generator: torch.Generator) -> Tensor:
        beta = largest_beta * torch.rand(count, 1, generator=generator)
        return joined_beta(draw(count, generator), beta)

    return conditions


def joined_beta(
    condition: Float[Tensor, "B K"], beta: float | Float[Tensor, "B 1"]
) -> Float[Tensor, "B more"]:
    """Conditions with β behind them."""
    column = torch.as_tensor(beta).to(condition).expand(len(condition), 1)
    return torch.cat([condition, column], 1)


def split_beta(condition: Tensor | None) -> tuple[Tensor | None, Float[Tensor, " B"]]:
    """The rest of a condition (None where β is all there is) and its β.

    Raises:
        InputError: no condition of floats, (B, K).
    """
    if condition is None or condition.ndim != 2 or not condition.is_floating_point():
        found = None if condition is None else (condition.dtype, tuple(condition.shape))
        raise InputError(
            f"β is the last number of a condition of floats, (B, K), got {found}; bind one with "
            "given(...)"
        )
    rest = condition[:, :-1] if condition.shape[1] > 1 else None
    return rest, condition[:, -1]
