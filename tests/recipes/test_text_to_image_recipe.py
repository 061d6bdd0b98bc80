"""The text-to-image recipe and its table on the shipped prior, at smoke size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands import told
from difftilt.errors import InputError
from difftilt.recipes.text_to_image.bench import (
    PictureBench,
    PictureRun,
    picture_row,
    picture_truth,
)
from difftilt.recipes.text_to_image.methods import picture_methods, picture_setting
from difftilt.recipes.text_to_image.task import Judging, default_prompts, in_turn, picture_task
from difftilt.sampling.draws import Samples
from difftilt.tasks.emoji_words import is_held_out, pair_of
from difftilt.training.steps import training_step

PROMPTS = ("a green rabbit", "a red house")
STEPS = 6


@pytest.fixture(scope="module")
def judging() -> Judging:
    return Judging(picture_task(PROMPTS, STEPS, 1.5, 1.0))


def _log_ratio(samples: Samples) -> torch.Tensor:
    """log q/p at β = 1."""
    assert samples.log_r is not None and samples.log_w is not None
    return samples.log_r - samples.log_w


def test_default_prompts_were_never_seen():
    prompts = default_prompts(8)
    assert len(set(prompts)) == 8 and all(is_held_out(*pair_of(p)) for p in prompts)


def test_samples_in_turn_are_told_apart():
    found = in_turn(Samples(torch.arange(6)[:, None], torch.arange(6.0)), 2)
    assert [s.x_0[:, 0].tolist() for s in found] == [[0, 2, 4], [1, 3, 5]]
    assert found[1].log_r is not None and found[1].log_r.tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    "name", ["rtb", "rtb_slope", "ddpo", "dpok", "align_prop", "negative_aware"]
)
def test_an_update_of_each_kind_moves_the_posterior(judging: Judging, name: str, unchecked):
    setting = picture_setting(judging.task, calls=120, draws=4, seed=0)
    plan = replace(setting.plan, batch=4, paths_per_condition=2, chunk=16)
    small = replace(plan, replaying=replace(plan.replaying, pool_capacity=8, pool_fresh=0))
    chain = picture_methods()[name](replace(setting, plan=small))
    drawn = judging.drawn(chain, 2, seed=3)
    ratios = torch.cat([_log_ratio(s) for s in drawn])
    assert bool(ratios.isfinite().all()) and float(ratios.abs().max()) > 0


def test_a_run_ends_with_a_table_and_pictures_of_each_sampler(tmp_path: Path, unchecked: None):
    run = tmp_path / "run"
    size = ["--steps", STEPS, "--samples", 8, "--certificate-paths", 32]
    plan = ["--training.network-calls", 80, "--training.batch", 4]
    plan += ["--training.paths-per-condition", 2]
    chosen = ["--prompts", PROMPTS[0], "--baselines", "rtb_slope"]
    ended = told("train", "text_to_image", *chosen, *size, *plan, "--out", run)
    assert ended.code == 0, ended.err
    assert "training rtb_slope beside it" in ended.err
    assert "a green rabbit" in ended.out
    rows = {r["name"]: r for r in json.loads((run / "evaluation.json").read_text())["rows"]}
    for sampler in ("prior", "posterior", "rtb_slope", "truth"):
        assert 0 <= rows["share right"][sampler] <= 1
        assert rows["mean log r"][sampler] < 0
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2 and "reward against" in page.lower()
    before = (run / "samples" / "posterior.safetensors").read_bytes()
    assert told("sample", run, "-n", 8, "--seed", 2).code == 0
    assert (run / "samples" / "drawn.safetensors").read_bytes() == before


def test_the_table_has_a_row_for_a_method_and_knows_its_names():
    truth = picture_truth(1, 64)
    row = picture_row(PictureRun("prior", 0, calls=10, samples=4, prompts=1), truth)
    assert row["network_calls"] == 0 and row["log_r"] < 0 and row["ess"] > 0
    with pytest.raises(InputError, match="unknown method"):
        PictureBench(["nonsense"], [0], 10)
    with pytest.raises(InputError, match="at least 2 samples"):
        PictureBench(["rtb"], [0], 10, samples=1)
    with pytest.raises(InputError, match="beta > 0"):
        PictureBench(["rtb"], [0], 10, betas=(1.0, 0.0))


def test_the_table_of_another_beta_aims_at_another_truth():
    mild, sharp = (sum(len(p.log_r) for p in picture_truth(1, 64, b)) for b in (0.1, 4.0))
    assert sharp < mild <= 64
    assert all(bool((p.log_r > -2).all()) for p in picture_truth(1, 64, 40.0))
    cells = PictureBench(["rtb", "prior"], [0, 1], 10, betas=(0.5, 2.0)).cells()
    assert [c["beta"] for c in cells.names] == [0.5] * 4 + [2.0] * 4


def test_a_posterior_of_prompts_starts_at_the_prior(judging: Judging, unchecked):
    task = judging.task
    setting = picture_setting(task, calls=100, draws=4, seed=0)
    posterior = task.target.posterior(setting.form)
    for drawn in judging.drawn(posterior.chain, 2, seed=5):
        assert bool((_log_ratio(drawn) == 0).all())
    plan = replace(setting.plan, batch=4, paths_per_condition=2, warm_start=0.0)
    metrics = training_step(task.target.state(posterior, plan, task.sources))
    assert metrics.loss > 0 and metrics.log_r < 0
