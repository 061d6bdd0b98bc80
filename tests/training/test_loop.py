import math
import os
import re
import signal
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difftilt.errors import CheckpointError, TrainingError
from difftilt.training import loop
from difftilt.training.checkpoint import CheckpointWarning, checkpoint_steps, load_checkpoint
from difftilt.training.loop import interruptible, progress_bar, train
from difftilt.training.plan import BehaviourWeights
from difftilt.training.run_folder import RunFolder
from difftilt.training.state import TrainingState
from tests.toys import Likelihood, quick_plan, toy_state

OWN = BehaviourWeights(on_policy=1.0, pool=0.0)


def brief(steps: int = 6, log_reward=None, **changes) -> TrainingState:
    plan = quick_plan(steps=steps, batch=8, behaviour=OWN)
    return toy_state(replace(plan, **changes), log_reward=log_reward)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


class Counting:
    """The toy's reward, which does something at its n-th call."""

    def __init__(self, at: int, act) -> None:
        self.calls, self.at, self.act = 0, at, act

    def __call__(self, x_0: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        log_r = Likelihood()(x_0, condition)
        return self.act(log_r) if self.calls == self.at else log_r


def test_a_training_logs_saves_and_finishes(run: RunFolder):
    state = brief(steps=25)
    steps = [metrics.step for metrics in train(state, run)]
    assert steps == list(range(1, 26))
    assert [row["step"] for row in run.metrics()] == [1, 10, 20, 25]
    assert checkpoint_steps(run.checkpoints) == [25]
    status = run.read("status")
    assert status["state"] == "finished" and status["step"] == status["of"] == 25
    assert status["seconds"] == state.elapsed > 0


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert len(list(train(brief()))) == 6
    assert not list(tmp_path.iterdir())


def test_checkpoints_follow_the_clock(run: RunFolder):
    updates = train(brief(), run, every_checkpoint_seconds=0.0)
    for step in (1, 2, 3):
        next(updates)
        assert checkpoint_steps(run.checkpoints)[-1] == step
        assert run.read("status")["state"] == "running"
    assert checkpoint_steps(run.checkpoints) == [2, 3]


def test_stopping_saves_and_resuming_equals_going_on(run: RunFolder):
    whole = brief()
    for _ in train(whole):
        pass
    first = brief()
    steps = sum(1 for _ in train(first, run, stop=lambda: first.step >= 4))
    assert steps == 4 and run.read("status")["state"] == "interrupted"
    assert "after update 4; resume" in run.read("status")["message"]
    second = brief()
    load_checkpoint(second, run.checkpoints, run.identity)
    before = second.elapsed
    assert before == first.elapsed > 0
    assert sum(1 for _ in train(second, run, log_every=1)) == 2
    assert second.elapsed > before
    assert [row["step"] for row in run.metrics()] == [1, 4, 5, 6]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, second.parameters, strict=True))
    assert run.read("status")["state"] == "finished"


def test_resuming_drops_what_was_logged_after_the_checkpoint(run: RunFolder):
    def fail(log_r):
        raise ValueError("the reward broke")

    state = brief(log_reward=Counting(5, fail))
    with pytest.raises(ValueError, match="the reward broke"):
        for _ in train(state, run, every_checkpoint_seconds=1e9, log_every=1, stop=None):
            pass
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4]
    assert run.read("status")["message"] == "ValueError: the reward broke"
    assert checkpoint_steps(run.checkpoints) == []
    for _ in train(brief(), run):
        pass
    assert [row["step"] for row in run.metrics()] == [1, 6]


def test_leaving_the_loop_is_an_interruption(run: RunFolder):
    updates = train(brief(), run)
    next(updates)
    next(updates)
    updates.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert run.read("status")["state"] == "interrupted"
    assert checkpoint_steps(run.checkpoints) == [2]


def test_another_run_is_not_overwritten(run: RunFolder):
    for _ in train(brief(), run):
        pass
    with pytest.raises(CheckpointError, match="already holds a run at update 6; resume it"):
        next(train(brief(), run))
    assert len(run.metrics()) == 2
    assert checkpoint_steps(run.checkpoints) == [6]


def test_a_folder_in_use_is_refused(run: RunFolder):
    with run, pytest.raises(CheckpointError, match="in use by process"):
        next(train(brief(), RunFolder(run.path)))


def test_a_non_finite_loss_stops_with_the_last_checkpoint_intact(run: RunFolder):
    state = brief(log_reward=Counting(4, lambda log_r: torch.full_like(log_r, -math.inf)))
    with pytest.raises(TrainingError, match=r"update 4: every path of the batch has log r = -inf"):
        for _ in train(state, run, every_checkpoint_seconds=0.0):
            pass
    status = run.read("status")
    assert status["state"] == "failed" and "update 4" in status["message"]
    assert load_checkpoint(brief(), run.checkpoints, run.identity) == 3


def test_a_non_finite_parameter_stops_before_it_is_saved(run: RunFolder):
    state = brief()
    updates = train(state, run, every_checkpoint_seconds=0.0)
    next(updates)
    with torch.no_grad():
        state.parameters[0].fill_(math.nan)
    with pytest.raises(TrainingError, match=r"update 2: parameter kernel.table is not finite"):
        next(updates)
    assert load_checkpoint(brief(), run.checkpoints, run.identity) == 1


def test_a_full_disk_on_the_way_is_a_warning_and_at_the_end_an_error(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    full = True

    def save(*arguments):
        if full:
            raise CheckpointError("cannot write: disk full")
        return checkpoint(*arguments)

    checkpoint = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", save)
    updates = train(brief(steps=3), run, every_checkpoint_seconds=0.0)
    with pytest.warns(CheckpointWarning, match="disk full; the training goes on"):
        next(updates)
    full = False
    next(updates)
    assert checkpoint_steps(run.checkpoints) == [2]
    full = True
    with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match="disk full"):
        list(updates)
    assert checkpoint_steps(run.checkpoints) == [2]


def test_a_time_budget_ends_by_the_clock():
    state = brief(steps=1, seconds=0.3)
    started = time.monotonic()
    steps = sum(1 for _ in train(state))
    assert 0.3 <= time.monotonic() - started < 5
    assert steps > 1 and state.elapsed >= 0.3 and state.progress == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_update_and_stops(run: RunFolder, number: signal.Signals):
    def shoot(log_r):
        os.kill(os.getpid(), number)
        return log_r

    before = signal.getsignal(number)
    state = brief(log_reward=Counting(3, shoot))
    with interruptible() as stop:
        assert not stop()
        steps = sum(1 for _ in train(state, run, stop=stop))
    assert steps == 3 and stop.signal == number
    assert load_checkpoint(brief(), run.checkpoints, run.identity) == 3
    assert signal.getsignal(number) is before


def test_a_second_signal_interrupts_at_once(run: RunFolder):
    def shoot_twice(log_r):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)

    state = brief(log_reward=Counting(3, shoot_twice))
    started = time.monotonic()
    with interruptible() as stop, pytest.raises(KeyboardInterrupt):
        for _ in train(state, run, stop=stop, every_checkpoint_seconds=0.0):
            pass
    assert time.monotonic() - started < 20
    assert run.read("status")["state"] == "interrupted"
    assert load_checkpoint(brief(), run.checkpoints, run.identity) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_terminated_process_leaves_a_resumable_folder(run: RunFolder):
    ready, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside torch's threads
        child = os.fork()
    if not child:
        try:
            with interruptible() as stop:
                for _ in train(brief(steps=10**6), run, stop=stop):
                    os.write(tell, b"!")
                os._exit(128 + (stop.signal or 0))
        finally:
            os._exit(1)
    os.read(ready, 3)
    os.kill(child, signal.SIGTERM)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 143
    status = run.read("status")
    assert status["state"] == "interrupted"
    assert checkpoint_steps(run.checkpoints) == [status["step"]]


def test_progress_goes_to_stderr_in_lines(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "LINE_SECONDS", 0.0)
    state = brief(steps=3)
    seen = [metrics.step for metrics in progress_bar(train(state), state)]
    out, err = capsys.readouterr()
    assert seen == [1, 2, 3] and out == ""
    lines = err.splitlines()
    assert len(lines) == 3
    pattern = r"update 3 \(100 %\), .* updates/s, 0 s left  log Z -?\d+\.\d+, ESS \d\.\d+, balance"
    assert re.fullmatch(pattern, lines[-1])


@pytest.mark.parametrize("seconds", [None, 0.2])
def test_progress_is_a_bar_on_a_terminal(
    seconds: float | None, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    state = brief(steps=3, seconds=seconds)
    count = sum(1 for _ in progress_bar(train(state), state))
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "100%" in shown and "ESS" in shown and "balance" in shown
    assert ("3/3" in shown) if seconds is None else ("/0 s" in shown and count > 1)
