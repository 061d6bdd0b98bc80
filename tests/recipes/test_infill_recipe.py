"""The infilling recipe and its table on the shipped story models, at smoke size."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from difftilt.diffusions.masked import GENERATED, completed
from difftilt.errors import InputError
from difftilt.recipes.base import Drawn
from difftilt.recipes.text import infill
from difftilt.recipes.text.bench import TextBench, text_methods
from difftilt.recipes.text.infill import Infill, prompted, residual_spread
from difftilt.sampling.draws import Samples
from difftilt.training.steps import training_step


def test_given_words_stay_and_the_prior_is_not_shown_the_ending(unchecked):
    recipe = Infill(contexts=3)
    job = recipe.job()
    drawn = replace(job.posterior, chain=job.bound(job.posterior.chain, 6)).draw(6, 0)
    condition = job.context_of(6)
    assert condition is not None
    filled = completed(drawn.x_0, condition)
    given = condition[:, 1] != GENERATED
    assert torch.equal(filled[given], condition[:, 0][given])
    vocab_size = recipe.texts.model.network.vocab_size
    assert bool((drawn.x_0[condition[:, 1] == 2] == vocab_size).all())
    lines = recipe.readable(job, drawn)
    assert len(lines) == 6 and all("[" in line for line in lines)


def test_an_update_and_the_residual_of_the_start(unchecked):
    recipe = Infill(contexts=2)
    plan = replace(recipe.training, batch=8, paths_per_condition=4, steps=2)
    job = recipe.job()
    state = job.target.state(job.posterior, plan, job.sources)
    metrics = training_step(state)
    assert metrics.loss > 0 and metrics.log_r < 0
    assert residual_spread(job, prompted(job), 0, contexts=1, samples=3) > 0


def test_the_report_compares_fillings_with_the_true_middles(monkeypatch, unchecked):
    small = partial(residual_spread, contexts=1, samples=3)
    monkeypatch.setattr(infill, "residual_spread", small)
    recipe = Infill(contexts=3)
    job = recipe.job()
    assert job.contexts is not None
    prior = job.draw(replace(job.posterior, chain=job.target.prior.chain), 6, 0)
    x_0 = job.contexts[:, 0].repeat(2, 1)
    written = Samples(x_0, job.target.score(x_0, job.context_of(6)))
    certificate: Any = None  # which the table does not read
    found = recipe.evaluation(job, Drawn(prior, prior, written, certificate))
    rows = {row["name"]: row for row in found["rows"]}
    for name in ("similarity", "BLEU-4", "GLEU-4"):
        assert rows[name]["corrected"] == pytest.approx(1, abs=1e-5)
        assert rows[name]["prior"] < 0.9
    assert rows["similarity"]["posterior"] == rows["similarity"]["prior"]
    assert rows["mean log r"]["corrected"] > rows["mean log r"]["prior"]
    spread = rows["spread of the terminal residual"]
    assert spread["posterior"] == spread["prompted"] and "of the shortest middles" in spread["note"]
    assert [text["as written"] for text in found["texts"]] == [
        text["corrected"] for text in found["texts"]
    ]


def test_the_table_has_a_row_for_each_method(monkeypatch, unchecked):
    small = partial(residual_spread, contexts=1, samples=3)
    monkeypatch.setattr("difftilt.recipes.text.bench.residual_spread", small)
    bench = TextBench("stories", ["prior", "prompted"], [0], 1000, 2)
    prior, shown = bench.rows()
    assert (prior["method"], shown["method"]) == ("prior", "prompted")
    assert prior["residual"] is None and shown["residual"] > 0
    assert 0 <= prior["coherent"] <= 1 and prior["log_r_low"] <= prior["log_r"]
    with pytest.raises(InputError, match="unknown method"):
        TextBench("stories", ["nonsense"], [0], 1000, 2)
    assert {"rtb", "mean_field", "supervised"} <= set(text_methods())


def test_populations_of_the_prior_spend_their_calls_on_reward():
    prior, steering, svdd = TextBench(
        "stories", ["prior", "fk_steering", "svdd"], [0], 1000, 2
    ).rows()
    for row in (steering, svdd):
        assert row["among"] == 8 and row["residual"] is None
        assert row["log_r"] > prior["log_r"] + 1
        # 8 particles of 90 tokens; each is looked at once before it is moved.
        assert 90 * 8 <= row["network_calls"] <= 2 * 90 * 8 + 10 * 8


def test_the_best_of_equal_calls_spends_what_a_training_would():
    bench = TextBench("stories", ["best_of_equal_calls", "prior"], [0], 400, 2)
    best, prior = bench.rows()
    # 5 rounds of 2 contexts of 9 tokens are 90 calls.
    assert (best["among"], best["network_calls"]) == (4, 360)
    assert (prior["among"], prior["network_calls"]) == (1, 90)
    assert best["log_r"] > prior["log_r"]
