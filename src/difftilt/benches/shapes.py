"""The table of shapes."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from difftilt.benches.base import Compared, Result, smallest_first
from difftilt.recipes.shapes.bench import DEFAULTS, ShapeBench, shape_methods
from difftilt.report.tables import Column

SHAPE_TARGETS = ("chair",)

SHAPE_CALLS = 20_000

SHAPE_COLUMNS = [
    Column("problem", "target"),
    Column("method"),
    Column("seed"),
    Column("as_wanted", "as wanted"),
    Column("cov_chamfer", "COV"),
    Column("nna_chamfer", "1-NNA"),
    Column("mmd_chamfer", "MMD"),
    Column("cov_emd", "COV EMD"),
    Column("nna_emd", "1-NNA EMD"),
    Column("mmd_emd", "MMD EMD"),
    Column("jsd", "JSD"),
    Column("frechet", "Fréchet"),
    Column("diversity", "diversity"),
    Column("log_z_error", "log Z err", 2),
    Column("ess", "ESS", 2),
    Column("network_calls", "net calls"),
    Column("seconds", "s", 2),
]

SHAPE_LEGEND = """\
as wanted: share of samples that the held-out classifier finds of the class, or whose measure is
within two widths; COV, 1-NNA, MMD: beside as many clouds of rejection truth, by the Chamfer
distance, then by the exact earth mover's; JSD: of the occupancy of a grid, nats; Fréchet and
diversity: in the held-out classifier's features, diversity as a share of the truth's; log Z err:
importance estimate minus rejection estimate, nats; ESS: share of the draws; net calls: of the
training alone; s: seconds of training and drawing."""


@dataclass(frozen=True)
class ShapesTable(Compared):
    """Methods beside rejection truth on the shipped prior of furniture.

    With its defaults it takes about half an hour of one core. Give --json FILE, and --resume to go
    on after an interruption.

    Arguments:
        target: a class (chair, table, sofa, lamp, vase), seat, flat, slender or symmetric (may be
            repeated).
    """

    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    calls: int = SHAPE_CALLS


def shapes(options: Annotated[ShapesTable, tyro.conf.arg(name="")]) -> Result:
    """Methods beside rejection truth on the shipped prior of furniture.

    Args:
        options: what to run, and where to write.
    """
    chosen = options.chosen(DEFAULTS, shape_methods())
    targets = list(options.target or SHAPE_TARGETS)
    bench = ShapeBench(targets, chosen, list(options.seeds), options.calls, options.samples)
    rows = options.rows(bench.cells())
    return smallest_first(rows, SHAPE_COLUMNS, "nna_chamfer", SHAPE_LEGEND)
