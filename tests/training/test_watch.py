"""The alarm in real trainings: it goes off on what collapses, and changes nothing."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from difftilt.errors import InputError
from difftilt.forms import Perceptron
from difftilt.objectives.balance import RTB
from difftilt.objectives.base import Objective
from difftilt.objectives.policy import DDPO
from difftilt.posteriors import Prior
from difftilt.report.page import render_page
from difftilt.report.run_folder import read_run
from difftilt.tasks.exact.grid25 import gmm9of25
from difftilt.training.loop import train
from difftilt.training.plan import Alarm, Training, suited
from difftilt.training.run_folder import RunFolder
from difftilt.training.state import TrainingState
from difftilt.training.watch import RewardHacking
from toys import Likelihood, linear_posterior, quick_plan, toy_state


def plan_of(objective: Objective, seed: int = 0, steps: int = 150, **alarm) -> Training:
    fields = {**suited(objective), "warm_start": 0.0, "objective": objective}
    return Training(steps=steps, batch=64, seed=seed, alarm=Alarm(**alarm), **fields)


@pytest.fixture(scope="module")
def problem():
    return gmm9of25()


def garden(problem, plan: Training) -> TrainingState:
    """Nine of 25 modes from a small Gaussian kernel."""
    torch.manual_seed(plan.seed)
    target = Prior(problem.chain).tilt(problem.log_reward)
    posterior = target.posterior(Perceptron(components=1, width=48))
    return target.state(posterior, plan)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_goes_off_on_ddpo_without_divergence_and_not_on_balance(problem, seed: int):
    with pytest.warns(RewardHacking, match="reward hacking by update"):
        rows = list(train(garden(problem, plan_of(DDPO(), seed, stop=True))))
    assert rows[-1].alarm is not None and all(row.alarm is None for row in rows[:-1])
    # A warning would be an error here.
    quiet = list(train(garden(problem, plan_of(RTB(), seed, steps=90))))
    assert all(row.alarm is None for row in quiet)
    assert quiet[-1].log_r > quiet[0].log_r and rows[-1].kl > 2 * quiet[-1].kl


@pytest.mark.usefixtures("unchecked")
def test_it_can_end_the_training_and_is_told_in_the_folder(problem, tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.begin({"recipe": "toy", "config": {}})
    state = garden(problem, plan_of(DDPO(), stop=True))
    with pytest.warns(RewardHacking):
        rows = list(train(state, run))
    assert rows[-1].alarm is not None and rows[-1].step < 150 and state.progress == 1.0
    logged = run.metrics()
    assert logged[-1]["alarm"] == rows[-1].alarm and "alarm" not in logged[0]
    assert math.isfinite(logged[0]["kl"]) and logged[0]["diversity"] > 0
    status = run.read("status")
    assert status["state"] == "finished" and "stopped early: reward hacking" in status["message"]
    page = render_page(read_run(run.path))
    assert "Alarm: reward hacking by update" in page and "Diversity" in page


def conditional(objective: Objective, seed: int, batch: int, steps: int) -> TrainingState:
    """Four likelihoods, one for each condition; two paths of each that is drawn."""
    torch.manual_seed(seed)
    fields: dict = {"batch": batch, "paths_per_condition": 2, "steps": steps, "seed": seed}
    plan = quick_plan(objective=objective, learning_rate=0.03, **fields)
    return toy_state(
        plan,
        replace(linear_posterior(2, 4, labels=4), initial=None),
        Likelihood(y=(-0.7, 0.1, 0.9, 1.7), sigma=1.2),
        conditions=lambda count, generator: torch.randint(4, (count,), generator=generator),
        labels=4,
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("batch", [2, 8])
def test_two_paths_of_a_condition_are_enough_for_it(seed: int, batch: int):
    """Two weights are even to a half at least, so that those of many updates are looked at."""
    with pytest.warns(RewardHacking, match="reward hacking by update"):
        rows = list(train(conditional(DDPO(), seed, batch, steps=200)))
    assert min(row.ess for row in rows) >= 1 / batch
    quiet = conditional(RTB(log_z="learned"), seed, batch, steps=200)
    assert all(row.alarm is None for row in train(quiet))
    assert sum(w.paths for row in quiet.watch.last for w in row.weights) >= 32


def toy(share: float) -> TrainingState:
    return toy_state(quick_plan(steps=12, alarm=Alarm(share=share, window=3, start=3)))


def test_the_alarm_changes_no_number():
    """With and without it, and across a checkpoint."""
    on, off = (list(train(toy(share))) for share in (0.25, 0.0))
    same = [{k: v for k, v in asdict(row).items() if k != "alarm"} for row in on]
    assert repr(same) == repr(
        [{k: v for k, v in asdict(row).items() if k != "alarm"} for row in off]
    )


def test_what_it_saw_comes_back_from_json():
    state = toy(0.25)
    for _ in train(state):
        pass
    again = toy(0.25)
    again.watch.load(json.loads(json.dumps(state.watch.to_json())))
    assert again.watch == state.watch and len(again.watch.first) == 3
    pooled = conditional(DDPO(), 0, batch=8, steps=20)
    for _ in train(pooled):
        pass
    again = conditional(DDPO(), 0, batch=8, steps=20)
    again.watch.load(json.loads(json.dumps(pooled.watch.to_json())))
    assert again.watch == pooled.watch and again.watch.first[0].weights


@pytest.mark.parametrize("wrong", [{"share": 1.0}, {"share": -0.1}, {"window": 1}, {"start": 1}])
def test_alarms_out_of_range(wrong: dict):
    with pytest.raises(InputError, match="the share must lie in"):
        Alarm(**wrong)
