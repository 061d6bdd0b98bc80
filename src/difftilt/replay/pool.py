"""A pool of weighted paths that covers the posterior.

Paths are drawn from the mixture ``(1 - a) q + a p`` of the present posterior and the prior, so that
their importance weights ``r^β / ((1 - a) q/p + a)`` are bounded by ``max r^β / a`` and no mode of
the prior can be forgotten. While the weights are too uneven the reward is tempered: the exponent γ
is the largest in (0, 1] at which the pool's effective sample size reaches a wanted share.

Paths of several conditions are weighed within their condition: Z(c) may differ by any factor, and
an amortised posterior wants every condition as often as it was asked for.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Path
from difftilt.errors import RewardError
from difftilt.smc.resampling import systematic


def within_groups(
    log_w: Float[Tensor, " K"], group: Int[Tensor, " K"] | None
) -> Float[Tensor, " K"]:
    """Log-weights scaled so that each group's total is its number of paths.

    A group whose weights are all zero keeps them.

    Arguments:
        log_w: log-weights; -inf for zero.
        group: (K,) numbers from 0, or None: all are one group, which is left as it is.
    """
    if group is None:
        return log_w
    counts = torch.bincount(group)
    highest = log_w.new_full((len(counts),), -math.inf)
    highest = highest.scatter_reduce(0, group, log_w, "amax").nan_to_num(neginf=0.0)
    total = log_w.new_zeros(len(counts)).index_add(0, group, (log_w - highest[group]).exp())
    scale = torch.where(total > 0, counts.log() - highest - total.log(), 0.0)
    return log_w + scale[group]


def tempered_exponent(
    log_r: Float[Tensor, " K"],
    log_proposal: Float[Tensor, " K"],
    share: float,
    group: Int[Tensor, " K"] | None = None,
) -> float:
    """Largest γ in (0, 1] with effective sample size of ``γ log r - log_proposal`` >= ``share``.

    Paths of zero reward have no weight at any γ > 0 and do not count. Where no γ reaches the share,
    because the proposal's own densities are too uneven, the smallest γ that is tried is returned.

    Arguments:
        log_r: ``β log r``, nats.
        log_proposal: log of the proposal's density relative to the prior.
        share: wanted effective sample size, as a fraction of the paths of non-zero reward.
        group: (K,) the condition of each path, as a number from 0; None for a single one.
    """
    possible = torch.isfinite(log_r)
    if not bool(possible.any()):
        raise RewardError(
            f"log r = -inf on all {len(log_r)} paths of the pool, so there is nothing to learn "
            "from; soften the reward, give it a floor, or raise pool_capacity"
        )
    log_r, log_proposal = log_r[possible], log_proposal[possible]
    group = None if group is None else group[possible]

    def effective(gamma: float) -> float:
        log_w = within_groups(gamma * log_r - log_proposal, group)
        log_w = log_w - log_w.max()
        return float(log_w.exp().sum() ** 2 / (2 * log_w).exp().sum() / len(log_w))

    if effective(1.0) >= share:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective(middle) >= share else (low, middle)
    return high


class PathPool:
    """A ring buffer of paths with their rewards and proposal densities.

    Arguments:
        capacity: number of paths kept; the oldest leave first.
        memory: bytes that their states and predictions may take; long paths of many dimensions
            lower the capacity, to one path at least. None for no limit.
    """

    def __init__(self, capacity: int, memory: int | None = None) -> None:
        self.capacity = capacity
        self.memory = memory
        self.path: Path | None = None
        self.log_r = torch.zeros(0)
        self.log_proposal = torch.zeros(0)
        self.oldest = 0
        self._groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.log_r)

    def add(
        self,
        path: Path,
        log_r: Float[Tensor, " B"],
        log_ratio: Float[Tensor, " B"],
        prior_share: float,
    ) -> None:
        """Add paths drawn from ``(1 - prior_share) q + prior_share p`` with ``Λ = log q/p``."""
        log_prior = math.log(prior_share)
        if prior_share < 1:
            log_own = log_ratio + math.log1p(-prior_share)
            log_proposal = torch.logaddexp(log_own, torch.full_like(log_own, log_prior))
        else:
            log_proposal = torch.zeros_like(log_r)
        # A reward in float64 on float32 paths, for example.
        log_proposal = log_proposal.to(log_r)
        bare = Path(path.states, path.predictions, None, path.condition)
        self._groups = None
        self._limit(bare)
        room = min(len(log_r), self.capacity - len(self))
        if room:
            self._append(bare.select(torch.arange(room)), log_r[:room], log_proposal[:room])
        if room < len(log_r):
            kept = torch.arange(room, len(log_r))[-self.capacity :]
            self._overwrite(bare.select(kept), log_r[kept], log_proposal[kept])

    def _limit(self, path: Path) -> None:
        """Lower the capacity to what the memory holds of such paths."""
        if self.memory is None:
            return
        kept = [path.states] if path.predictions is None else [path.states, path.predictions]
        each = sum(tensor.nbytes for tensor in kept) // path.batch
        self.capacity = max(1, min(self.capacity, self.memory // each))

    def _append(self, path: Path, log_r: Tensor, log_proposal: Tensor) -> None:
        self.path = path if self.path is None else Path.joined([self.path, path])
        self.log_r = torch.cat([self.log_r, log_r])
        self.log_proposal = torch.cat([self.log_proposal, log_proposal])

    def _overwrite(self, path: Path, log_r: Tensor, log_proposal: Tensor) -> None:
        """Put paths in the places of the oldest ones, without moving the others."""
        assert self.path is not None
        rows = (self.oldest + torch.arange(len(log_r))) % self.capacity
        self.oldest = (self.oldest + len(log_r)) % self.capacity
        self.path.states[:, rows] = path.states
        if self.path.predictions is not None and path.predictions is not None:
            self.path.predictions[:, rows] = path.predictions
        if self.path.condition is not None and path.condition is not None:
            self.path.condition[rows] = path.condition
        self.log_r[rows], self.log_proposal[rows] = log_r, log_proposal

    @property
    def hopeful(self) -> bool:
        """Whether some path has a reward above zero."""
        return bool(torch.isfinite(self.log_r).any())

    def exponent(self, beta: float, share: float) -> float:
        """The exponent γ at which the pool's effective sample size is at least ``share``."""
        return tempered_exponent(beta * self.log_r, self.log_proposal, share, self.groups)

    @property
    def groups(self) -> Int[Tensor, " K"] | None:
        """The condition of each path as a number from 0, or None without conditions."""
        if self._groups is None and self.path is not None and self.path.condition is not None:
            self._groups = torch.unique(self.path.condition, dim=0, return_inverse=True)[1]
        return self._groups

    def draw(
        self, count: int, beta: float, exponent: float, generator: torch.Generator | None
    ) -> tuple[Path, Float[Tensor, " B"]]:
        """``count`` paths resampled by ``γ β log r - log proposal``, with their ``log r``."""
        assert self.path is not None
        log_w = within_groups(exponent * beta * self.log_r - self.log_proposal, self.groups)
        rows = systematic(log_w, count, generator)
        return self.path.select(rows), self.log_r[rows]

    def state(self) -> dict[str, Tensor]:
        """The pool as tensors."""
        if self.path is None:
            return {}
        state = {"log_r": self.log_r, "log_proposal": self.log_proposal}
        state["states"] = self.path.states
        state["oldest"] = torch.tensor(self.oldest)
        if self.path.predictions is not None:
            state["predictions"] = self.path.predictions
        if self.path.condition is not None:
            state["condition"] = self.path.condition
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over the tensors of ``state()``."""
        if not state:
            return
        self.log_r, self.log_proposal = state["log_r"].clone(), state["log_proposal"].clone()
        self._groups = None
        self.oldest = int(state["oldest"])
        self.path = Path(state["states"], state.get("predictions"), None, state.get("condition"))
        self._limit(self.path)
