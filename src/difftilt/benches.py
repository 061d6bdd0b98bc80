"""The tables that ``difftilt bench`` prints."""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from difftilt.errors import InputError
from difftilt.recipes.exact import bench_rows
from difftilt.report.tables import Column
from difftilt.tasks.exact import problems

HEADLINE = ("gmm9of25", "ring8_alpha10", "rare_corner", "wells_d8", "linear_gaussian_d10")


def exact(
    problem: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    method: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    budget: float = 60.0,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> list[dict[str, Any]]:
    """Every method on every problem with a known answer.

    Args:
        problem: name of a problem (may be repeated); default a short list.
        method: name of a method (may be repeated); default "rtb" and "importance".
        seeds: seeds of the trainings.
        budget: seconds of training of each.
        json_file: write the rows there as JSON.
    """
    _check_names(problem)
    rows = []
    for row in bench_rows(
        list(problem or HEADLINE), list(method or ("rtb", "importance")), list(seeds), budget
    ):
        rows.append(row)
        print(f"{row['problem']} {row['method']} seed {row['seed']}: done", file=sys.stderr)
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def _check_names(chosen: Iterable[str]) -> None:
    """Before the first training: an error in the last name must not cost an hour."""
    known = problems()
    for name in chosen:
        if name not in known:
            raise InputError(f"unknown problem {name!r}; choose one of {', '.join(known)}")


@dataclass(frozen=True)
class Table:
    """A table of the bench.

    Arguments:
        rows: makes its rows; its parameters are the command's options.
        summary: one line.
        columns: what the terminal shows of a row; JSON has all of it.
        legend: what the short titles mean, and in which units.
    """

    rows: Callable[..., list[dict[str, Any]]]
    summary: str
    columns: list[Column]
    legend: str


EXACT_COLUMNS = [
    Column("problem"),
    Column("method"),
    Column("seed"),
    Column("log_z_error", "log Z err", 2),
    Column("elbo_gap", "ELBO gap", 2),
    Column("eubo_gap", "EUBO gap", 2),
    Column("ess", "ESS"),
    Column("k_hat", "k-hat", 2),
    Column("mode_tv_raw", "TV raw", 2),
    Column("mode_tv_corrected", "TV corr", 2),
    Column("energy_distance", "energy", 2),
    Column("energy_p", "p", 2),
    Column("c2st", "C2ST"),
    Column("network_calls", "net calls"),
    Column("reward_calls", "r calls"),
    Column("seconds", "s", 2),
]
EXACT_LEGEND = """\
log Z err, gaps: nats; ESS: share of the draws; TV: of mode weights, raw and importance-weighted;
energy, p: energy distance and its p-value; C2ST: accuracy of a classifier, 0.5 is best;
calls and s (seconds): of the training alone."""

TABLES = {
    "exact": Table(
        exact, "every method on problems with a known answer", EXACT_COLUMNS, EXACT_LEGEND
    )
}
