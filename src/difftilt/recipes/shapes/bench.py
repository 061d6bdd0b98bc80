"""Methods beside rejection truth on the shipped prior of furniture.

Samples are judged by the held-out classifier or by the wanted measure, and compared with the truth
as sets of clouds: COV, 1-NNA and MMD by the Chamfer and the exact earth mover's distance.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, final

from torch import Tensor

from difftilt.diagnostics.features import diversity, frechet_distance
from difftilt.forms import Form, FullCopy
from difftilt.loading import load
from difftilt.posteriors import Target
from difftilt.recipes.shapes.recipe import COMPARED, Shapes
from difftilt.recipes.tables.fine_tuning import fine_tuning
from difftilt.recipes.tables.makers import Maker, Setting, recommended
from difftilt.recipes.tables.networks import network_methods, training_free_methods
from difftilt.recipes.tables.rejection import (
    RejectionBench,
    Row,
    Run,
    Truth,
    measured_row,
    truth_among,
)
from difftilt.sampling.draws import Samples
from difftilt.tasks.shapes.distances import compare_sets, occupancy_divergence
from difftilt.tasks.shapes.judges import cloud_features, load_judge, shape_prior_folder
from difftilt.tasks.shapes.targets import shape_target, shape_targets
from difftilt.tasks.shapes.values import CloudGuided
from difftilt.training.plan import Replaying

STEPS = 20
TRUTH_DRAWS = 1024
PRIOR_SEED, TRUTH_SEED = 91_001, 91_002
DEFAULTS = (
    "rtb",
    "rgdm",
    "rgdm_paper",
    "reward_weighted",
    "cep",
    "kl_control",
    "ppo_kl",
    "ddpo",
    "dps",
    "fk_steering",
    "best_of_n",
    "importance",
)


def _cloud_guided(form: Form | None) -> CloudGuided:
    return CloudGuided()


def shape_methods() -> dict[str, Maker]:
    """The methods of the table by name: those of the vision table that need no labels."""
    recipe, known = Shapes(), network_methods(_cloud_guided)
    own = {"rtb": recommended(recipe.training, recipe.form.build()), "rtb_copy": known["rtb"]}
    return known | own | training_free_methods()


def build_shape_target(name: str) -> Target:
    """The shipped prior tilted towards a class or a measure."""
    return load(shape_prior_folder(), STEPS).tilt(shape_target(name).reward())


def shape_setting(run: Run) -> Setting:
    """What the table gives a method."""
    pool = Replaying(pool_capacity=512, pool_fresh=0, pool_effective=0.01)
    plan = fine_tuning(pool, warm_start=0.8, network_calls=run.calls, seed=run.seed)
    target = build_shape_target(run.target)
    return Setting(target, FullCopy(), plan, run.calls, run.samples)


@cache
def shape_prior_draws(draws: int = TRUTH_DRAWS) -> Tensor:
    """Samples of the shipped prior, drawn once for all targets."""
    return load(shape_prior_folder(), STEPS).sample(draws, seed=PRIOR_SEED)


@cache
def shape_truth(name: str, draws: int = TRUTH_DRAWS) -> Truth:
    """Prior samples accepted with probability r; the same ones for every method and seed."""
    return truth_among(build_shape_target(name), shape_prior_draws(draws), TRUTH_SEED)


def shape_row(run: Run, truth: Truth) -> Row:
    """Make one sampler of one target and measure it."""

    def figures(drawn: Samples, truth: Truth) -> Row:
        hits = float(shape_target(run.target).hits(drawn.x_0).mean())
        return {"as_wanted": hits, **cloud_figures(drawn.x_0, truth.members)}

    return measured_row(run, shape_methods()[run.method], shape_setting(run), truth, figures)


def cloud_figures(clouds: Tensor, members: Tensor) -> Row:
    """How a set of samples compares with members of the truth, in equal numbers."""
    judge = load_judge("heldout")
    seen, exact = cloud_features(judge, clouds), cloud_features(judge, members)
    found: Row = {
        "frechet": frechet_distance(seen, exact),
        "diversity": diversity(seen) / diversity(exact),
        "jsd": occupancy_divergence(clouds, members),
    }
    for kind, most in COMPARED.items():
        found |= _compared(clouds, members, kind, most)
    return found


def _compared(clouds: Tensor, members: Tensor, kind: str, most: int) -> Row:
    n = min(most, len(clouds), len(members))
    each = compare_sets(clouds[:n], members[:n], kind)
    short = {"mmd": each.mmd, "cov": each.coverage, "nna": each.nearest}
    return {f"{name}_{kind}": value for name, value in short.items()}


@final
class ShapeBench(RejectionBench):
    """The table of clouds of points."""

    def known(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return shape_targets(), shape_methods()

    def row(self, run: Run) -> Row:
        return shape_row(run, shape_truth(run.target))
