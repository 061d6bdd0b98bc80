"""Rewards that read text: the contract of ``difftilt.rewards.wrappers`` over strings.

A ``TextReward`` scores *passages* (``difftilt.text.layouts``). Bound to the canvases of an
infilling it is a reward like any other, ``(x_0, condition) -> log r (B,)``; ``Infilling`` binds it.
Each passage of a batch is scored once, however often it occurs, so that a reward must be a function
of the text. ``StringReward`` makes one of any function of strings; those with a network inside are
in ``difftilt.adapters.text_rewards``.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.errors import InputError, RewardError
from difftilt.rewards.contract import CheckedReward, as_reward, reward_bound
from difftilt.rewards.wrappers import RewardOfRewards
from difftilt.text.canvases import Canvases
from difftilt.text.layouts import Passage

Reads = Literal["text", "middle"]
"""What of a passage a reward reads: the whole text, or what was filled in."""


class TextReward(ABC):
    """A reward of passages.

    Attributes:
        bound: upper bound of log r in nats, or None.
        name: what errors call it.
    """

    bound: float | None = None
    name = "text reward"
    canvases: Canvases | None = None

    @abstractmethod
    def judged(self, passages: list[Passage]) -> Float[Tensor, " U"]:
        """log r of passages, all different, in nats."""

    def on(self, canvases: Canvases) -> Self:
        """This reward, reading the ends of chains on the given canvases."""
        bound = copy.copy(self)
        bound.canvases = canvases
        return bound

    def __call__(
        self, x_0: Int[Tensor, "B L"], condition: Int[Tensor, "B 2 L"] | None = None
    ) -> Float[Tensor, " B"]:
        """log r of completed canvases.

        Raises:
            InputError: it was not bound to canvases, or there is no condition.
            RewardError: it scored another number of passages than it was given.
        """
        if self.canvases is None or condition is None:
            raise InputError(
                f"{self.name} reads text, so it needs to know the canvases: give it to "
                "TextPrior.infill, alone or in a difftilt.Summed with others, or bind it with "
                "on(canvases), and call it with a condition"
            )
        passages = self.canvases.passages(x_0, condition)
        rows = {passage: row for row, passage in enumerate(dict.fromkeys(passages))}
        log_r = self.judged(list(rows))
        if log_r.shape != (len(rows),):
            raise RewardError(
                f"{self.name} returned shape {tuple(log_r.shape)} for {len(rows)} texts; return "
                "one log r per text"
            )
        return log_r[[rows[passage] for passage in passages]].to(x_0.device)


@final
class StringReward(TextReward):
    """A reward that is any function of strings.

    Arguments:
        function: ``list[str] -> log r``, one number in nats per string; ``-inf`` where r = 0. It
            may be ``difftilt.isolated``.
        reads: the whole "text", or the "middle" alone: from the first slot to the last.
        bound: upper bound of log r if there is one, checked on every call; default the function's.
    """

    def __init__(
        self,
        function: Callable[[list[str]], Any],
        reads: Reads = "text",
        bound: float | None = None,
    ) -> None:
        self.function = function
        self.reads: Reads = reads
        self.bound = reward_bound(function) if bound is None else bound
        names = (getattr(function, attribute, None) for attribute in ("name", "__name__"))
        self.name = next((name for name in names if name), type(function).__name__)

    def judged(self, passages: list[Passage]) -> Float[Tensor, " U"]:
        return torch.as_tensor(self.function(read(passages, self.reads)), dtype=torch.float64)


def bound_to(log_reward: Callable[..., Any], canvases: Canvases) -> CheckedReward:
    """A reward of an infilling as one of the ends of chains.

    Arguments:
        log_reward: a ``TextReward``, a function of ``list[str]``, a ``CheckedReward`` of (x_0,
            canvases), or a sum (or the like, ``RewardOfRewards``) of such.
        canvases: that it is to read.
    """
    if isinstance(log_reward, CheckedReward):
        return log_reward
    if isinstance(log_reward, RewardOfRewards):
        return as_reward(log_reward.over(lambda reward: bound_to(reward, canvases)))
    reward = log_reward if isinstance(log_reward, TextReward) else StringReward(log_reward)
    return as_reward(reward.on(canvases))


def read(passages: Sequence[Passage], reads: Reads) -> list[str]:
    """What a reward reads of passages."""
    return [p.text if reads == "text" else p.middle.strip() for p in passages]


@final
class WellFormed:
    """A reward that forbids fillings with pads inside, or too short ones.

    Arguments:
        log_reward: of the others.
        canvases: that know the slots.
    """

    def __init__(self, log_reward: CheckedReward, canvases: Canvases) -> None:
        self.log_reward = log_reward
        self.canvases = canvases
        self.bound = log_reward.bound
        self.name = log_reward.name

    def __call__(
        self, x_0: Int[Tensor, "B L"], condition: Int[Tensor, "B 2 L"]
    ) -> Float[Tensor, " B"]:
        fine = self.canvases.well_formed(x_0, condition)
        log_r = torch.full((len(x_0),), -math.inf, dtype=torch.float64, device=x_0.device)
        if bool(fine.any()):
            log_r[fine] = self.log_reward(x_0[fine], condition[fine]).double()
        return log_r
