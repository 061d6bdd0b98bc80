"""The alarm of a training: what it remembers, and when it speaks (``diagnostics.collapse``).

It reads what every update logs of its own paths, draws nothing and changes no number. It speaks
once; a checkpoint keeps what it has seen.
"""

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from difftilt.diagnostics.collapse import OwnPaths, Weights, collapse
from difftilt.training.plan import Alarm

LEAST = 32
"""Paths of conditions on either side of the comparison: fewer do not tell how even weights are."""


class RewardHacking(UserWarning):
    """The reward rises while the effective sample size or the diversity collapses."""


@dataclass
class Watch:
    """The first and the last updates of a training.

    Arguments:
        plan: the rule.
        consistent: whether the objective aims at the posterior.
    """

    plan: Alarm
    consistent: bool = False
    first: list[OwnPaths] = field(default_factory=list)
    last: deque[OwnPaths] = field(default_factory=deque)
    sentence: str | None = None

    @property
    def stops(self) -> bool:
        """Whether the training is to end here."""
        return self.plan.stop and self.sentence is not None

    def seen(self, row: OwnPaths) -> str | None:
        """Take in an update; the alarm's sentence if it goes off now, else None."""
        known = all(math.isfinite(value) for value in row[:4])
        if self.plan.share == 0 or self.sentence is not None or not known:
            return None
        if not _enough(self.first, self.plan.start):
            self.first.append(row)
            return None
        self.last.append(row)
        while _enough([*self.last][1:], self.plan.window):
            self.last.popleft()
        if not _enough(self.last, self.plan.window):
            return None
        found = collapse(self.first, list(self.last), self.plan.share, self.consistent)
        self.sentence = None if found is None else str(found)
        return self.sentence

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        rows = {name: [list(row) for row in getattr(self, name)] for name in ("first", "last")}
        return {**rows, "sentence": self.sentence}

    def load(self, saved: dict[str, Any]) -> None:
        """Put back what ``to_json`` kept."""
        self.first = [_row(*row) for row in saved["first"]]
        self.last = deque(_row(*row) for row in saved["last"])
        self.sentence = saved["sentence"]


def _enough(rows: Collection[OwnPaths], updates: int) -> bool:
    """Whether rows are as many as wanted, and hold ``LEAST`` paths where they have conditions."""
    paths = sum(each.paths for row in rows for each in row.weights)
    return len(rows) >= updates and (paths == 0 or paths >= LEAST)


def _row(step: int, log_r: float, ess: float, diversity: float, weights: Any = ()) -> OwnPaths:
    """A row as JSON gives it; older ones have no weights."""
    return OwnPaths(step, log_r, ess, diversity, tuple(Weights(*each) for each in weights))
