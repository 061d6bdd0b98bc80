"""Reward hacking: the reward rises while the sampler leaves the posterior.

A posterior trades reward for nearness to the prior, so on its way there the weights
``log w = β log r - Λ`` of its own paths become more even. A sampler that only climbs the reward
passes it by, and shows it: its effective sample size falls, or its samples become alike. Compared
are the first and the last ``window`` updates that drew own paths. The alarm is given where

    mean log r has risen by more than 3 standard errors,

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
    """

    start: OwnPaths
    present: OwnPaths
    what: str

    def __str__(self) -> str:
        """One sentence: what rose, what fell, what to do."""
        a, b = self.start, self.present
        return (
            f"reward hacking by update {b.step}: mean log r rose from {a.log_r:.3g} to "
            f"{b.log_r:.3g} while the {self.what} collapsed (effective sample size {a.ess:.2g} to "
            f"{b.ess:.2g}, diversity {a.diversity:.3g} to {b.diversity:.3g}); train with a "
            "divergence to the prior (RTB, or kl=True), or for fewer updates"
        )


def collapse(
    first: Sequence[OwnPaths], last: Sequence[OwnPaths], share: float = 0.25
) -> Collapse | None:
    """The alarm of the module's docstring, or None.

    Arguments:
        first: the first updates of a training.
        last: as many updates, the last ones; none of them among the first.
        share: of the start's value, below which is a collapse, in (0, 1).
    """
    if len(first) < 2 or len(last) < 2:
        return None
    start, present = _means(first), _means(last)
    variances = [statistics.variance(r.log_r for r in rows) / len(rows) for rows in (first, last)]
    if not present.log_r - start.log_r > RISE * math.sqrt(sum(variances)):
        return None
    if present.ess < share * start.ess:
        return Collapse(start, present, "effective sample size")
    alike = present.diversity < share * start.diversity
    if alike and present.ess < UNEVEN * start.ess:
        return Collapse(start, present, "diversity")
    return None


def _means(rows: Sequence[OwnPaths]) -> OwnPaths:
    columns = zip(*(row[1:] for row in rows), strict=True)
    return OwnPaths(rows[-1].step, *(statistics.fmean(column) for column in columns))


def mean_divergence(log_ratio: Float[Tensor, " B"]) -> float:
    """``KL(q ‖ p)`` of paths, nats: the mean log-ratio of own paths; nan where there is none."""
    return float(log_ratio.mean()) if len(log_ratio) else math.nan
