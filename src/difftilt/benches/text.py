"""The text table."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from difftilt.benches.base import Kept, Result, filled, seeds_of
from difftilt.recipes.tables.pairs import gains
from difftilt.recipes.text.bench import TextBench, text_methods
from difftilt.recipes.text.sets import DataName
from difftilt.report.comparison import compared, ranked
from difftilt.report.tables import Column

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
(similarity: F1 of matched contextual features of the prior's network, rescaled); distinct-2: share
of different word pairs among a story's samples; residual: standard deviation of log q(z) - log p(z)
- β log r, exact over all orders, 0 is exact; ESS: mean share over stories; net calls and s
(seconds): of training and drawing.
Second table: what RTB has over a method story by story, with its 95 % interval over stories."""


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
    columns = filled(TEXT_COLUMNS, rows)
    shown = ranked(rows, "log_r")
    if len(seeds_of(rows)) > 1:
        columns = [c for c in columns if c.key != "seed"]
        shown = compared(rows, [c.key for c in columns], best="log_r")
    pairs = gains(rows, "rtb", [c.key for c in PAIR_COLUMNS[2:]])
    return Result(rows, shown, columns, TEXT_LEGEND, pairs, PAIR_COLUMNS)
