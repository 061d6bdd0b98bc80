"""What every table of the bench is made of."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from difftilt.ranges import COUNT, check_ranges
from difftilt.recipes.tables.cells import Cells, run_cells
from difftilt.report.comparison import compared, ranked
from difftilt.report.tables import Column


@dataclass(frozen=True)
class Result:
    """What a bench found.

    Arguments:
        rows: one per problem, method and seed; what the JSON file has.
        shown: rows of the terminal's table.
        columns: of the terminal's table.
        legend: what the short titles mean, and in which units.
        pairs: a second table, of methods compared in pairs; empty for none.
        pair_columns: its columns.
    """

    rows: list[dict[str, Any]]
    shown: list[dict[str, Any]]
    columns: list[Column]
    legend: str
    pairs: list[dict[str, Any]] = field(default_factory=list)
    pair_columns: list[Column] = field(default_factory=list)


@dataclass(frozen=True)
class Kept:
    """Where the rows of a table are kept.

    Arguments:
        json_file: write the rows there as JSON, after every cell of the table.
        resume: keep the rows that this file has, and run only the cells that have none yet.
    """

    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    resume: bool = False

    def rows(self, cells: Cells) -> list[dict[str, Any]]:
        """The rows of a bench: kept ones and new ones."""
        return run_cells(cells, self.json_file, self.resume)


@dataclass(frozen=True)
class Compared(Kept):
    """Which methods a table puts beside each other, and at what cost.

    Arguments:
        method: name of a method (may be repeated), or "all"; default one of each kind.
        seeds: seeds of the trainings.
        calls: network calls of each training.
        samples: drawn of each sampler.

    Raises:
        InputError: no calls, or no samples.
    """

    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0,)
    calls: int = 100_000
    samples: int = 256

    def __post_init__(self) -> None:
        check_ranges(self, calls=COUNT, samples=COUNT)

    def chosen(self, defaults: Iterable[str], every: Iterable[str]) -> list[str]:
        """The names that were asked for."""
        named = list(self.method) or list(defaults)
        return list(every) if named == ["all"] else named


@dataclass(frozen=True)
class Table:
    """A table of the bench.

    Arguments:
        run: makes it; its parameters are the command's options.
        summary: one line.
    """

    run: Callable[..., Result]
    summary: str


def seeds_of(rows: list[dict[str, Any]]) -> set[int]:
    """Of all rows, also of those that a file had."""
    return {row["seed"] for row in rows}


def filled(columns: list[Column], rows: list[dict[str, Any]]) -> list[Column]:
    """The columns in which some row has a cell."""
    return [c for c in columns if any(row.get(c.key) is not None for row in rows)]


def smallest_first(
    rows: list[dict[str, Any]], columns: list[Column], best: str, legend: str
) -> Result:
    """A table sorted by a figure of which less is better; of several seeds mean and spread."""
    columns = filled(columns, rows)
    if len(seeds_of(rows)) < 2:
        return Result(rows, ranked(rows, best, False), columns, legend)
    columns = [c for c in columns if c.key != "seed"]
    shown = compared(rows, [c.key for c in columns], best=best, largest=False)
    return Result(rows, shown, columns, legend)
