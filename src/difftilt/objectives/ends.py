"""The second door: objectives that see single noised states of given ends, with their rewards.

A row is a state ``x_n`` of a path, the reward of that path's end, and what the networks say there.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.objectives.base import Door, Objective

States = Literal["chain", "forward"]
Correction = Literal["none", "below", "path"]


@dataclass(frozen=True)
class Landings:
    """Where the step of a row may land.

    Arguments:
        kind: "own" (the row's own ``x_{n-1}``), "prior" (draws of the prior's step, preferred by
            ``log h``), or "near" (the row's own, moved; preferred by β log r of the noisy state).
        count: J.
        radius: largest norm of a move.
    """

    kind: Literal["own", "prior", "near"] = "own"
    count: int = 1
    radius: float = 0.0


@dataclass(frozen=True)
class EndScores:
    """The tensors an objective of the second door may read: R rows; nats.

    Arguments:
        log_r: (R,) ``β log r`` of the row's end.
        log_w: (R,) its log-weight: ``log_r`` less the log-ratio to the prior of the law that drew
            the end (``EndObjective.correction``).
        log_scale: (R,) a log-scale of the weights that is known before the rows are drawn: the
            running log mean of ``exp(log_w)``.
        group: (R,) contrast sets 0 ... G - 1: rows of one set are of different, independent paths.
        log_h: (R,) learned ``log h(x_n)``, with its gradient, or None.
        log_ratio: (J, R) ``λ`` of J landings ``x_{n-1}`` of each row, with its gradient, or None.
        log_preference: (J, R) log-weights of these landings among each other, or None: J = 1.
        divergence: (R,) ``KL(q ‖ p)`` of the law of the row's step, with its gradient, or None.
    """

    log_r: Float[Tensor, " R"]
    log_w: Float[Tensor, " R"]
    log_scale: Float[Tensor, " R"]
    group: Int[Tensor, " R"]
    log_h: Float[Tensor, " R"] | None = None
    log_ratio: Float[Tensor, "J R"] | None = None
    log_preference: Float[Tensor, "J R"] | None = None
    divergence: Float[Tensor, " R"] | None = None

    def log_sum(self, values: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
        """``log Σ exp`` of values over each row's set; -inf where all of a set are."""
        sets = int(self.group.max()) + 1
        top = values.detach().new_full((sets,), -torch.inf)
        top = top.scatter_reduce(0, self.group, values.detach(), "amax")
        top = torch.where(torch.isfinite(top), top, 0.0)
        sums = torch.zeros_like(top).index_add(0, self.group, (values - top[self.group]).exp())
        return (sums.log() + top)[self.group]

    @property
    def set_sizes(self) -> Float[Tensor, " R"]:
        """K, the number of rows in each row's set."""
        return torch.bincount(self.group)[self.group].to(self.log_r)


@dataclass(frozen=True)
class EndObjective(Objective):
    """An objective of the second door.

    Besides ``needs`` ("log_h", "log_ratio", "divergence"), it says what rows it wants.
    """

    door: ClassVar[Door] = "ends"

    @property
    def states_from(self) -> States:
        """Whose states the rows are: the path's own, or the end noised by the forward process."""
        return "forward"

    @property
    def correction(self) -> Correction:
        """What ``log_w`` takes off on-policy paths: nothing, λ from x_n down, or all of Λ."""
        return "none"

    @property
    def landings(self) -> Landings:
        """Where the steps of the rows land."""
        return Landings()

    @property
    def leaps(self) -> bool:
        """Whether a row's step goes to x_0 at once, in one network call (tokens: mean field)."""
        return False

    @property
    def from_noise(self) -> bool:
        """Whether all rows are of step N, where nothing is known of the end."""
        return False

    @property
    def contrasts(self) -> bool:
        """Whether ``log_h`` is known up to a constant only, which its anchor then finds."""
        return "log_h" in self.needs

    @property
    def guides(self) -> bool:
        """Whether the value it trains is the posterior itself, which must be guided by it."""
        return False

    @property
    def contrast_size(self) -> int | None:
        """K of a contrast set; None: the whole batch."""
        return None

    @property
    def within_condition(self) -> bool:
        """Whether a set is the paths of one condition instead."""
        return False

    @property
    def shared_time(self) -> bool:
        """Whether all rows of a contrast set are of one step n."""
        return False

    @abstractmethod
    def losses(self, scores: EndScores) -> Float[Tensor, " R"]:
        """One loss per row."""


def weights(scores: EndScores, self_normalised: bool) -> Float[Tensor, " R"]:
    """``exp(log_w - log_scale)``, or K times its share of its set: both about 1 on average.

    The first is unbiased for any scale that was known before the rows; the second is not.
    """
    log_w = scores.log_w - scores.log_scale
    if not self_normalised:
        return log_w.exp()
    total = scores.log_sum(log_w)
    total = torch.where(torch.isfinite(total), total, 0.0)
    return scores.set_sizes * (log_w - total).exp()
