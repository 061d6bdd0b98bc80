"""The cells of a bench's table, run one by one and kept in a file as they come.

A cell is what its columns name (a problem, a method, a seed); making it gives its rows, or none
where the method does not fit. The file is rewritten whole after every cell, so that what has its
name is complete, and a run that was interrupted is continued with the cells that have no row yet.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftilt.errors import InputError, TrainingError

Cell = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Cells:
    """What a bench runs.

    Arguments:
        names: of each cell, the columns that tell it from the others.
        settings: what every row was made with, e.g. its network calls; plain numbers and words.
        rows_of: makes the rows of one cell; none where its method does not fit.
    """

    names: list[Cell]
    settings: Cell
    rows_of: Callable[[Cell], list[Row]]

    def rows(self) -> Iterator[Row]:
        """The rows of every cell, as each is done."""
        for name in self.names:
            yield from self.made(name)

    def made(self, name: Cell) -> list[Row]:
        """The rows of one cell, with the settings that they were made with."""
        return [{**row, "settings": self.settings} for row in self.rows_of(name)]

    def missing(self, rows: list[Row]) -> list[Cell]:
        """The cells of which there is no row."""
        return [name for name in self.names if not any(name.items() <= row.items() for row in rows)]


def cells_of(**columns: list[Any]) -> list[Cell]:
    """Every combination of the values of some columns; the last one varies fastest."""
    found: list[Cell] = [{}]
    for column, values in columns.items():
        found = [{**cell, column: value} for cell in found for value in values]
    return found


def run_cells(cells: Cells, path: Path | None = None, resume: bool = False) -> list[Row]:
    """All rows: those that the file has, and those of the cells that it lacks.

    A training that diverges is named on stderr and has no row.

    Arguments:
        cells: what to run.
        path: of the JSON file, written after every cell; None for none.
        resume: keep the rows that the file has, also those of cells that were not asked for.

    Raises:
        InputError: there is no file to resume from, it is no list of rows, or its rows were made
            with other settings.
    """
    if resume and path is None:
        raise InputError("--resume continues the rows of a file; name it with --json FILE")
    rows = kept_rows(path, cells.settings) if resume and path is not None else []
    waiting, started = cells.missing(rows), time.monotonic()
    if rows:
        print(f"{len(rows)} rows kept; {len(waiting)} cells to run", file=sys.stderr, flush=True)
    for done, name in enumerate(waiting, 1):
        made, error = _attempted(cells, name)
        rows += made
        if path is not None:
            write_rows(rows, path)
        left = (time.monotonic() - started) / done * (len(waiting) - done)
        _tell(name, made, f"[{done}/{len(waiting)}, {left / 60:.0f} min left]", error)
    return rows


def _attempted(cells: Cells, name: Cell) -> tuple[list[Row], TrainingError | None]:
    """The rows of a cell; a training that diverges has none, and the others go on."""
    try:
        return cells.made(name), None
    except TrainingError as error:
        return [], error


def kept_rows(path: Path, settings: Cell) -> list[Row]:
    """The rows of a bench's file; none if there is no such file yet.

    Raises:
        InputError: it is no list of rows, or they were made with other settings.
    """
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); name another file with --json") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is no list of a bench's rows; name another file with --json")
    for row in rows:
        # Rows of a version that kept no settings are taken at their word.
        if row.get("settings", settings) != settings:
            raise InputError(
                f"{path} has rows made with {_words(row['settings'])}, and this run is asked for "
                f"{_words(settings)}; give the same options, or another file with --json"
            )
    return rows


def write_rows(rows: list[Row], path: Path) -> None:
    """Write rows as JSON, so that the file is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(rows, indent=1) + "\n")
    os.replace(unfinished, path)


def _words(settings: Cell) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "no options"


def _tell(name: Cell, made: list[Row], progress: str, error: TrainingError | None) -> None:
    ess = made[0].get("ess") if len(made) == 1 else None
    what = " ".join(v if isinstance(v, str) else f"{k} {v}" for k, v in name.items())
    found = "" if ess is None else f": ESS {ess:.3f}"
    found = f": no row, {error}" if error is not None else found
    print(f"{progress} {what}{found}", file=sys.stderr, flush=True)
