"""Figures of numbers: the histogram of log r, the bounds of log Z, the curves of a training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from difftilt.report.drawing import INK, MUTED, SERIES, SHADE, canvas
from difftilt.report.markup import Html
from difftilt.report.run_folder import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 48
MOST_DOTS = 600  # of a curve: more than a screen shows
SMOOTH = 40  # a curve's bold line is a running mean over 1/40 of it
DASHES = {"prior": (0, (5, 2)), "posterior": "-", "corrected": (0, (1, 1.5))}


@dataclass(frozen=True)
class Interval:
    """A named number with an interval, in nats; an end that is not known is None."""

    name: str
    value: float
    low: float | None
    high: float | None


def reward_range(log_r: Mapping[str, np.ndarray]) -> tuple[float, float] | None:
    """What the histogram shows: from the least 1 % of any sampler to the largest value.

    Returns:
        ends in nats, or None if no value is finite.
    """
    known = [finite(each) for each in log_r.values() if len(finite(each))]
    if not known:
        return None
    low = min(float(np.quantile(each, 0.01)) for each in known)
    high = max(float(each.max()) for each in known)
    margin = 0.02 * (high - low) + 1e-6 * max(1.0, abs(high))
    return low - margin, high + margin


def reward_histogram(log_r: Mapping[str, np.ndarray], ends: tuple[float, float]) -> Html:
    """Densities of log r, one outline a sampler, on common bins.

    Arguments:
        log_r: (n,) nats, by name of the sampler.
        ends: of the axis, nats.
    """
    description = "Histogram of log r: " + "; ".join(
        f"{name}, median {np.median(each):.3g}" for name, each in log_r.items() if len(each)
    )
    with canvas("rewards", description, 480, 240) as drawing:
        for name, values in log_r.items():
            _outline(drawing.axes, name, finite(values), np.linspace(*ends, BINS + 1))
        drawing.axes.set(xlabel="log r, nats", ylabel="density of draws", xlim=ends, yticks=[])
        drawing.axes.spines["left"].set_visible(False)
        drawing.axes.legend(loc="best", fontsize=12)
    return drawing.svg


def _outline(axes: "Axes", name: str, values: np.ndarray, edges: np.ndarray) -> None:
    counts, _ = np.histogram(values, edges)
    heights = counts / max(1, len(values)) / np.diff(edges)
    line = {"edgecolor": SERIES[name], "linestyle": DASHES[name], "linewidth": 1.8}
    axes.stairs(heights, edges, fill=True, color=SERIES[name], alpha=0.16, linewidth=0)
    axes.stairs(heights, edges, fill=False, label=name, **line)


def interval_figure(rows: Sequence[Interval], quoted: str, description: str) -> Html:
    """Each interval on its own line over one axis in nats; the last digits as text.

    Arguments:
        rows: from top to bottom, at least one.
        quoted: name of the row whose interval is drawn as a band behind all.
        description: alternative text.
    """
    with canvas("bounds", description, 480, 52 + 34 * len(rows)) as drawing:
        axes = drawing.axes
        for height, row in zip(range(len(rows), 0, -1), rows, strict=True):
            ends = [row.value if end is None else end for end in (row.low, row.high)]
            if row.name == quoted:
                axes.axvspan(*ends, color=SHADE, linewidth=0, zorder=0)
            axes.plot(ends, [height] * 2, color=SERIES["posterior"], linewidth=3)
            axes.plot([row.value], [height], "o", color=INK, markersize=6)
        axes.set_yticks(range(len(rows), 0, -1), [row.name for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=12)
        axes.set(xlabel="nats", ylim=(0.4, len(rows) + 0.6))
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        axes.locator_params(axis="x", nbins=6)
    return drawing.svg


@dataclass(frozen=True)
class Curve:
    """A number logged at every update.

    Attributes:
        key: of the log.
        title: what the number is.
        logarithmic: use a logarithmic axis where all values are positive and far apart.
    """

    key: str
    title: str
    logarithmic: bool = False


CURVES = (
    Curve("loss", "Loss", logarithmic=True),
    Curve("log_z", "log Z, nats"),
    Curve("ess", "Effective sample size, share"),
    Curve("log_r", "Mean log r of the batch, nats"),
    Curve("kl", "KL to the prior, nats"),
    Curve("diversity", "Diversity: mean pairwise distance"),
    Curve("gradient_norm", "Norm of the gradient", logarithmic=True),
    Curve("beta", "β"),
)


def curve_values(metrics: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """(updates,) of one logged number, NaN where it was not logged."""
    values = [record.get(key) for record in metrics]
    known = [float(v) if isinstance(v, int | float) else math.nan for v in values]
    return np.asarray(known, dtype=np.float64)


def curve_figure(curve: Curve, metrics: Sequence[Mapping[str, Any]]) -> Html | None:
    """One number by update, every second phase shaded; None if it was never logged.

    The thin line is what was logged, the bold one its running mean.
    """
    steps, values = curve_values(metrics, "step"), curve_values(metrics, curve.key)
    known = np.isfinite(values) & np.isfinite(steps)
    if not known.any():
        return None
    last = values[known][-1]
    description = f"{curve.title} by update; at the end {last:.3g}"
    with canvas(f"curve-{curve.key}", description, 340, 220) as drawing:
        axes = drawing.axes
        _shade_phases(axes, steps, [str(record.get("phase", "")) for record in metrics])
        _line(axes, steps[known], values[known])
        axes.set_title(curve.title, color=INK)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        if curve.logarithmic and _far_apart(values[known]):
            axes.set_yscale("log")
    return drawing.svg


def _far_apart(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() > 30 * values.min())


def _line(axes: "Axes", steps: np.ndarray, values: np.ndarray) -> None:
    rows = np.unique(np.linspace(0, len(steps) - 1, MOST_DOTS).round().astype(int))
    colour = SERIES["prior"]
    if len(rows) < SMOOTH:
        axes.plot(steps, values, color=colour, marker="o", markersize=3)
        return
    axes.plot(steps[rows], values[rows], color=colour, linewidth=0.7, alpha=0.45)
    axes.plot(steps[rows], _running_mean(values)[rows], color=colour)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Centred mean over ``len / SMOOTH`` values, over fewer at the ends."""
    kernel = np.ones(2 * max(1, len(values) // (2 * SMOOTH)) + 1)
    counts = np.convolve(np.ones(len(values)), kernel, "same")
    return np.convolve(values, kernel, "same") / counts


def phase_spans(steps: np.ndarray, phases: Sequence[str]) -> list[tuple[str, float, float]]:
    """Name, first and last step of each run of equal phases."""
    spans: list[tuple[str, float, float]] = []
    for step, phase in zip(steps, phases, strict=True):
        if spans and spans[-1][0] == phase:
            spans[-1] = (phase, spans[-1][1], float(step))
        else:
            spans.append((phase, spans[-1][2] if spans else float(step), float(step)))
    return spans


def _shade_phases(axes: "Axes", steps: np.ndarray, phases: Sequence[str]) -> None:
    """Shade the first, third, … of several phases and name each at the top."""
    spans = phase_spans(steps, phases)
    if len(spans) < 2:
        return
    for index, (name, first, last) in enumerate(spans):
        if index % 2 == 0:
            axes.axvspan(first, last, color=SHADE, linewidth=0, zorder=0)
        place = {"xy": (first, 1), "xycoords": axes.get_xaxis_transform(), "xytext": (3, -2)}
        style = {"textcoords": "offset points", "va": "top", "fontsize": 10, "color": MUTED}
        axes.annotate(name, **place, **style)
    axes.set_xlim(spans[0][1], spans[-1][2])
