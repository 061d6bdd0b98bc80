"""The tables that ``difftilt bench`` prints."""

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from difftilt.errors import InputError
from difftilt.objectives.balance import RTB
from difftilt.objectives.pathwise import KLControl
from difftilt.recipes.control_bench import ControlBench
from difftilt.recipes.control_methods import control_methods
from difftilt.recipes.control_parts import Parts
from difftilt.recipes.controls import controls_plan, two_controls
from difftilt.recipes.exact import Effort, check_name
from difftilt.recipes.exact_bench import Bench
from difftilt.recipes.image_methods import ImageBench, image_methods
from difftilt.recipes.infill_methods import TextBench, text_methods
from difftilt.recipes.methods import default_methods
from difftilt.recipes.text_sets import DataName
from difftilt.report.comparison import compared, draw_comparison
from difftilt.report.tables import Column
from difftilt.tasks.exact.two_cells import label_rows

GAUSSIAN_PROBLEMS = (
    "gmm9of25",
    "ring8_alpha3",
    "ring8_alpha10",
    "ring8_alpha20",
    "linear_gaussian_d10",
    "rare_corner",
)
CALLS = 5_000_000
IMAGE_TARGETS = ("bag", "trouser", "footwear")
IMAGE_CALLS = 100_000


@dataclass(frozen=True)
class Result:
    """What a bench found.

    Arguments:
        rows: one per problem, method and seed; what the JSON file has.
        shown: rows of the terminal's table.
        columns: of the terminal's table.
        legend: what the short titles mean, and in which units.
    """

    rows: list[dict[str, Any]]
    shown: list[dict[str, Any]]
    columns: list[Column]
    legend: str


@dataclass(frozen=True)
class Exact:
    """Every method on every problem with a known answer.

    Arguments:
        problem: name of a problem (may be repeated); default six Gaussian ones.
        method: name of a method (may be repeated); default all but the ablations.
        seeds: seeds of the trainings.
        calls: network calls of each training (one state seen by one network is one call).
        budget: seconds of each training instead of calls.
        json_file: write the rows there as JSON.
        figure: draw the comparison there (.png or .svg).
    """

    problem: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    calls: int = CALLS
    budget: float | None = None
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    figure: Path | None = None


def exact(options: Annotated[Exact, tyro.conf.arg(name="")]) -> Result:
    """Every method on every problem with a known answer.

    Args:
        options: what to run, and where to write.
    """
    _check_names(options.problem)
    effort = Effort(options.calls if options.budget is None else None, options.budget)
    chosen, seeds = list(options.method) or default_methods(), list(options.seeds)
    bench = Bench(list(options.problem or GAUSSIAN_PROBLEMS), chosen, seeds, effort)
    rows = _all_rows(bench, options.json_file)
    if options.figure is not None:
        draw_comparison(rows, ("ess", "log_z_error"), options.figure)
    if len(chosen) == 1 or len(seeds) == 1:
        return Result(rows, rows, EXACT_COLUMNS, EXACT_LEGEND)
    shown = compared(rows, [c.key for c in EXACT_COLUMNS if c.key != "seed"], best="ess")
    return Result(rows, shown, COMPARED_COLUMNS, EXACT_LEGEND + COMPARED_LEGEND)


@dataclass(frozen=True)
class Images:
    """The vision table: methods beside rejection truth on the shipped image prior.

    Arguments:
        target: wanted garments, e.g. bag, footwear or even (may be repeated).
        method: name of a method (may be repeated); default all.
        seeds: seeds of the trainings.
        calls: network calls of each training.
        samples: drawn of each sampler.
        json_file: write the rows there as JSON.
        figure: draw the comparison there (.png or .svg).
    """

    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0,)
    calls: int = IMAGE_CALLS
    samples: int = 1024
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    figure: Path | None = None


def images(options: Annotated[Images, tyro.conf.arg(name="")]) -> Result:
    """The vision table: methods beside rejection truth on the shipped image prior.

    Args:
        options: what to run, and where to write.
    """
    chosen, seeds = list(options.method) or list(image_methods()), list(options.seeds)
    targets = list(options.target or IMAGE_TARGETS)
    bench = ImageBench(targets, chosen, seeds, options.calls, options.samples)
    rows = _all_rows(bench, options.json_file)
    if options.figure is not None:
        draw_comparison(rows, ("frechet", "diversity", "ess"), options.figure)
    if len(seeds) == 1:
        return Result(rows, rows, IMAGE_COLUMNS, IMAGE_LEGEND)
    columns = [c for c in IMAGE_COLUMNS if c.key != "seed"]
    shown = compared(rows, [c.key for c in columns], best="frechet", largest=False)
    return Result(rows, shown, columns, IMAGE_LEGEND)


@dataclass(frozen=True)
class Infilling:
    """The missing sentence of held-out stories: samplers beside each other.

    Arguments:
        data: "stories" of the shipped grammar, or "bible", real text.
        method: name of a method (may be repeated); default all.
        seeds: of the trainings.
        calls: network calls of each training.
        contexts: held-out pairs (x, y).
        json_file: write the rows there as JSON.
    """

    data: DataName = "stories"
    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0,)
    calls: int = 200_000
    contexts: int = 48
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None


def infill(options: Annotated[Infilling, tyro.conf.arg(name="")]) -> Result:
    """The text table: the missing sentence of held-out stories.

    Args:
        options: what to run, and where to write.
    """
    chosen, seeds = list(options.method) or list(text_methods()), list(options.seeds)
    bench = TextBench(options.data, chosen, seeds, options.calls, options.contexts)
    rows = _all_rows(bench, options.json_file)
    columns = [c for c in TEXT_COLUMNS if any(row.get(c.key) is not None for row in rows)]
    if len(seeds) == 1:
        return Result(rows, rows, columns, TEXT_LEGEND)
    columns = [c for c in columns if c.key != "seed"]
    shown = compared(rows, [c.key for c in columns], best="log_r")
    return Result(rows, shown, columns, TEXT_LEGEND)


@dataclass(frozen=True)
class OfflineControl:
    """Offline control: methods on the same behaviour and critic, played in the environment.

    Arguments:
        data: name of a data set (may be repeated).
        method: name of a method (may be repeated); default all.
        seeds: of behaviours, critics, trainings and episodes.
        updates: of each training.
        episodes: of each evaluation.
        parts: how behaviours and critics are made.
        json_file: write the rows there as JSON.
    """

    data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = 3000
    episodes: int = 10
    parts: Parts = field(default_factory=Parts)
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None


def control(options: Annotated[OfflineControl, tyro.conf.arg(name="")]) -> Result:
    """Offline control: methods on the same behaviour and critic, played in the environment.

    Args:
        options: what to run, and where to write.
    """
    if not options.data:
        raise InputError("name at least one data set, e.g. --data halfcheetah-medium")
    chosen = list(options.method) or list(control_methods())
    plan = (options.updates, options.episodes, options.parts)
    bench = ControlBench(list(options.data), chosen, list(options.seeds), *plan)
    rows = _all_rows(bench, options.json_file)
    if len(options.seeds) == 1:
        return Result(rows, rows, OFFLINE_COLUMNS, OFFLINE_LEGEND)
    columns = [c for c in OFFLINE_COLUMNS if c.key not in ("seed", "return_error")]
    scored = all(row["score"] is not None for row in rows)
    shown = compared(rows, [c.key for c in columns], best="score" if scored else "return")
    return Result(rows, shown, columns, OFFLINE_LEGEND)


@dataclass(frozen=True)
class Controls:
    """Two independent controls learned from separate labelled sets (CTRL's task), with the answer.

    Arguments:
        seeds: of classifiers and trainings.
        updates: of each training.
        json_file: write the rows there as JSON.
    """

    seeds: tuple[int, ...] = (0,)
    updates: int = 1200
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None


def controls(options: Annotated[Controls, tyro.conf.arg(name="")]) -> Result:
    """Two independent controls learned from separate labelled sets, with the answer.

    Args:
        options: what to run, and where to write.
    """
    objectives = {"rtb": RTB("batch", 4.0), "kl_control": KLControl()}
    rows = []
    for seed in options.seeds:
        for name, objective in objectives.items():
            plan = controls_plan(objective, options.updates, seed=seed)
            _, judged = two_controls(plan)
            rows += [{"method": name, "seed": seed, **asdict(found)} for found in judged]
            print(f"{name} seed {seed}: done", file=sys.stderr, flush=True)
    for row in rows:
        row["pair"] = "{} {}".format(*row["pair"])
    _write(rows, options.json_file)
    return Result(rows, rows, CONTROL_COLUMNS, CONTROL_LEGEND)


@dataclass(frozen=True)
class Labels:
    """What contrastive energy prediction learns of a gap of log h, by enumeration.

    Arguments:
        contrast: numbers of samples compared with each other, K.
        json_file: write the rows there as JSON.
    """

    contrast: tuple[int, ...] = (2, 16)
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None


def labels(options: Annotated[Labels, tyro.conf.arg(name="")]) -> Result:
    """What contrastive energy prediction learns of a gap of log h, by enumeration.

    Args:
        options: what to run, and where to write.
    """
    rows = label_rows(options.contrast)
    _write(rows, options.json_file)
    return Result(rows, rows, LABEL_COLUMNS, LABEL_LEGEND)


def _write(rows: list[dict[str, Any]], path: Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")


def _all_rows(
    bench: Bench | ControlBench | ImageBench | TextBench, json_file: Path | None
) -> list[dict[str, Any]]:
    """The rows of a bench, written down as they come."""
    rows, started = [], time.monotonic()
    for row in bench.rows():
        rows.append(row)
        _told(row, len(rows), len(bench), started)
        _write(rows, json_file)
    return rows


def _told(row: dict[str, Any], done: int, of: int, started: float) -> None:
    left = (time.monotonic() - started) / done * (of - done)
    ess = "" if row["ess"] is None else f": ESS {row['ess']:.3f}"
    what = f"{row['problem']} {row['method']} seed {row['seed']}{ess}"
    print(f"[{done}/{of}, {left / 60:.0f} min left] {what}", file=sys.stderr, flush=True)


def _check_names(chosen: Iterable[str]) -> None:
    """Before the first training: an error in the last name must not cost an hour."""
    for name in chosen:
        check_name(name)


@dataclass(frozen=True)
class Table:
    """A table of the bench.

    Arguments:
        run: makes it; its parameters are the command's options.
        summary: one line.
    """

    run: Callable[..., Result]
    summary: str


EXACT_COLUMNS = [
    Column("problem"),
    Column("method"),
    Column("seed"),
    Column("log_z_error", "log Z err", 2),
    Column("elbo_gap", "ELBO gap", 2),
    Column("eubo_gap", "EUBO gap", 2),
    Column("ess", "ESS"),
    Column("k_hat", "k-hat", 2),
    Column("tv", "TV", 3),
    Column("mode_tv_raw", "TV raw", 2),
    Column("mode_tv_corrected", "TV corr", 2),
    Column("moments_z", "moments z", 2),
    Column("energy_distance", "energy", 2),
    Column("energy_p", "p", 2),
    Column("c2st", "C2ST"),
    Column("network_calls", "net calls"),
    Column("reward_calls", "r calls"),
    Column("seconds", "s", 2),
]
COMPARED_COLUMNS = [
    Column("problem"),
    Column("method"),
    *[c for c in EXACT_COLUMNS[3:] if c.key not in ("k_hat", "energy_p", "c2st", "elbo_gap")],
]
EXACT_LEGEND = """\
log Z err, gaps: nats; ESS: share of the draws; TV: of all completions of tokens, exact; TV raw,
TV corr: of mode weights, raw and importance-weighted;
moments z: largest deviation of the weighted mean and covariance, in standard errors;
energy, p: energy distance and its p-value; C2ST: accuracy of a classifier, 0.5 is best;
calls and s (seconds): of the training alone."""
COMPARED_LEGEND = """
Best ESS first within each problem; mean ± standard deviation over the seeds (log Z err: of its
absolute value)."""

IMAGE_COLUMNS = [
    Column("problem", "target"),
    Column("method"),
    Column("seed"),
    Column("log_r", "mean log r"),
    Column("frechet", "Fréchet"),
    Column("diversity", "diversity"),
    Column("log_z_error", "log Z err", 2),
    Column("ess", "ESS", 2),
    Column("network_calls", "net calls"),
    Column("seconds", "s", 2),
    Column("peak_mb", "peak MB"),
]
IMAGE_LEGEND = """\
mean log r: nats, of the reward's classifier; Fréchet: distance to rejection truth in the features
of the held-out classifier; diversity: mean pairwise distance there, as a share of the truth's;
log Z err: importance estimate minus rejection estimate, nats; ESS: share of the draws;
net calls: of the training alone; s: seconds of training and drawing; peak MB: how far the process
grew."""

TEXT_COLUMNS = [
    Column("problem", "data"),
    Column("method"),
    Column("seed"),
    Column("log_r", "mean log r"),
    Column("log_r_low", "from"),
    Column("log_r_high", "to"),
    Column("coherent"),
    Column("wrong cause"),
    Column("invalid"),
    Column("bleu", "BLEU-4"),
    Column("gleu", "GLEU-4"),
    Column("similarity"),
    Column("distinct", "distinct-2"),
    Column("residual", digits=2),
    Column("ess", "ESS", 2),
    Column("network_calls", "net calls"),
    Column("seconds", "s", 2),
]
TEXT_LEGEND = """\
mean log r: nats, of the reader of the ending, with its 95 % interval over stories; coherent, wrong
cause, invalid: shares, by the grammar; BLEU, GLEU, similarity: to the middle as it was written
(cosine of the prior's own features); distinct-2: share of different word pairs among a story's
samples; residual: standard deviation of log q(z) - log p(z) - β log r, exact over all orders, 0 is
exact; ESS: mean share over stories; net calls and s (seconds): of training and drawing."""

CONTROL_COLUMNS = [
    Column("method"),
    Column("seed"),
    Column("pair", "labels"),
    Column("mode_tv", "TV raw", 2),
    Column("mode_tv_corrected", "TV corr", 2),
    Column("classifier_tv", "TV classifiers", 2),
    Column("log_z_gap", "ELBO - log Z", 2),
]
CONTROL_LEGEND = """\
TV: of mode weights to the closed form, raw, importance-weighted, and of the exact posterior under
the learned classifiers, which no sampler can beat; ELBO - log Z: nats."""
OFFLINE_COLUMNS = [
    Column("problem", "data"),
    Column("method"),
    Column("seed"),
    Column("score"),
    Column("return"),
    Column("return_error", "±"),
    Column("ess", "ESS", 2),
    Column("beta"),
    Column("seconds", "s"),
    Column("action_ms", "ms/action"),
    Column("peak_mb", "peak MB"),
]
OFFLINE_LEGEND = """\
score: 100 (return - random) / (expert - random), by this package's references; return, ±: mean and
standard error over episodes; ESS: share, mean over held-out states; beta: chosen on held-out states
by the critic, never by returns; s: seconds of the training, prior and critic left out; ms/action:
one call in one state; peak MB: how far the process grew. Seeds: mean ± standard deviation."""
LABEL_COLUMNS = [
    Column("beta"),
    Column("a"),
    Column("b"),
    Column("contrast", "K"),
    Column("exact", "exact gap", 4),
    Column("unnormalised", digits=4),
    Column("self_normalised", "self-normalised", 4),
]
LABEL_LEGEND = """\
Two equally likely cells, paid r = e^beta with chance a or b, else 1; the gap of log h between them,
in nats: exact, and at the optimum of each loss over all sets of K."""

TABLES = {
    "exact": Table(exact, "every method on problems with a known answer"),
    "control": Table(control, "offline control: methods on one behaviour and critic, played"),
    "controls": Table(controls, "CTRL's task: two controls learned apart, used together"),
    "labels": Table(labels, "CEP's labels: what each kind learns of a rare reward"),
    "infill": Table(infill, "the text table: the missing sentence of held-out stories"),
    "images": Table(images, "the vision table: classes of garments beside rejection truth"),
}
