"""The parts of the page that show draws, tables, curves and settings."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from difftilt.report import pictures, turntable
from difftilt.report.figures import (
    CURVES,
    curve_figure,
    curve_values,
    reward_histogram,
    reward_range,
)
from difftilt.report.markup import Html, join, raw, tag
from difftilt.report.run_folder import RunRecord, Samples, finite, number
from difftilt.report.tables import Cell, Column, format_number, html_table, minus

TITLES = {"prior": "Prior", "posterior": "Posterior", "corrected": "Posterior, corrected"}


def absent(*words: str) -> Html:
    """A sentence in the place of what is missing."""
    return tag("p", *words, class_="absent")


def samples_section(run: RunRecord) -> Html:
    """Draws of the prior beside draws of the posterior."""
    texts = (run.evaluation or {}).get("texts")
    if isinstance(texts, list) and texts:
        return _texts(texts)
    shown = _pictures(run)
    if not run.samples:
        nothing = "No samples were saved yet, so there is nothing to show before and after."
        return shown or absent(nothing)
    sets = run.samples
    if shown and all(samples.kind == "other" for samples in sets.values()):
        return shown
    figures = [_draws_figure(name, samples, sets) for name, samples in sets.items()]
    missing = [TITLES[name].lower() for name in ("prior", "posterior") if name not in sets]
    note = (
        absent(f"No samples of the {' or of the '.join(missing)} were saved.")
        if missing
        else raw("")
    )
    beside = tag("div", *figures, class_=f"side-by-side of-{len(figures)}")
    return join(beside, note, _order_note(sets), shown)


def _pictures(run: RunRecord) -> Html:
    """The pictures that the recipe made."""
    listed = (run.evaluation or {}).get("pictures")
    entries = (
        [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    )
    figures = [_picture(run, each) for each in entries]
    return tag("div", *figures, class_="pictures") if figures else raw("")


def _picture(run: RunRecord, entry: Mapping[str, Any]) -> Html:
    caption, path = str(entry.get("caption") or ""), run.folder / str(entry.get("file"))
    kind = "full" if entry.get("width") == "full" else "half"
    # A run folder comes from anywhere: a name must not lead out of it.
    if path.resolve().parent != (run.folder / "pictures").resolve():
        return tag("figure", absent("A picture lies outside the run folder."), class_=kind)
    try:
        shown = pictures.picture_file(path, caption)
    except OSError:
        shown = absent(f"{path.name} is missing.")
    return tag("figure", shown, tag("figcaption", caption), class_=kind)


def _texts(texts: list[Any]) -> Html:
    """Texts of the samplers side by side, a row for each context."""
    rows = [{str(k): _cell(v) for k, v in row.items()} for row in texts if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    note = "The first draw of each sampler for each context, none chosen."
    table = tag("div", html_table(names, rows), class_="texts")
    return join(table, tag("p", note, class_="note"))


def _order_note(sets: Mapping[str, Samples]) -> Html:
    if all(samples.kind == "other" for samples in sets.values()):
        return raw("")
    notes = ["The first draws of each sampler in the order in which they were made, none chosen."]
    if "corrected" in sets:
        notes.append("A correction resamples, so the same draw may stand there more than once.")
    return tag("p", " ".join(notes), class_="note")


def _draws_figure(name: str, samples: Samples, sets: Mapping[str, Samples]) -> Html:
    title = tag("span", TITLES[name], class_=f"name {name}")
    shown, count = _drawn(name, samples, sets)
    return tag("figure", shown, tag("figcaption", title, " ", count, _reward_note(samples)))


def _drawn(name: str, samples: Samples, sets: Mapping[str, Samples]) -> tuple[Html, str]:
    """The picture, and how much of the sample it shows."""
    if samples.x_0 is None or samples.kind == "other":
        shape = "nothing" if samples.x_0 is None else f"an array of shape {samples.x_0.shape[1:]}"
        return absent(f"Each draw is {shape}: no picture, see the rewards below."), ""
    total = len(samples.x_0)
    if samples.kind == "image":
        images = samples.x_0 if samples.pictures is None else samples.pictures / 127.5 - 1
        count = f"{pictures.images_shown(images):,} of {total:,} draws"
        alternative = f"Grid of images, {count} of the {TITLES[name].lower()}"
        return pictures.image_grid(images, alternative), count
    if samples.kind == "cloud":
        count = f"{min(total, turntable.MOST_CLOUDS):,} of {total:,} draws"
        alternative = f"Turning clouds of points, {count} of the {TITLES[name].lower()}"
        return turntable.turntable(name, samples.x_0, alternative), count
    clouds = [each.x_0 for each in sets.values() if each.x_0 is not None and each.kind == "plane"]
    count = f"{min(total, pictures.MOST_POINTS):,} of {total:,} draws"
    alternative = f"Scatter plot, {count} of the {TITLES[name].lower()}"
    limits = pictures.shared_limits(clouds)
    return pictures.point_cloud(name, samples.x_0, limits, alternative), count


def _reward_note(samples: Samples) -> str:
    if samples.log_r is None or not len(samples.log_r):
        return ""
    return minus(f", median log r {format_number(float(np.median(samples.log_r)))}")


def rewards_section(run: RunRecord) -> Html:
    """Histogram of log r of every sampler."""
    log_r = {name: each.log_r for name, each in run.samples.items() if each.log_r is not None}
    ends = reward_range(log_r)
    if ends is None:
        return absent("No finite log r was saved with the samples, so there is no histogram.")
    caption = " ".join(["log r of the draws, before the power β.", *_outside(log_r, ends[0])])
    return tag("figure", reward_histogram(log_r, ends), tag("figcaption", caption), class_="middle")


def _outside(log_r: Mapping[str, np.ndarray], low: float) -> Iterator[str]:
    for name, values in log_r.items():
        zero = float(np.isneginf(values).mean()) if len(values) else 0.0
        left = float((finite(values) < low).mean()) if len(finite(values)) else 0.0
        if zero:
            yield f"{100 * zero:.3g} % of the {name} draws have reward 0 and are not drawn."
        if left:
            yield f"{100 * left:.3g} % of the {name} draws lie left of the axis."


def evaluation_section(run: RunRecord) -> Html:
    """The table of metrics: prior, posterior, corrected, truth."""
    rows = _evaluation_rows(run.evaluation)
    if run.evaluation is None or not rows:
        return absent("No evaluation was saved with this run.")
    known = ("prior", "prompted", "posterior", "corrected")
    last = ("truth", "note")
    others = dict.fromkeys(k for row in rows for k in row if k not in ("name", *known, *last))
    names = (*known, *others, *last)
    used = [name for name in names if any(row.get(name) not in (None, "") for row in rows)]
    columns = [Column("name", "metric"), *(Column(name) for name in used)]
    notes = run.evaluation.get("notes")
    listed = (
        [tag("p", str(note), class_="note") for note in notes] if isinstance(notes, list) else []
    )
    title = str(run.evaluation.get("title") or "")
    return join(html_table(columns, rows, caption=title), *listed)


def _evaluation_rows(evaluation: Mapping[str, Any] | None) -> list[dict[str, Cell]]:
    rows = None if evaluation is None else evaluation.get("rows")
    if not isinstance(rows, list):
        return []
    return [
        {str(key): _cell(value) for key, value in row.items()}
        for row in rows
        if isinstance(row, dict)
    ]


def _cell(value: Any) -> Cell:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)


def curves_section(run: RunRecord) -> Html:
    """Small multiples of what was logged at every update."""
    if not run.metrics:
        return absent("No update was logged yet, so there are no curves.")
    drawn = [curve_figure(curve, run.metrics) for curve in CURVES if _varies(run, curve.key)]
    figures = [tag("figure", picture) for picture in drawn if picture is not None]
    if not figures:
        return absent("The logged updates hold no finite number, so there are no curves.")
    note = "By update. The thin line is what was logged, the bold one its running mean."
    return join(tag("div", *figures, class_="curves"), tag("p", note, class_="note"))


def _varies(run: RunRecord, key: str) -> bool:
    """β is drawn only where it was annealed."""
    return key != "beta" or len(np.unique(finite(curve_values(run.metrics, key)))) > 1


def flat_items(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """``("optimisation.learning_rate", "0.001")`` for every leaf of nested objects."""
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from flat_items(entry, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def config_section(run: RunRecord) -> Html:
    """Every setting, folded away."""
    settings = (run.config or {}).get("config")
    items = list(flat_items(settings)) if isinstance(settings, Mapping) else []
    if not items:
        return absent("config.json holds no settings.")
    rows: list[dict[str, Cell]] = [{"setting": name, "value": value} for name, value in items]
    summary = tag("summary", f"All {len(rows)} settings")
    return tag("details", summary, html_table(["setting", "value"], rows))


def machine_section(run: RunRecord) -> Html:
    """Where and when it ran, what it took, and the command that repeats it."""
    facts = [(name, text) for name, text in _facts(run) if text]
    pairs = [part for name, text in facts for part in (tag("dt", name), tag("dd", text))]
    listed = (
        tag("dl", *pairs, class_="facts") if pairs else absent("Nothing was noted of the machine.")
    )
    command = (run.config or {}).get("command")
    if not isinstance(command, list) or not command:
        return join(listed, absent("The command was not saved."))
    words = tag("pre", tag("code", shlex.join(str(word) for word in command)), tabindex="0")
    return join(tag("p", "This command repeats the run:"), words, listed)


def _facts(run: RunRecord) -> Iterator[tuple[str, str]]:
    config = run.config or {}
    machine, prior = config.get("machine"), config.get("prior")
    yield "started", str(config.get("started") or "")
    yield "took", duration(number(run.status, "seconds"))
    if isinstance(prior, Mapping):
        yield "prior", str(prior.get("source") or "")
        yield "its fingerprint", str(prior.get("fingerprint") or "")
    yield "difftilt", str(config.get("difftilt") or "")
    if isinstance(machine, Mapping):
        yield from ((str(key).replace("_", " "), str(value)) for key, value in machine.items())


def duration(seconds: float | None) -> str:
    """``48 s``, ``4 min 12 s``, ``1 h 03 min``; empty if unknown."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{format_number(float(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"
