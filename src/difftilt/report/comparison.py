"""Many methods side by side: rows of several seeds made one, sorted, and drawn."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difftilt.errors import InputError, require
from difftilt.report.tables import Cell, Spread

Row = Mapping[str, Any]
ACROSS = 3
"""Problems of a figure beside each other."""
AXES = {
    "ess": "effective sample size",
    "log_z_error": "|error of log Z|, nats",
    "frechet": "Fréchet distance to the truth",
    "diversity": "diversity, share of the truth's",
    "energy": "energy distance to the truth",
    "log_r": "mean log r, nats",
}


def ranked(rows: Sequence[dict[str, Any]], best: str, largest: bool = True) -> list[dict[str, Any]]:
    """The rows themselves, the best first within each problem.

    Arguments:
        rows: with "problem" and numbers (or None, which comes last).
        best: the key by which they are sorted.
        largest: whether the largest comes first.
    """
    order = list(dict.fromkeys(row["problem"] for row in rows))
    sign = -1 if largest else 1

    def rank(row: Row) -> tuple[int, float]:
        value = row[best]
        return order.index(row["problem"]), math.inf if value is None else sign * value

    return sorted(rows, key=rank)


def compared(
    rows: Sequence[Row],
    keys: Sequence[str],
    best: str,
    largest: bool = True,
    errors: bool = False,
) -> list[dict[str, Any]]:
    """One row per problem and method: mean and spread over the seeds, the best first.

    Arguments:
        rows: with "problem", "method" and numbers (or None).
        keys: what the result has of each.
        best: the key by which methods are sorted.
        largest: whether the largest comes first.
        errors: give the standard error of the mean, not the seeds' standard deviation.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["problem"], row["method"]), []).append(row)
    order = list(dict.fromkeys(row["problem"] for row in rows))

    sign = -1 if largest else 1

    def rank(names: tuple[str, str]) -> tuple[int, float]:
        values = _values(groups[names], best)
        return order.index(names[0]), (sign * statistics.fmean(values)) if values else math.inf

    chosen = [groups[names] for names in sorted(groups, key=rank)]
    return [{key: _cell(group, key, errors) for key in keys} for group in chosen]


def _values(rows: Sequence[Row], key: str) -> list[float]:
    signed = [row[key] for row in rows if row.get(key) is not None]
    return [abs(v) for v in signed] if key == "log_z_error" else signed


def _cell(rows: Sequence[Row], key: str, errors: bool) -> Cell:
    if isinstance(rows[0].get(key), str):
        return rows[0][key]
    values = _values(rows, key)
    if not values:
        return None
    mean = statistics.fmean(values)
    if (
        len(values) == 1
        or not all(map(math.isfinite, values))
        or key.endswith("_calls")
        or key in ("seconds", "return_error")
    ):
        return round(mean) if key.endswith("_calls") else mean
    spread = statistics.stdev(values)
    return Spread(mean, spread / math.sqrt(len(values)) if errors else spread)


def draw_comparison(rows: Sequence[Row], keys: Sequence[str], path: Path) -> None:
    """A dot for each seed: methods from top to bottom, a column per key, a panel per problem.

    Methods that have no figure of the first key are left out; RTB's are marked.

    Arguments:
        rows: as of ``compared``.
        keys: two or more of the figures; "log_z_error" is drawn by size on a log axis.
        path: .png, .svg or .pdf.

    Raises:
        InputError: the file's ending names no format.
        MissingPackage: matplotlib is not installed.
    """
    names = list(dict.fromkeys(row["problem"] for row in rows))
    order = {name: _order(rows, name, keys[0]) for name in names}
    across = min(ACROSS, len(names))
    lines = [names[i : i + across] for i in range(0, len(names), across)]
    heights = [1 + max(len(order[name]) for name in line) for line in lines]
    figure = _figure(path, (3.2 * len(keys) * across + 1, 0.24 * sum(heights) + 0.6))
    grid = figure.subplots(len(lines), len(keys) * across, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set_visible(False)
    for i, name in enumerate(names):
        band = grid[i // across, (i % across) * len(keys) :][: len(keys)]
        for axes, key in zip(band, keys, strict=True):
            axes.set_visible(True)
            _dots(axes, [r for r in rows if r["problem"] == name], order[name], key)
            axes.set_xlabel(AXES.get(key, key), fontsize=8)
        band[0].set_title(name, loc="left", fontsize=10)
        for axes in band[1:]:
            axes.set_yticklabels([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def draw_front(rows: Sequence[Row], x: str, y: str, path: Path) -> None:
    """A point for each method and problem, its bars the spread of seeds; a line per method.

    Arguments:
        rows: as of ``compared``; problems differ in what is traded, e.g. in β.
        x: key of the horizontal axis; a method's line follows it.
        y: key of the vertical one.
        path: .png, .svg or .pdf.

    Raises:
        InputError: the file's ending names no format.
        MissingPackage: matplotlib is not installed.
    """
    figure = _figure(path, (6.4, 4.6))
    axes = figure.subplots()
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        points = sorted(
            (_middle(found[x]), _middle(found[y]))
            for found in compared(own, [x, y], x, largest=False)
        )
        across, up = zip(*points, strict=True)
        ours = method.startswith("rtb")
        axes.errorbar(
            [value for value, _ in across],
            [value for value, _ in up],
            xerr=[spread for _, spread in across],
            yerr=[spread for _, spread in up],
            label=method,
            marker="D" if ours else "o",
            lw=2 if ours else 1,
            ms=5,
            capsize=2,
        )
    axes.set_xlabel(AXES.get(x, x), fontsize=9)
    axes.set_ylabel(AXES.get(y, y), fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _middle(cell: Cell) -> tuple[float, float]:
    """Value and spread of a number's cell."""
    if isinstance(cell, Spread):
        return cell.value, cell.spread
    assert isinstance(cell, (int, float))
    return float(cell), 0.0


def _figure(path: Path, size: tuple[float, float]) -> Any:
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"{path} should end in .png, .svg or .pdf")
    require("matplotlib", "report")
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _order(rows: Sequence[Row], problem: str, key: str) -> list[str]:
    own = [r for r in rows if r["problem"] == problem and r.get(key) is not None]
    found = compared(own, ["method"], key, key == "ess")
    return [row["method"] for row in found]


def _dots(axes: Any, rows: Sequence[Row], order: Sequence[str], key: str) -> None:
    for i, method in enumerate(order):
        values = _values([r for r in rows if r["method"] == method], key)
        marker, colour = ("D", "#2b6cb0") if method.startswith("rtb") else ("o", "#dd6b20")
        axes.plot(values, [i] * len(values), marker, ms=4, alpha=0.7, color=colour)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="y", alpha=0.3)
    if key == "log_z_error":
        axes.set_xscale("log")
    elif key == "ess":
        axes.set_xlim(0, 1)
    elif all(value >= 0 for value in _values(rows, key)):
        axes.set_xlim(left=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
