"""Tables of offline control: played, and with the answer."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from difftilt.benches.base import Kept, Result, seeds_of
from difftilt.errors import InputError
from difftilt.recipes.control.bandits import HELD_OUT, BanditBench, Budget, bandit_methods
from difftilt.recipes.control.bench import ControlBench
from difftilt.recipes.control.methods import control_methods
from difftilt.recipes.control.parts import Parts
from difftilt.report.comparison import compared, ranked
from difftilt.report.tables import Column
from difftilt.tasks.bandits import Bandit
from difftilt.tasks.bandits.problems import Critic, Geometry
from difftilt.tasks.bandits.truth import DRAWS

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
standard error over a seed's episodes; ESS: share, mean over held-out states; beta: chosen on
held-out states by the critic, never by returns; s: seconds of the training, prior and critic left
out; ms/action: one call in one state, all its draws together; peak MB: how far the process grew in
training."""


SEVERAL_SEEDS = """
Of several seeds: mean ± standard error over the seeds; of ± and s the mean."""


BANDIT_COLUMNS = [
    Column("problem"),
    Column("method"),
    Column("seed"),
    Column("steps", "N"),
    *[Column(f"{what}_{b}", f"{what} β={b}", 3) for b in (0, 1, 3, 10) for what in ("mean", "max")],
    Column("tv_mean", "mean", 3),
    Column("tv_max", "max", 3),
    Column("within", "within .02", 3),
    Column("marginal", digits=3),
    Column("floor", digits=2),
    Column("seconds", "CPU s", 2),
]


BANDIT_LEGEND = """\
Total variation to the optimal policy, mean and largest over held-out states: of the laws of actions
on the line, exact; else of mode weights, counted from draws, with "floor" what draws of the optimal
policy itself would show on average; within .02: share of all (state, β); marginal: the largest
deviation of a distribution function, on the line or along an axis of the plane, which sees actions
within a mode (draws of the optimal policy show up to 2 / sqrt(draws)); CPU s: of the training."""


@dataclass(frozen=True)
class OfflineControl(Kept):
    """Offline control: methods on the same behaviour and critic, played in the environment.

    Arguments:
        data: name of a data set (may be repeated).
        method: name of a method (may be repeated); default all.
        seeds: of behaviours, critics, trainings and episodes.
        updates: of each training.
        episodes: of each evaluation.
        parts: how behaviours and critics are made.
    """

    data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = 3000
    episodes: int = 10
    parts: Parts = field(default_factory=Parts)


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
    rows = options.rows(bench.cells())
    if len(seeds_of(rows)) < 2:
        return Result(rows, ranked(rows, "return"), OFFLINE_COLUMNS, OFFLINE_LEGEND)
    columns = [c for c in OFFLINE_COLUMNS if c.key != "seed"]
    best = "score" if all(row["score"] is not None for row in rows) else "return"
    shown = compared(rows, [c.key for c in columns], best, errors=True)
    return Result(rows, shown, columns, OFFLINE_LEGEND + SEVERAL_SEEDS)


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
        draws: most in each state and for each β off the line, where modes are counted.
    """

    geometry: Geometry = "line"
    critic: Critic = "rare"
    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0,)
    updates: int = 2000
    states: int = HELD_OUT
    steps: int = 12
    draws: int = DRAWS


def bandits(options: Annotated[Bandits, tyro.conf.arg(name="")]) -> Result:
    """Offline control with the answer: bandits in many states, one policy for all β.

    Args:
        options: what to run, and where to write.
    """
    chosen, seeds = list(options.method) or list(bandit_methods()), list(options.seeds)
    problem = Bandit(options.geometry, options.critic, options.steps)
    judged = (options.states, options.draws)
    bench = BanditBench([problem], chosen, seeds, Budget(options.updates), *judged)
    rows = options.rows(bench.cells())
    if len(seeds_of(rows)) < 2:
        return Result(rows, ranked(rows, "tv_mean", False), BANDIT_COLUMNS, BANDIT_LEGEND)
    columns = [c for c in BANDIT_COLUMNS if c.key != "seed"]
    shown = compared(rows, [c.key for c in columns], best="tv_mean", largest=False)
    return Result(rows, shown, columns, BANDIT_LEGEND)
