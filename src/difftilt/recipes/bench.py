"""The tables that ``difftilt bench`` prints."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from difftilt.recipes.exact import bench_rows

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


TABLES = {"exact": (exact, "every method on problems with a known answer")}
