"""The table of molecules."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from difftilt.benches.base import Compared, Result, smallest_first
from difftilt.recipes.molecules.bench import DEFAULTS, MoleculeBench, molecule_methods
from difftilt.report.tables import Column

MOLECULE_TARGETS = ("alpha",)

MOLECULE_CALLS = 30_000

MOLECULE_COLUMNS = [
    Column("problem", "target"),
    Column("method"),
    Column("seed"),
    Column("off_target", "MAE"),
    Column("valid", "valid"),
    Column("consistent", "cons."),
    Column("unique", "unique"),
    Column("new", "new"),
    Column("distance", "distance"),
    Column("log_r", "mean log r"),
    Column("log_z_error", "log Z err", 2),
    Column("ess", "ESS", 2),
    Column("network_calls", "net calls"),
    Column("seconds", "s", 2),
]

MOLECULE_LEGEND = """\
MAE: mean absolute error to the wanted property, of valid samples; valid: in one piece with valences
that can be met; cons.: with the hydrogens that every kind says; unique: different ones among the
valid; new: those that the prior was not trained on; distance: energy distance to rejection truth in
the regressor's features, around 0 for the truth; mean log r: nats; log Z err: importance estimate
minus rejection estimate, nats; ESS: share of the draws; net calls: of the training alone; s:
seconds of training and drawing."""


@dataclass(frozen=True)
class MoleculesTable(Compared):
    """Methods beside rejection truth on the shipped prior of small molecules.

    With its defaults it takes about a quarter of an hour of one core. Give --json FILE, and
    --resume to go on after an interruption.

    Arguments:
        target: alpha, gap, mu, qed or logp (may be repeated).
    """

    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    calls: int = MOLECULE_CALLS


def molecules(options: Annotated[MoleculesTable, tyro.conf.arg(name="")]) -> Result:
    """Methods beside rejection truth on the shipped prior of small molecules.

    Args:
        options: what to run, and where to write.
    """
    chosen = options.chosen(DEFAULTS, molecule_methods())
    targets = list(options.target or MOLECULE_TARGETS)
    bench = MoleculeBench(targets, chosen, list(options.seeds), options.calls, options.samples)
    rows = options.rows(bench.cells())
    return smallest_first(rows, MOLECULE_COLUMNS, "distance", MOLECULE_LEGEND)
