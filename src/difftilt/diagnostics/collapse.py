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

The second half of the last line is what a collapse has that a narrow posterior has not: samples
that are rightly alike keep even weights. A mode that is lost while the weights of the others stay
even is not seen here, but by the certificate, whose prior paths still find it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

RISE = 3.0  # standard errors
UNEVEN = 0.5  # times the effective sample size at the start


class OwnPaths(NamedTuple):
    """What one update saw of the posterior's own paths.

    Arguments:
        step: updates done.
        log_r: mean log r, nats.
        ess: effective sample size, as a share.
        diversity: mean pairwise distance of their ends.
    """

    step: int
    log_r: float
    ess: float
    diversity: float


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
    columns = zip(*(row[1:] for row in rows), strict=True)
    return OwnPaths(rows[-1].step, *(statistics.fmean(column) for column in columns))


def mean_divergence(log_ratio: Float[Tensor, " B"]) -> float:
    """``KL(q ‖ p)`` of paths, nats: the mean log-ratio of own paths; nan where there is none."""
    return float(log_ratio.mean()) if len(log_ratio) else math.nan
