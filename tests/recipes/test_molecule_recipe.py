"""The recipe and the table of molecules, at a size of seconds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difftilt.errors import InputError
from difftilt.recipes.base import from_config, to_config
from difftilt.recipes.molecules.bench import (
    DEFAULTS,
    TARGETS,
    MoleculeBench,
    molecule_methods,
    molecule_prior_draws,
    molecule_row,
    molecule_setting,
)
from difftilt.recipes.molecules.pairs import HELD_OUT, Wanted, held_out, simulated
from difftilt.recipes.molecules.recipe import Molecules, nearness, off_target
from difftilt.recipes.run import run
from difftilt.recipes.tables.fine_tuning import guided_fine_tuning
from difftilt.recipes.tables.makers import Setting
from difftilt.recipes.tables.rejection import Run, Truth
from difftilt.report.run_folder import read_run
from difftilt.tasks.molecules.rewards import PropertyReward, ScoreReward, SubstructureReward

pytest.importorskip("rdkit")
pytest.importorskip("PIL")
QUICK = replace(guided_fine_tuning(2), batch=8, chunk=64)


def quick(**fields) -> Molecules:
    return Molecules(steps=6, samples=6, certificate_paths=16, training=QUICK, **fields)


def test_a_run_draws_molecules_in_its_record(tmp_path: Path, unchecked):
    recipe = quick()
    assert run("molecules", recipe, tmp_path / "run", talk=lambda text: None)
    record = read_run(tmp_path / "run")
    assert record.evaluation is not None
    names = [row["name"] for row in record.evaluation["rows"]]
    assert names[:5] == ["off target", "valid", "unique", "new", "consistent"]
    assert names[-1] == "log Z"
    drawn = record.samples["posterior"]
    assert drawn.kind == "image"
    assert drawn.pictures is not None
    assert drawn.pictures.shape == (6, 3, 160, 160)
    assert not record.problems


def test_one_posterior_may_serve_several_numbers_of_atoms():
    recipe = quick(atoms=(5, 7), wanted="C#N")
    job = recipe.job()
    assert job.names == ("5 atoms", "7 atoms")
    x = job.draw(job.posterior, 4, seed=0).x_0
    assert (x != 0).any(-1).sum(1).tolist() == [5, 7, 5, 7]
    assert job.sources.conditions is not None
    asked = job.sources.conditions(64, torch.Generator().manual_seed(0))
    assert set(asked.tolist()) == {5, 7}
    for atoms in ((), (1,), (9, 10)):
        with pytest.raises(InputError, match="between 2 and 9"):
            quick(atoms=atoms).job()


@pytest.mark.usefixtures("unchecked")
def test_one_posterior_of_every_value_is_judged_by_its_calibration(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("difftilt.recipes.molecules.pairs.DRAWS", 9)
    for name, fewer in (("HELD_OUT", 50), ("CHUNK", 64)):
        monkeypatch.setattr(f"difftilt.recipes.molecules.pairs.{name}", fewer)
    recipe = quick(value=None, valid=False, pairs=14)
    assert run("molecules", recipe, tmp_path / "run", talk=lambda text: None)
    record = read_run(tmp_path / "run")
    assert record.evaluation is not None
    rows = {row["name"]: row for row in record.evaluation["rows"]}
    assert rows["coverage at 90%"]["truth"] == 0.9
    for name in ("coverage at 50%", "coverage at 90%", "calibration p-value"):
        assert 0 <= rows[name]["posterior"] <= 1
    # Two updates leave it at the prior, whose draws know nothing of the value.
    assert rows["off target"]["posterior"] == pytest.approx(rows["off target"]["prior"], rel=0.5)
    assert not record.problems


def test_pairs_are_draws_of_the_joint_law():
    wanted = Wanted("alpha", 2.0, False, (5, 7), 6, 4.0, pairs=150)
    pairs = simulated(wanted)
    assert simulated(wanted) is pairs
    assert len(pairs.x_0) == 150 + HELD_OUT
    assert ((pairs.x_0 != 0).any(-1).sum(1) == pairs.conditions[:, 0]).all()
    noise = pairs.conditions[:, 1] - wanted.reward().values(pairs.x_0)
    # r^β is a likelihood of std width / √β = 1; 4 standard errors of a mean and of a std.
    assert abs(float(noise.mean())) < 4 * 210**-0.5
    assert float(noise.std()) == pytest.approx(1.0, abs=4 * (2 * 210) ** -0.5)
    assert torch.equal(held_out(wanted)[0], pairs.x_0[150:])
    with pytest.raises(InputError, match="a property that has values"):
        quick(value=None, wanted="C#N").job()


def test_what_has_no_gradient_guides_nothing():
    assert "LearnedGuidance" in repr(quick().built_form())
    assert "LearnedGuidance" not in repr(quick(wanted="qed", value=0.6).built_form())


def test_what_is_wanted_names_the_reward_and_survives_the_config():
    kinds = {"gap": PropertyReward, "qed": ScoreReward, "[OH]": SubstructureReward}
    for wanted, kind in kinds.items():
        recipe = Molecules(wanted=wanted, value=0.5)
        assert isinstance(recipe.reward(), kind)
        assert from_config(Molecules, to_config(recipe)) == recipe
    for name, recipe in TARGETS.items():
        assert recipe.wanted == name
        assert recipe.reward().bound == 0


def test_the_table_runs_a_method_of_each_kind(monkeypatch, unchecked):
    """Trained on paths, on noised ends with a value, guided by a slope, particles, the prior."""
    monkeypatch.setitem(TARGETS, "alpha", quick(valid=False))
    members = molecule_prior_draws(6, 24)
    for method in ("rtb", "conditional", "cep", "dps", "best_of_n", "importance"):
        made = molecule_row(Run("alpha", method, 0, 300, 6), Truth(members, -1.0, 0.1))
        assert made["method"] == method
        assert isinstance(made["off_target"], float)
        assert isinstance(made["distance"], float)
        assert 0 <= float(made["valid"] or 0) <= 1
    assert isinstance(molecule_setting(Run("alpha", "rtb", 3, 300, 6)), Setting)
    assert set(DEFAULTS) <= set(molecule_methods())


def test_the_distance_is_about_zero_for_one_law_and_large_for_another():
    x = molecule_prior_draws(6, 24)
    assert abs(nearness(x[:12], x[12:])) < 0.5 * nearness(0.7 * x[:12], x[12:])
    assert off_target(PropertyReward("alpha", 70.0, 1.0), 9 * x) != 0


def test_unknown_names_are_refused_before_anything_runs():
    with pytest.raises(InputError, match="unknown target 'density'"):
        MoleculeBench(["density"], ["rtb"], [0], 10, 4)
    with pytest.raises(InputError, match="unknown method 'luck'"):
        MoleculeBench(["alpha"], ["luck"], [0], 10, 4)
