"""The alarm of a training: what it remembers, and when it speaks (``diagnostics.collapse``).

It reads what every update logs of its own paths, draws nothing and changes no number. It speaks
once; a checkpoint keeps what it has seen.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from difftilt.diagnostics.collapse import OwnPaths, collapse
from difftilt.training.plan import Alarm


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
        known = all(math.isfinite(value) for value in row)
        if self.plan.share == 0 or self.sentence is not None or not known:
            return None
        if len(self.first) < self.plan.start:
            self.first.append(row)
            return None
        self.last.append(row)
        if len(self.last) > self.plan.window:
            self.last.popleft()
        if len(self.last) < self.plan.window:
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
        self.first = [OwnPaths(*row) for row in saved["first"]]
        self.last = deque(OwnPaths(*row) for row in saved["last"])
        self.sentence = saved["sentence"]
