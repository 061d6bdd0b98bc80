"""Methods beside rejection truth on the shipped prior of small molecules.

Every method gets one budget of network calls. Samples are judged by how far the wanted property is
off, by rdkit's validity, and by their distance to the truth in the regressor's features.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, final

from torch import Tensor

from difftilt.forms import Form, FullCopy
from difftilt.posteriors import Prior, Target
from difftilt.recipes.molecules.pairs import SOURCE, conditionally_trained
from difftilt.recipes.molecules.recipe import Molecules, nearness, off_target
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
from difftilt.tasks.molecules.metrics import consistency, molecules_of, quality
from difftilt.tasks.molecules.models import molecule_prior
from difftilt.tasks.molecules.rewards import PropertyReward, ScoreReward
from difftilt.tasks.molecules.values import AtomGuided
from difftilt.training.plan import Replaying

TRUTH_DRAWS = 2048
PRIOR_SEED, TRUTH_SEED = 92_001, 92_002
DEFAULTS = (
    "rtb",
    "conditional",
    "rgdm",
    "rgdm_paper",
    "reward_weighted",
    "cep",
    "ppo_kl",
    "ddpo",
    "dps",
    "fk_steering",
    "best_of_n",
    "importance",
)
TARGETS: dict[str, Molecules] = {
    "alpha": Molecules(),
    "gap": Molecules(wanted="gap", value=8.5, width=0.5),
    "mu": Molecules(wanted="mu", value=4.5, width=0.5),
    "qed": Molecules(wanted="qed", value=0.6, width=0.05),
    "logp": Molecules(wanted="logp", value=1.5, width=0.3),
}


def _atom_guided(form: Form | None) -> AtomGuided:
    return AtomGuided()


def molecule_methods(target: str = "alpha") -> dict[str, Maker]:
    """The methods of the table by name: those of the vision table that need no labels, and EDM's.

    Arguments:
        target: what a model of every value is asked for.
    """
    recipe = TARGETS[target]
    assert recipe.value is not None
    known = network_methods(_atom_guided)
    own: dict[str, Maker] = {
        "rtb": recommended(recipe.training, recipe.built_form()),
        "rtb_copy": known["rtb"],
        "conditional": conditionally_trained(recipe.every, recipe.value),
    }
    return known | own | training_free_methods()


def build_molecule_target(name: str) -> Target:
    """The shipped prior tilted towards a wanted property."""
    return TARGETS[name].job().target


def molecule_setting(run: Run) -> Setting:
    """What the table gives a method."""
    recipe = TARGETS[run.target]
    # A third of the budget at most goes into the pool.
    capacity = max(64, min(1536, run.calls // (3 * recipe.steps)))
    pool = Replaying(pool_capacity=capacity, pool_fresh=0, pool_effective=0.02)
    subset = min(10, recipe.steps - 1)
    sizes = {"chunk": 256, "subset": subset, "warm_start_subset": subset}
    plan = fine_tuning(pool, rate=5e-4, steps=480, warm_start=0.7, **sizes)
    plan = replace(plan, network_calls=run.calls, seed=run.seed)
    target = build_molecule_target(run.target)
    return Setting(target, FullCopy(), plan, run.calls, run.samples)


@cache
def molecule_prior_draws(steps: int, draws: int = TRUTH_DRAWS) -> Tensor:
    """Samples of the shipped prior, drawn once for all targets."""
    return Prior(molecule_prior(steps), source=SOURCE).sample(draws, seed=PRIOR_SEED)


@cache
def molecule_truth(name: str, draws: int = TRUTH_DRAWS) -> Truth:
    """Prior samples accepted with probability r; the same ones for every method and seed."""
    x_0 = molecule_prior_draws(TARGETS[name].steps, draws)
    return truth_among(build_molecule_target(name), x_0, TRUTH_SEED)


def molecule_figures(name: str, drawn: Samples, truth: Truth) -> Row:
    """How samples compare with what was wanted, and with members of the truth."""
    found: Row = dict(quality(molecules_of(drawn.x_0)))
    found["consistent"] = consistency(drawn.x_0)
    reward = TARGETS[name].reward()
    assert isinstance(reward, PropertyReward | ScoreReward)
    found["off_target"] = off_target(reward, drawn.x_0)
    enough = len(truth.members) > 1
    found["distance"] = nearness(drawn.x_0, truth.members) if enough else None
    return found


def molecule_row(run: Run, truth: Truth) -> Row:
    """Make one sampler of one target and measure it."""
    make, setting = molecule_methods(run.target)[run.method], molecule_setting(run)
    return measured_row(
        run, make, setting, truth, lambda drawn, t: molecule_figures(run.target, drawn, t)
    )


@final
class MoleculeBench(RejectionBench):
    """The table of wanted properties."""

    def known(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return TARGETS, molecule_methods()

    def row(self, run: Run) -> Row:
        return molecule_row(run, molecule_truth(run.target))
