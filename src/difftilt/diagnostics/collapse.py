"""Reward hacking: the reward rises while the sampler leaves the posterior.

A posterior trades reward for nearness to the prior, so on its way there the weights
``log w = β log r - Λ`` of its own paths become more even. A sampler that only climbs the reward
passes it by, and shows it: its effective sample size falls, or its samples become alike. Compared
are the first few updates that drew own paths, when the sampler is still near the prior, and the
last ``window`` of them. The alarm is given where

    mean log r has risen by more than 3 standard errors (of one variance, pooled),

and one of

    ESS        has fallen below ``share`` times its value at the start,
    diversity  has fallen below ``share`` times its value at the start, and the ESS below half.

Of several conditions c, whose ``log Z`` differ, the m_c paths of each are compared among each
other, those of all compared updates together,

    ESS = Σ_c m_c A_c / Σ_c m_c B_c,    A_c = mean_{i≠j} w_i w_j / w̄_c²,    B_c = mean_i w_i² / w̄_c²

The usual ratio has w̄_c² for the numerator: two paths of a condition would have a share of at least
one half, whatever the sampler is. Of many paths the two agree.

The second half of the last line is what a collapse has that a narrow posterior has not: samples
that are rightly alike keep even weights. A mode that is lost while the weights of the others stay
even is not seen here, but by the certificate, whose prior paths still find it.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RISE = 3.0  # standard errors
UNEVEN = 0.5  # times the effective sample size at the start


class Weights(NamedTuple):
    """The weights of an update's paths of one condition.

    Arguments:
        key: says with which weights of other updates they may be compared.
        paths: how many.
        log_sum: ``log Σ w``.
        log_square: ``log Σ w²``.
    """

    key: str
    paths: int
    log_sum: float
    log_square: float


class OwnPaths(NamedTuple):
    """What one update saw of the posterior's own paths.

    Arguments:
        step: updates done.
        log_r: mean log r, nats.
        ess: effective sample size, as a share.
        diversity: mean pairwise distance of their ends.
        weights: of each condition, from which ``ess`` is found anew; empty without conditions.
    """

    step: int
    log_r: float
    ess: float
    diversity: float
    weights: tuple[Weights, ...] = ()


def weights_of(
    log_w: Float[Tensor, " B"], condition: Tensor | None, beta: float, step: int
) -> tuple[Weights, ...]:
    """What ``OwnPaths`` keeps of the weights of an update's paths.

    Labels are compared across updates of one β, other conditions within their update alone. A
    condition whose paths all have the weight 0 is left out.

    Arguments:
        log_w: log-weights; none is nan.
        condition: (B, ...) of each path, or None.
        beta: of this update.
        step: updates done.
    """
    if condition is None:
        return ()
    is_label = condition.ndim == 1 and not condition.is_floating_point()
    flat = condition.reshape(len(log_w), -1)
    different, group = torch.unique(flat, dim=0, return_inverse=True)
    group, log_w = group.to(log_w.device), log_w.double()
    count = torch.bincount(group)
    top = log_w.new_full(count.shape, -math.inf).scatter_reduce(0, group, log_w, "amax")
    kept = torch.isfinite(top) & ((count > 1) | is_label)
    w = (log_w - top[group]).exp().where(kept[group], 0.0)
    sums = log_w.new_zeros(2, len(count)).index_add(1, group, torch.stack([w, w**2])).log()
    log_sum, log_square = sums[0] + top, sums[1] + 2 * top
    return tuple(
        Weights(
            f"{int(different[k, 0])}, beta {beta:g}" if is_label else f"{k}, update {step}",
            int(count[k]),
            float(log_sum[k]),
            float(log_square[k]),
        )
        for k in kept.nonzero().flatten().tolist()
    )


@dataclass(frozen=True)
class Collapse:
    """Two ends of a training between which the reward rose and the sampler collapsed.

    Arguments:
        start: means of the first updates.
        present: means of the last ones.
        what: "effective sample size" or "diversity".
        consistent: whether the objective aims at the posterior, so that it is not to be blamed.
    """

    start: OwnPaths
    present: OwnPaths
    what: str
    consistent: bool = False

    def __str__(self) -> str:
        """One sentence: what rose, what fell, what to do."""
        a, b = self.start, self.present
        name, advice = "reward hacking", "train with a divergence to the prior (RTB, or kl=True)"
        if self.consistent:
            name, advice = "leaving the posterior", "lower the learning rate"
        return (
            f"{name} by update {b.step}: mean log r rose from {a.log_r:.3g} to {b.log_r:.3g} while "
            f"the {self.what} collapsed (effective sample size {a.ess:.2g} to {b.ess:.2g}, "
            f"diversity {a.diversity:.3g} to {b.diversity:.3g}); {advice}, or train for fewer "
            "updates"
        )


def collapse(
    first: Sequence[OwnPaths],
    last: Sequence[OwnPaths],
    share: float = 0.25,
    consistent: bool = False,
) -> Collapse | None:
    """The alarm of the module's docstring, or None.

    Arguments:
        first: the first updates of a training.
        last: the last ones; none of them among the first.
        share: of the start's value, below which is a collapse, in (0, 1).
        consistent: whether the objective aims at the posterior; it changes the advice alone.
    """
    if len(first) < 2 or len(last) < 2:
        return None
    start, present = _means(first), _means(last)
    if not present.log_r - start.log_r > RISE * _error(first, last):
        return None
    if present.ess < share * start.ess:
        return Collapse(start, present, "effective sample size", consistent)
    alike = present.diversity < share * start.diversity
    if alike and present.ess < UNEVEN * start.ess:
        return Collapse(start, present, "diversity", consistent)
    return None


def _error(first: Sequence[OwnPaths], last: Sequence[OwnPaths]) -> float:
    """Standard error of the rise of mean log r; a few first updates alone have Student's tails."""
    squares = [
        (len(rows) - 1) * statistics.variance(r.log_r for r in rows) for rows in (first, last)
    ]
    pooled = sum(squares) / (len(first) + len(last) - 2)
    return math.sqrt(pooled * (1 / len(first) + 1 / len(last)))


def _means(rows: Sequence[OwnPaths]) -> OwnPaths:
    log_r = statistics.fmean(row.log_r for row in rows)
    ess = statistics.fmean(row.ess for row in rows)
    diversity = statistics.fmean(row.diversity for row in rows)
    if all(row.weights for row in rows):
        ess = effective_share([each for row in rows for each in row.weights])
    return OwnPaths(rows[-1].step, log_r, ess, diversity)


def effective_share(weights: Sequence[Weights]) -> float:
    """The effective sample size of the module's docstring; 1 where no two can be compared."""
    together: dict[str, list[Weights]] = {}
    for each in weights:
        together.setdefault(each.key, []).append(each)
    above = below = 0.0
    for parts in together.values():
        m = sum(part.paths for part in parts)
        if m < 2:
            continue
        square = m * math.exp(
            _log_sum(part.log_square for part in parts)
            - 2 * _log_sum(part.log_sum for part in parts)
        )
        above += m * (m - square) / (m - 1)
        below += m * square
    return above / below if below else 1.0


def _log_sum(logs: Iterable[float]) -> float:
    """``log Σ exp``."""
    values = list(logs)
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def mean_divergence(log_ratio: Float[Tensor, " B"]) -> float:
    """``KL(q ‖ p)`` of paths, nats: the mean log-ratio of own paths; nan where there is none."""
    return float(log_ratio.mean()) if len(log_ratio) else math.nan
