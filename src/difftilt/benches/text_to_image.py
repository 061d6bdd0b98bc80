"""The text-to-image table."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from difftilt.benches.base import Compared, Result, smallest_first
from difftilt.benches.fronts import below_front
from difftilt.recipes.text_to_image.bench import TRUTH_DRAWS, PictureBench
from difftilt.recipes.text_to_image.methods import (
    DEFAULTS,
    NETWORK_CALLS,
    RTB_FAMILY,
    picture_methods,
)
from difftilt.recipes.text_to_image.task import BETA
from difftilt.report.comparison import draw_comparison, draw_front
from difftilt.report.tables import Column

PICTURE_COLUMNS = [
    Column("problem"),
    Column("method"),
    Column("seed"),
    Column("log_r", "mean log r"),
    Column("right", "right", 2),
    Column("colour", "colour", 2),
    Column("thing", "thing", 2),
    Column("diversity", "diversity", 2),
    Column("energy", "energy distance", 3),
    Column("ess", "ESS", 2),
    Column("network_calls", "net calls"),
    Column("seconds", "s", 2),
]

PICTURE_LEGEND = """\
held-out (colour, thing) prompts of the shipped prior; every figure is of one prompt, averaged.
mean log r: nats, of the reward's network; right: share of pictures of which the held-out judge says
the prompt's colour and thing (colour, thing: each alone); diversity: mean pairwise distance in the
judge's features, as a share of the truth's (at beta = 1); energy distance: to the truth, in the
same features; ESS: share of the draws; net calls: of the training alone; s: of training and
drawing.
Second table: how far a sampler's diversity lies below the front of RTB's methods and the prior, at
the sampler's reward (negative: above it); least: of the seeds; beyond: seeds at which no sampler
of the front has so large a reward. A line between two samplers is reached by mixing them."""

FRONT_COLUMNS = [
    Column("problem"),
    Column("method"),
    Column("below", "below the front", 2),
    Column("least", digits=2),
    Column("beyond"),
]


@dataclass(frozen=True)
class TextToImageTable(Compared):
    """The text-to-image table: methods beside rejection truth on prompts never seen.

    Arguments:
        samples: pictures drawn of each prompt.
        prompts: how many of the held-out prompts.
        truth_draws: pictures of the prior that make the truth, of all prompts together.
        beta: of the targets; several make a front of reward and diversity of each method that aims
            at a posterior.
        figure: draw distance, reward and diversity there (.png or .svg).
        front: draw diversity against reward there, a line per method (.png or .svg).
    """

    calls: int = NETWORK_CALLS
    samples: int = 64
    prompts: int = 8
    truth_draws: int = TRUTH_DRAWS
    beta: tuple[float, ...] = (BETA,)
    figure: Path | None = None
    front: Path | None = None


def text_to_image(options: Annotated[TextToImageTable, tyro.conf.arg(name="")]) -> Result:
    """The text-to-image table: methods beside rejection truth on prompts never seen.

    Args:
        options: what to run, and where to write.
    """
    chosen = options.chosen(DEFAULTS, picture_methods())
    bench = PictureBench(
        chosen,
        list(options.seeds),
        options.calls,
        options.samples,
        options.prompts,
        options.truth_draws,
        options.beta,
    )
    rows = options.rows(bench.cells())
    if options.figure is not None:
        draw_comparison(rows, ("energy", "log_r", "diversity"), options.figure)
    if options.front is not None:
        draw_front(rows, "log_r", "diversity", options.front)
    several = len({row["problem"] for row in rows}) > 1
    columns = PICTURE_COLUMNS if several else PICTURE_COLUMNS[1:]
    found = smallest_first(rows, columns, "energy", PICTURE_LEGEND)
    below = below_front(rows, RTB_FAMILY, "log_r", "diversity")
    return replace(found, pairs=below, pair_columns=FRONT_COLUMNS)
