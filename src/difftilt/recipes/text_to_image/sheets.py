"""What the text-to-image report shows: sheets of pictures beside their prompts, and a front."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difftilt.errors import require
from difftilt.recipes.pictures import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ZOOM = 2
PLACES = ((5, 4), (5, -4), (-5, 4), (-5, -4))
"""Offsets of a name from its point, points of print; the last is taken if no other is free."""


def prompt_sheet(sheets: Mapping[str, Sequence[Tensor]], prompts: Sequence[str]) -> Picture:
    """A row for each prompt, a group of columns for each sampler.

    Arguments:
        sheets: by name of the sampler, for each prompt some pictures (n, 3, height, width) in
            [0, 1].
        prompts: what the rows are of.
    """
    require("matplotlib", "report")
    from matplotlib.figure import Figure

    count, samplers = len(prompts), list(sheets)
    figure = Figure(figsize=(2.2 * len(samplers) + 1.4, 0.62 * count + 0.4), layout="constrained")
    axes = figure.subplots(count, len(samplers), squeeze=False)
    for row, prompt in enumerate(prompts):
        for column, name in enumerate(samplers):
            panel = axes[row][column]
            panel.imshow(_strip(sheets[name][row]).numpy(), interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            for side in panel.spines.values():
                side.set_visible(False)
            if row == 0:
                panel.set_title(name, fontsize=9)
        axes[row][0].set_ylabel(prompt, rotation=0, ha="right", va="center", fontsize=8)
    caption = f"The first pictures of each prompt by {', '.join(samplers)}; nothing was picked."
    return Picture("png", _bytes(figure, "png"), caption, "full")


def pareto_plot(points: Mapping[str, tuple[float, float]]) -> Picture:
    """Mean log r against diversity, a point for each sampler.

    Arguments:
        points: (diversity, mean log r in nats) by name.
    """
    require("matplotlib", "report")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, (diversity, log_r) in points.items():
        own = name in ("posterior", "truth")
        axes.plot(diversity, log_r, "D" if own else "o", color="#dd6b20" if own else "#3f8fd0")
    axes.set_xlabel("diversity: mean pairwise feature distance within a prompt", fontsize=9)
    axes.set_ylabel("mean log r, nats", fontsize=9)
    axes.margins(0.15)
    _name_points(axes, points)
    caption = (
        "Reward against diversity: up and to the right is better, the truth is what is aimed at."
    )
    return Picture("png", _bytes(figure, "png"), caption)


def _name_points(axes: "Axes", points: Mapping[str, tuple[float, float]]) -> None:
    """Names beside their points, each at the first of four places where no other name is."""
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    dots = axes.transData.transform(list(points.values()))
    taken: list[Any] = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in dots]
    for name, place in points.items():
        for x, y in PLACES:
            sides = {"ha": "left" if x > 0 else "right", "va": "bottom" if y > 0 else "top"}
            offset = {"textcoords": "offset points", "fontsize": 8}
            label = axes.annotate(name, place, (x, y), **sides, **offset)  # type: ignore[arg-type]
            if not label.get_window_extent().count_overlaps(taken) or (x, y) == PLACES[-1]:
                taken.append(label.get_window_extent())
                break
            label.remove()


def _strip(pictures: Tensor) -> Tensor:
    """Pictures side by side, enlarged, as (height, width, 3)."""
    row = torch.cat([*pictures.clamp(0, 1)], dim=2).permute(1, 2, 0)
    return row.repeat_interleave(ZOOM, 0).repeat_interleave(ZOOM, 1)


def _bytes(figure: object, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130)  # type: ignore[attr-defined]
    return buffer.getvalue()
