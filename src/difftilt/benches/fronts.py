"""A family's front of reward and diversity beside the samplers of other methods."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from difftilt.diagnostics.fronts import front_height
from difftilt.report.tables import Cell, Spread

Row = Mapping[str, Any]


def below_front(rows: Sequence[Row], own: Sequence[str], x: str, y: str) -> list[dict[str, Cell]]:
    """How far every other sampler lies below a family's front, seed by seed.

    Arguments:
        rows: with "problem", "method", "seed" and the two figures, of which more is better.
        own: names of the methods whose samplers make the front of a seed.
        x: figure at whose value the front is read.
        y: figure in which the distance is measured.

    Returns:
        a row for each method and problem of the others: mean and spread over seeds of the front
        less the sampler ("below", positive where the front is above), the least of them ("least")
        and for how many seeds the front does not reach so large an x ("beyond").
    """
    fronts: dict[int, list[tuple[float, float]]] = {}
    others: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["method"] in own:
            fronts.setdefault(row["seed"], []).append((row[x], row[y]))
        else:
            others.setdefault((row["method"], row["problem"]), []).append(row)
    found = []
    for (method, problem), group in others.items():
        heights = [(front_height(fronts.get(row["seed"], []), row[x]), row[y]) for row in group]
        below = [height - value for height, value in heights if height is not None]
        found.append(
            {
                "method": method,
                "problem": problem,
                "below": _cell(below),
                "least": min(below, default=None),
                "beyond": len(heights) - len(below),
            }
        )
    return found


def _cell(values: Sequence[float]) -> Cell:
    if len(values) < 2:
        return values[0] if values else None
    return Spread(statistics.fmean(values), statistics.stdev(values))
