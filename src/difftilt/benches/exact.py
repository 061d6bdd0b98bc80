"""Tables on problems with a known answer: every method, two controls, labels."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from difftilt.benches.base import Kept, Result, filled, seeds_of
from difftilt.ranges import COUNT, POSITIVE, check_ranges
from difftilt.recipes.exact.bench import Bench
from difftilt.recipes.exact.controls import control_objectives, controls_plan, two_controls
from difftilt.recipes.exact.methods import default_methods
from difftilt.recipes.exact.recipe import Effort, check_name
from difftilt.recipes.tables.cells import Cell, Cells, cells_of
from difftilt.report.comparison import compared, draw_comparison, ranked
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


LABEL_COLUMNS = [
    Column("beta"),
    Column("a"),
    Column("b"),
    Column("contrast", "K"),
    Column("exact", "exact gap", 4),
    Column("unnormalised", "optimum", 4),
    Column("learned", "learned", 4),
    Column("self_normalised", "paper's optimum", 4),
    Column("learned_self_normalised", "paper's learned", 4),
]


LABEL_LEGEND = """\
Two equally likely cells, paid r = e^beta with chance a or b, else 1; the gap of log h between them,
in nats: exact; with un-normalised labels, and with the paper's, normalised within a set: at the
optimum of the loss over all sets of K, and as learned from draws of sets."""


@dataclass(frozen=True)
class Exact(Kept):
    """Every method on every problem with a known answer.

    Arguments:
        problem: name of a problem (may be repeated); default six Gaussian ones.
        method: name of a method (may be repeated); default all but the ablations.
        seeds: seeds of the trainings.
        calls: network calls of each training (one state seen by one network is one call).
        budget: seconds of each training instead of calls.
        figure: draw the comparison there (.png or .svg).

    Raises:
        InputError: no calls, or no seconds.
    """

    problem: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    calls: int = CALLS
    budget: float | None = None
    figure: Path | None = None

    def __post_init__(self) -> None:
        check_ranges(self, calls=COUNT, budget=POSITIVE.or_none)


def exact(options: Annotated[Exact, tyro.conf.arg(name="")]) -> Result:
    """Every method on every problem with a known answer.

    Args:
        options: what to run, and where to write.
    """
    _check_names(options.problem)
    effort = Effort(options.calls if options.budget is None else None, options.budget)
    chosen, seeds = list(options.method) or default_methods(), list(options.seeds)
    bench = Bench(list(options.problem or GAUSSIAN_PROBLEMS), chosen, seeds, effort)
    rows = options.rows(bench.cells())
    if options.figure is not None:
        draw_comparison(rows, ("ess", "log_z_error"), options.figure)
    if len(seeds_of(rows)) < 2 or len({row["method"] for row in rows}) < 2:
        return Result(rows, ranked(rows, "ess"), filled(EXACT_COLUMNS, rows), EXACT_LEGEND)
    shown = compared(rows, [c.key for c in EXACT_COLUMNS if c.key != "seed"], best="ess")
    columns = filled(COMPARED_COLUMNS, rows)
    return Result(rows, shown, columns, EXACT_LEGEND + COMPARED_LEGEND)


@dataclass(frozen=True)
class Controls(Kept):
    """Two independent controls learned from separate labelled sets (CTRL's task), with the answer.

    Arguments:
        seeds: of classifiers and trainings.
        updates: of each training.
    """

    seeds: tuple[int, ...] = (0,)
    updates: int = 1200


def controls(options: Annotated[Controls, tyro.conf.arg(name="")]) -> Result:
    """Two independent controls learned from separate labelled sets, with the answer.

    Args:
        options: what to run, and where to write.
    """
    objectives = control_objectives()

    def rows_of(cell: Cell) -> list[dict[str, Any]]:
        plan = controls_plan(objectives[cell["method"]], options.updates, seed=cell["seed"])
        judged = [asdict(found) for found in two_controls(plan)[1]]
        return [{**cell, **row, "pair": "{} {}".format(*row["pair"])} for row in judged]

    names = cells_of(seed=list(options.seeds), method=list(objectives))
    rows = options.rows(Cells(names, {"updates": options.updates}, rows_of))
    return Result(rows, rows, CONTROL_COLUMNS, CONTROL_LEGEND)


@dataclass(frozen=True)
class Labels(Kept):
    """What contrastive energy prediction learns of a gap of log h: by enumeration, and from draws.

    Arguments:
        contrast: numbers of samples compared with each other, K.
        seed: of the draws.
    """

    contrast: tuple[int, ...] = (2, 16)
    seed: int = 0


def labels(options: Annotated[Labels, tyro.conf.arg(name="")]) -> Result:
    """What contrastive energy prediction learns of a gap of log h: by enumeration, and from draws.

    Args:
        options: what to run, and where to write.
    """
    cells, seed = cells_of(contrast=list(options.contrast)), options.seed
    rows = options.rows(
        Cells(cells, {"seed": seed}, lambda cell: label_rows((cell["contrast"],), seed))
    )
    return Result(rows, rows, LABEL_COLUMNS, LABEL_LEGEND)


def _check_names(chosen: Iterable[str]) -> None:
    """Before the first training: an error in the last name must not cost an hour."""
    for name in chosen:
        check_name(name)
