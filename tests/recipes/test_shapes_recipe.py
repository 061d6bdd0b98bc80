"""Shapes at smoke size: a posterior that starts at the prior, its report, and rows of the table."""

import math
from dataclasses import replace

import pytest
import torch

from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.noise import StreamNoise
from difftilt.recipes.run import run
from difftilt.recipes.shapes.bench import (
    DEFAULTS,
    ShapeBench,
    build_shape_target,
    shape_methods,
    shape_prior_draws,
    shape_row,
    shape_truth,
)
from difftilt.recipes.shapes.recipe import Shapes, set_rows
from difftilt.recipes.tables.rejection import Run
from difftilt.report.page import write_report
from difftilt.tasks.shapes.values import CloudGuided, CloudValue

DRAWS = 40


@pytest.fixture
def few(monkeypatch):
    """Fewer clouds are compared than a table would."""
    for module in ("bench", "recipe"):
        monkeypatch.setattr(f"difftilt.recipes.shapes.{module}.COMPARED", {"chamfer": 6, "emd": 3})


@pytest.fixture(scope="module")
def truth():
    return shape_truth("seat", DRAWS)


def test_the_shipped_prior_makes_clouds_like_its_data():
    """Centred, and of root mean square coordinate near 1."""
    x = shape_prior_draws(DRAWS)
    assert x.shape == (DRAWS, 256, 3)
    assert float(x.mean(1).abs().mean()) < 0.1
    assert abs(float(x.square().mean()) - 1) < 0.15


def test_truth_is_the_prior_accepted_by_its_reward(truth):
    """Log Z by the accepted share and by the mean reward agree within 5 standard errors."""
    share = len(truth.members) / DRAWS
    error = math.sqrt(share * (1 - share) / DRAWS) / share
    assert abs(math.log(share) - truth.log_z) < 5 * math.hypot(error, truth.standard_error)
    assert all(any(torch.equal(x, y) for y in shape_prior_draws(DRAWS)) for x in truth.members)


@pytest.mark.parametrize("method", ["importance", "fk_steering"])
def test_each_kind_of_method_has_a_row(method, truth, few):
    row = shape_row(Run("seat", method, 0, 120, 6), truth)
    assert row["method"] == method and row["problem"] == "seat"
    for key in ("as_wanted", "cov_chamfer", "nna_emd", "mmd_emd", "jsd", "log_r", "seconds"):
        assert math.isfinite(row[key]), key
    assert 0 <= row["as_wanted"] <= 1 and 0 < row["cov_emd"] <= 1 and 0 < row["ess"] <= 1


def test_the_truth_compared_with_itself_leaves_nothing(truth, few):
    sets = {"posterior": truth.members, "truth": truth.members}
    if len(truth.members) >= 16:
        rows = {(row["name"], row["note"][:3]): row for row in set_rows(sets)}
        assert rows["MMD", "cha"]["posterior"] == 0 and rows["COV", "emd"]["posterior"] == 1
    assert list(set_rows({"truth": truth.members[:4]})) == []


def test_a_value_of_clouds_starts_at_the_prior_and_ignores_the_order(generator):
    target = build_shape_target("chair")
    posterior = target.posterior(CloudGuided(16))
    path = rollout(posterior.chain, 2, StreamNoise(0, range(2)))
    assert path.log_ratio is not None and float(path.log_ratio.abs().max()) < 1e-4
    value = CloudValue((9, 3), 5, 16)
    torch.nn.init.normal_(value.last.weight)
    x, prediction = torch.randn(2, 4, 9, 3, generator=generator)
    order = torch.randperm(9, generator=generator)
    found = value(x, 3, prediction)
    assert torch.allclose(value(x[:, order], 3, prediction[:, order]), found, atol=1e-5)
    assert float(found.detach().std()) > 1e-3


def test_a_run_from_training_to_the_turning_report(tmp_path, few):
    recipe = Shapes(steps=5, samples=8, certificate_paths=16)
    small = replace(recipe.training, steps=2, batch=4, subset=2, warm_start_subset=2)
    pool = replace(small.replaying, pool_capacity=16)
    recipe = replace(recipe, training=replace(small, replaying=pool))
    assert run("shapes", recipe, tmp_path / "run", talk=lambda sentence: None)
    page = write_report(tmp_path / "run").read_text()
    assert "data:image/gif" in page and "share of chair" in page and "log Z" in page


def test_names_are_checked_before_anything_runs():
    assert set(DEFAULTS) <= set(shape_methods())
    with pytest.raises(InputError, match="unknown target 'hat'; choose one of"):
        ShapeBench(["hat"], ["rtb"], [0], 100, 8)
    with pytest.raises(InputError, match="unknown method 'nope'"):
        ShapeBench(["chair"], ["nope"], [0], 100, 8)
    with pytest.raises(InputError, match="unknown target 'hat'"):
        Shapes(target="hat").job()
