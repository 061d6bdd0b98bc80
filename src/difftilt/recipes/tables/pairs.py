"""Samplers of the same stories compared story by story.

Stories differ more than samplers do, so the interval of a difference over stories is far narrower
than those of the two means.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from difftilt.tasks.text_metrics import protocol

Row = dict[str, Any]
BY_STORY = "by_story"


def story_means(scores: dict[str, Tensor]) -> dict[str, list[float]]:
    """Each score of (stories, samples) as one number per story, for a row's ``by_story``."""
    return {name: table.double().mean(1).tolist() for name, table in scores.items()}


def gains(rows: Sequence[Row], method: str, scores: Sequence[str]) -> list[Row]:
    """What a method has over each other method, story by story.

    Arguments:
        rows: of a bench, with ``by_story``; seeds of a method are averaged, problems kept apart.
        method: the one that is compared.
        scores: which scores.

    Returns:
        One row per problem and other method; of each score the mean gain and its 95 % interval
        over stories, as text. Empty if the method has no row, or is the only one.
    """
    found = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        here = [row for row in rows if row["problem"] == problem and BY_STORY in row]
        others = dict.fromkeys(row["method"] for row in here if row["method"] != method)
        if all(row["method"] != method for row in here):
            continue
        for other in others:
            row = {"problem": problem, "method": f"{method} over {other}"}
            found.append(row | {s: _gain(here, (method, other), s) for s in scores})
    return found


def _gain(rows: Sequence[Row], pair: tuple[str, str], score: str) -> str:
    own, other = (_mean_over_seeds(rows, method, score) for method in pair)
    summary = protocol((own - other)[:, None])
    return f"{summary.mean:+.3f} [{summary.low:+.3f}, {summary.high:+.3f}]"


def _mean_over_seeds(rows: Sequence[Row], method: str, score: str) -> Tensor:
    seeds = [row[BY_STORY][score] for row in rows if row["method"] == method]
    return torch.tensor(seeds, dtype=torch.float64).mean(0)
