"""The vision table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from difftilt.benches.base import Compared, Result, smallest_first
from difftilt.recipes.images.bench import ImageBench
from difftilt.recipes.images.methods import default_image_methods, image_methods
from difftilt.report.comparison import draw_comparison
from difftilt.report.tables import Column

IMAGE_TARGETS = ("bag", "footwear")


IMAGE_CALLS = 100_000


IMAGE_COLUMNS = [
    Column("problem", "target"),
    Column("method"),
    Column("seed"),
    Column("log_r", "mean log r"),
    Column("frechet", "Fréchet"),
    Column("diversity", "diversity"),
    Column("share", "of it", 2),
    Column("diversity_of_it", "their div.", 2),
    Column("log_z_error", "log Z err", 2),
    Column("ess", "ESS", 2),
    Column("network_calls", "net calls"),
    Column("seconds", "s", 2),
    Column("peak_mb", "peak MB"),
]


IMAGE_LEGEND = """\
mean log r: nats, of the reward's classifier; Fréchet: distance to rejection truth in the features
of the held-out classifier; diversity: mean pairwise distance there, as a share of the truth's;
of it: share of wanted garments by the held-out classifier; their div.: diversity of these alone, as
a share of the truth's;
log Z err: importance estimate minus rejection estimate, nats; ESS: share of the draws;
net calls: of the training alone; s: seconds of training and drawing; peak MB: how far the process
grew meanwhile."""


@dataclass(frozen=True)
class Images(Compared):
    """The vision table: methods beside rejection truth on the shipped image prior.

    With its defaults it takes about five hours of one core: a trained row of 100,000 calls takes
    some 12 minutes, others a few. Give --json FILE, and --resume to go on after an interruption.

    Arguments:
        target: wanted garments or style, e.g. bag, footwear, even, bright, faint or top_heavy (may
            be repeated); default one class and one union.
        figure: draw the comparison there (.png or .svg).
    """

    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    calls: int = IMAGE_CALLS
    samples: int = 1024
    figure: Path | None = None


def images(options: Annotated[Images, tyro.conf.arg(name="")]) -> Result:
    """The vision table: methods beside rejection truth on the shipped image prior.

    Args:
        options: what to run, and where to write.
    """
    chosen = options.chosen(default_image_methods(), image_methods())
    targets = list(options.target or IMAGE_TARGETS)
    bench = ImageBench(targets, chosen, list(options.seeds), options.calls, options.samples)
    rows = options.rows(bench.cells())
    if options.figure is not None:
        draw_comparison(rows, ("frechet", "diversity", "ess"), options.figure)
    return smallest_first(rows, IMAGE_COLUMNS, "frechet", IMAGE_LEGEND)
