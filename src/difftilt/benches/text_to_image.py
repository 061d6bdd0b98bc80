"""The text-to-image table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from difftilt.benches.base import Compared, Result, smallest_first
from difftilt.recipes.picture_bench import TRUTH_DRAWS, PictureBench
from difftilt.recipes.picture_methods import DEFAULTS, NETWORK_CALLS, picture_methods
from difftilt.report.comparison import draw_comparison
from difftilt.report.tables import Column

PICTURE_COLUMNS = [
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
judge's features, as a share of the truth's; energy distance: to the truth, in the same features;
ESS: share of the draws; net calls: of the training alone; s: of training and drawing."""


@dataclass(frozen=True)
class TextToImageTable(Compared):
    """The text-to-image table: methods beside rejection truth on prompts never seen.

    Arguments:
        samples: pictures drawn of each prompt.
        prompts: how many of the held-out prompts.
        truth_draws: pictures of the prior that make the truth, of all prompts together.
        figure: draw distance, reward and diversity there (.png or .svg).
    """

    calls: int = NETWORK_CALLS
    samples: int = 64
    prompts: int = 8
    truth_draws: int = TRUTH_DRAWS
    figure: Path | None = None


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
    )
    rows = options.rows(bench.cells())
    if options.figure is not None:
        draw_comparison(rows, ("energy", "log_r", "diversity"), options.figure)
    return smallest_first(rows, PICTURE_COLUMNS, "energy", PICTURE_LEGEND)
