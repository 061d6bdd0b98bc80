"""The tables that ``difftilt bench`` prints."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from difftilt.objectives.balance import RTB
from difftilt.objectives.pathwise import KLControl
from difftilt.recipes.bandits import HELD_OUT, BanditBench, Budget, bandit_methods
from difftilt.recipes.cells import Cell, Cells, cells_of, run_cells
from difftilt.recipes.controls import controls_plan, two_controls
from difftilt.recipes.exact import Effort, check_name
from difftilt.recipes.exact_bench import Bench
from difftilt.recipes.image_bench import ImageBench
from difftilt.recipes.image_methods import default_image_methods, image_methods
from difftilt.recipes.infill_methods import TextBench, text_methods
from difftilt.recipes.methods import default_methods
from difftilt.recipes.pairs import gains
from difftilt.recipes.text_sets import DataName
from difftilt.report.comparison import compared, draw_comparison, ranked
from difftilt.report.tables import Column
from difftilt.tasks.bandits import Bandit
from difftilt.tasks.bandits.problems import Critic, Geometry
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
IMAGE_TARGETS = ("bag", "footwear")
IMAGE_CALLS = 100_000


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
class Exact(Kept):
    """Every method on every problem with a known answer.

    Arguments:
        problem: name of a problem (may be repeated); default six Gaussian ones.
        method: name of a method (may be repeated); default all but the ablations.
        seeds: seeds of the trainings.
        calls: network calls of each training (one state seen by one network is one call).
        budget: seconds of each training instead of calls.
        figure: draw the comparison there (.png or .svg).
    """

    problem: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    calls: int = CALLS
    budget: float | None = None
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
    rows = options.rows(bench.cells())
    if options.figure is not None:
        draw_comparison(rows, ("ess", "log_z_error"), options.figure)
    if len(_seeds(rows)) < 2 or len({row["method"] for row in rows}) < 2:
        return Result(rows, ranked(rows, "ess"), EXACT_COLUMNS, EXACT_LEGEND)
    shown = compared(rows, [c.key for c in EXACT_COLUMNS if c.key != "seed"], best="ess")
    return Result(rows, shown, COMPARED_COLUMNS, EXACT_LEGEND + COMPARED_LEGEND)


@dataclass(frozen=True)
class Images(Kept):
    """The vision table: methods beside rejection truth on the shipped image prior.

    With its defaults it takes about five hours of one core: a trained row of 100,000 calls takes
    some 12 minutes, others a few. Give --json FILE, and --resume to go on after an interruption.

    Arguments:
        target: wanted garments or style, e.g. bag, footwear, even, bright, faint or top_heavy (may
            be repeated); default one class and one union.
        method: name of a method (may be repeated), or "all"; default those of the paper's table and
            the nearest relatives of each.
        seeds: seeds of the trainings.
        calls: network calls of each training.
        samples: drawn of each sampler.
        figure: draw the comparison there (.png or .svg).
    """

    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0,)
    calls: int = IMAGE_CALLS
    samples: int = 1024
    figure: Path | None = None


def images(options: Annotated[Images, tyro.conf.arg(name="")]) -> Result:
    """The vision table: methods beside rejection truth on the shipped image prior.

    Args:
        options: what to run, and where to write.
    """
    chosen, seeds = list(options.method) or default_image_methods(), list(options.seeds)
    chosen = list(image_methods()) if chosen == ["all"] else chosen
    targets = list(options.target or IMAGE_TARGETS)
    bench = ImageBench(targets, chosen, seeds, options.calls, options.samples)
    rows = options.rows(bench.cells())
    if options.figure is not None:
        draw_comparison(rows, ("frechet", "diversity", "ess"), options.figure)
    if len(_seeds(rows)) < 2:
        return Result(rows, ranked(rows, "frechet", False), IMAGE_COLUMNS, IMAGE_LEGEND)
    columns = [c for c in IMAGE_COLUMNS if c.key != "seed"]
    shown = compared(rows, [c.key for c in columns], best="frechet", largest=False)
    return Result(rows, shown, columns, IMAGE_LEGEND)


@dataclass(frozen=True)
class Infilling(Kept):
    """The missing sentence of held-out stories: samplers beside each other.

    Arguments:
        data: "stories" of the shipped grammar, or "bible", real text.
        method: name of a method (may be repeated); default all.
        seeds: of the trainings.
        calls: network calls of each training.
        contexts: held-out pairs (x, y).
    """

    data: DataName = "stories"
    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0,)
    calls: int = 200_000
    contexts: int = 48


def infill(options: Annotated[Infilling, tyro.conf.arg(name="")]) -> Result:
    """The text table: the missing sentence of held-out stories.

    Args:
        options: what to run, and where to write.
    """
    chosen, seeds = list(options.method) or list(text_methods()), list(options.seeds)
    bench = TextBench(options.data, chosen, seeds, options.calls, options.contexts)
    rows = options.rows(bench.cells())
    columns = [c for c in TEXT_COLUMNS if any(row.get(c.key) is not None for row in rows)]
    shown = ranked(rows, "log_r")
    if len(_seeds(rows)) > 1:
        columns = [c for c in columns if c.key != "seed"]
        shown = compared(rows, [c.key for c in columns], best="log_r")
    pairs = gains(rows, "rtb", [c.key for c in PAIR_COLUMNS[2:]])
    return Result(rows, shown, columns, TEXT_LEGEND, pairs, PAIR_COLUMNS)


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
    objectives = {"rtb": RTB("batch", 4.0), "kl_control": KLControl()}

    def rows_of(cell: Cell) -> list[dict[str, Any]]:
        plan = controls_plan(objectives[cell["method"]], options.updates, seed=cell["seed"])
        judged = [asdict(found) for found in two_controls(plan)[1]]
        return [{**cell, **row, "pair": "{} {}".format(*row["pair"])} for row in judged]

    names = cells_of(seed=list(options.seeds), method=list(objectives))
    rows = options.rows(Cells(names, {"updates": options.updates}, rows_of))
    return Result(rows, rows, CONTROL_COLUMNS, CONTROL_LEGEND)


@dataclass(frozen=True)
class Bandits(Kept):
    """Offline control with the answer: bandits in many states, one policy for all β in [0, 10].

    Arguments:
        geometry: of the behaviour policy's actions: line (1), ring (2) or space (6 numbers).
        critic: "rare" (the best actions are rarely taken) or "goal" (a quadratic).
        method: name of a method (may be repeated); default all.
        seeds: of the trainings.
        updates: of each training.
        states: held-out states to judge in.
        steps: N of the behaviour's chain; guided methods take 60 if this is less.
    """

    geometry: Geometry = "line"
    critic: Critic = "rare"
    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0,)
    updates: int = 2000
    states: int = HELD_OUT
    steps: int = 12


def bandits(options: Annotated[Bandits, tyro.conf.arg(name="")]) -> Result:
    """Offline control with the answer: bandits in many states, one policy for all β.

    Args:
        options: what to run, and where to write.
    """
    chosen, seeds = list(options.method) or list(bandit_methods()), list(options.seeds)
    problem = Bandit(options.geometry, options.critic, options.steps)
    bench = BanditBench([problem], chosen, seeds, Budget(options.updates), options.states)
    rows = options.rows(bench.cells())
    if len(_seeds(rows)) < 2:
        return Result(rows, ranked(rows, "tv_mean", False), BANDIT_COLUMNS, BANDIT_LEGEND)
    columns = [c for c in BANDIT_COLUMNS if c.key != "seed"]
    shown = compared(rows, [c.key for c in columns], best="tv_mean", largest=False)
    return Result(rows, shown, columns, BANDIT_LEGEND)


@dataclass(frozen=True)
class Labels(Kept):
    """What contrastive energy prediction learns of a gap of log h, by enumeration.

    Arguments:
        contrast: numbers of samples compared with each other, K.
    """

    contrast: tuple[int, ...] = (2, 16)


def labels(options: Annotated[Labels, tyro.conf.arg(name="")]) -> Result:
    """What contrastive energy prediction learns of a gap of log h, by enumeration.

    Args:
        options: what to run, and where to write.
    """
    cells = cells_of(contrast=list(options.contrast))
    rows = options.rows(Cells(cells, {}, lambda cell: label_rows((cell["contrast"],))))
    return Result(rows, rows, LABEL_COLUMNS, LABEL_LEGEND)


def _seeds(rows: list[dict[str, Any]]) -> set[int]:
    """Of all rows, also of those that a file had."""
    return {row["seed"] for row in rows}


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
PAIR_COLUMNS = [
    Column("problem", "data"),
    Column("method", "gain"),
    Column("log_r", "mean log r"),
    Column("bleu", "BLEU-4"),
    Column("gleu", "GLEU-4"),
    Column("similarity"),
]
TEXT_LEGEND = """\
mean log r: nats, of the reader of the ending, with its 95 % interval over stories; coherent, wrong
cause, invalid: shares, by the grammar; BLEU, GLEU, similarity: to the middle as it was written
(cosine of the prior's own features); distinct-2: share of different word pairs among a story's
samples; residual: standard deviation of log q(z) - log p(z) - β log r, exact over all orders, 0 is
exact; ESS: mean share over stories; net calls and s (seconds): of training and drawing.
Second table: what RTB has over a method story by story, with its 95 % interval over stories."""

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
BANDIT_COLUMNS = [
    Column("problem"),
    Column("method"),
    Column("seed"),
    Column("steps", "N"),
    *[Column(f"{what}_{b}", f"{what} β={b}", 3) for b in (0, 1, 3, 10) for what in ("mean", "max")],
    Column("tv_mean", "mean", 3),
    Column("tv_max", "max", 3),
    Column("within", "within .02", 3),
    Column("floor", digits=2),
    Column("seconds", "CPU s", 2),
]
BANDIT_LEGEND = """\
Total variation to the optimal policy, mean and largest over held-out states: of the laws of actions
on the line, exact; else of mode weights, counted from draws, with "floor" what draws of the optimal
policy itself would show on average; within .02: share of all (state, β); CPU s: of the training."""
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
    "controls": Table(controls, "CTRL's task: two controls learned apart, used together"),
    "bandits": Table(bandits, "offline control with the answer: many states, every β at once"),
    "labels": Table(labels, "CEP's labels: what each kind learns of a rare reward"),
    "infill": Table(infill, "the text table: the missing sentence of held-out stories"),
    "images": Table(images, "the vision table: classes of garments beside rejection truth"),
}
