"""The bench's registry: every method makes a sampler of a problem within its budget."""

import pytest
import torch

from difftilt.benches.exact import Exact, Labels, exact, labels
from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise
from difftilt.recipes.exact.bench import Bench
from difftilt.recipes.exact.methods import default_methods, methods
from difftilt.recipes.exact.recipe import Effort, build, setting_of

CALLS = 30_000


def test_ablations_are_not_run_by_default():
    assert set(default_methods()) < set(methods())
    assert "rtb" in default_methods() and "rtb_on_policy" not in default_methods()


def test_both_kinds_are_on_the_table():
    consistent = {methods()[name].consistent for name in default_methods()}
    assert consistent == {True, False}


@pytest.mark.parametrize("name", default_methods())
def test_every_method_makes_a_sampler_with_finite_weights(name: str):
    problem = build("linear_gaussian_d2")
    before = problem.chain.calls.total
    made = methods()[name].make(setting_of(problem, Effort(CALLS), 0))
    # One update overshoots: 512 paths of 20 steps, several networks, perhaps many landings.
    assert problem.chain.calls.total - before < CALLS + 500_000
    noise = GeneratorNoise(torch.Generator().manual_seed(0))
    if isinstance(made, Chain):
        path = rollout(made, 64, noise)
        assert path.log_ratio is not None
        log_w = problem.log_reward(path.x_0) - path.log_ratio
        assert bool(log_w.isfinite().all())
    else:
        drawn = made.draw(8)
        assert drawn.x_0.shape == (8, 2)
        assert drawn.log_w is None or bool(drawn.log_w.isfinite().all())


def test_a_method_that_does_not_fit_a_problem_is_left_out_with_its_reason(capsys):
    bench = Bench(["ring8_alpha3"], ["pigdm", "dps"], [0], Effort(CALLS))
    assert list(bench.rows()) == []
    said = capsys.readouterr().err.splitlines()
    assert "pigdm needs a Gaussian likelihood" in said[0]
    assert "no row: this guidance follows the gradient of log r" in said[1]


def test_an_unknown_method_is_named_before_anything_runs():
    with pytest.raises(InputError, match="unknown method 'nope'; choose one of rtb"):
        Bench(["gmm9of25"], ["rtb", "nope"], [0], Effort(CALLS))


def test_a_method_without_weights_has_a_row(tmp_path, monkeypatch):
    """Best of n has no ESS and no log Z; the table, the talk and the figure bear it."""
    monkeypatch.setattr("difftilt.recipes.exact.bench.SYSTEMS_JUDGED", 1000)
    options = Exact(
        problem=("linear_gaussian_d2",),
        method=("best_of_n", "importance_resampling"),
        seeds=(0, 1),
        calls=CALLS,
        figure=tmp_path / "figure.svg",
    )
    found = exact(options)
    best = [row for row in found.rows if row["method"] == "best_of_n"]
    assert [row["ess"] for row in best] == [None, None]
    assert len(found.shown) == 2 and found.shown[-1]["method"] == "best_of_n"
    assert (tmp_path / "figure.svg").exists()


def test_the_table_of_labels_shows_both_kinds():
    """Rare rewards, K = 16: the paper's labels learn 0.61 nats of a gap of 2.29."""
    found = labels(Labels(contrast=(16,)))
    row = found.rows[-1]
    assert row["exact"] == pytest.approx(2.294, abs=1e-3)
    assert row["unnormalised"] == pytest.approx(row["exact"], abs=1e-6)
    assert row["self_normalised"] == pytest.approx(0.611, abs=2e-3)
