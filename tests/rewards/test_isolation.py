"""Rewards in real processes: what they return, and what happens when they hang, crash or lie."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from difftilt.errors import InputError, RewardError
from difftilt.rewards.contract import as_reward
from difftilt.rewards.isolation import isolated
from difftilt.rewards.loading import load_reward

X = torch.tensor([[0.5, 1.0], [-2.0, 0.25], [3.0, -1.5]])

SOURCE = """
import os, signal, subprocess, sys, time
from pathlib import Path

with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")

def total(x_0):
    return x_0.sum(1)

def bounded(x_0):
    return -x_0[:, 0] ** 2

bounded.bound = 0.0

def times(x_0, condition):
    return x_0[:, 0] * condition

def half_in_torch(x_0):
    return x_0.sum(1).bfloat16() if type(x_0).__module__ == "torch" else x_0[:, 0]

def noisy(x_0):
    print("printed from Python")
    os.write(1, b"written to descriptor 1\\n")
    subprocess.run(["echo", "echoed by a child"])
    assert sys.stdin.read() == ""
    return x_0.sum(1)

def fails_when_negative(x_0):
    if (x_0 < 0).any():
        raise ValueError("negative pixels")
    return [float(os.getpid())] * len(x_0)

def hangs(x_0):
    time.sleep(60)

def _first_time(x_0):
    first = not os.path.exists("visited")
    Path("visited").touch()
    return first

def hangs_once(x_0):
    if _first_time(x_0):
        time.sleep(60)
    return x_0.sum(1)

def crashes_once(x_0):
    if _first_time(x_0):
        os.kill(os.getpid(), signal.SIGSEGV)
    return x_0.sum(1)

def leaves(x_0):
    os._exit(3)

def crashes(x_0):
    os.kill(os.getpid(), signal.SIGSEGV)

def slow_when_negative(x_0):
    if (x_0 < 0).any():
        time.sleep(60)
    return x_0.sum(1)

def scalar(x_0):
    return x_0.sum()

def nothing(x_0):
    return None

def not_a_number(x_0):
    return x_0.sum(1) * float("nan")

def booleans(x_0):
    return x_0[:, 0] > 0

def square(x_0):
    return x_0[:, :1] * x_0[:, 0]

def demands(x_0, condition):
    return x_0[:, 0]

def three(x_0, condition, scale):
    return x_0[:, 0]

threshold = 0.5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with ``scorer.py``; child processes find no torch, and so start fast."""
    (tmp_path / "scorer.py").write_text(SOURCE)
    _hide(tmp_path / "path", "torch")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _hide(folder: Path, package: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{package}.py").write_text("raise ImportError('hidden by a test')\n")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that nobody has waited for yet is dead all the same.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(") ", 1)[1][0] not in "ZX"


def _all_end(pids: list[int]) -> bool:
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline and any(map(_is_running, pids)):
        time.sleep(0.02)
    return not any(map(_is_running, pids))


def _recorded_pids() -> list[int]:
    return [int(line) for line in Path("pids").read_text().split()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_the_other_process_returns_what_this_one_would(folder, dtype):
    x_0 = (2 * X).to(dtype)
    with isolated("scorer.py:total") as log_reward:
        assert log_reward(x_0).tolist() == x_0.sum(1).tolist()
        assert log_reward(x_0[:1].expand(2, 2)).shape == (2,)
        assert log_reward(x_0).is_floating_point()


def test_a_batch_larger_than_any_pipe_comes_back_whole(folder, generator):
    x_0 = torch.randn((64, 3000), generator=generator, dtype=torch.float64)
    with isolated("scorer.py:times") as log_reward:
        condition = torch.randn(64, generator=generator, dtype=torch.float64)
        assert torch.equal(log_reward(x_0, condition), x_0[:, 0] * condition)


def test_the_reward_gets_numpy_arrays_where_there_is_no_torch(folder):
    with isolated("scorer.py:half_in_torch") as log_reward:
        assert log_reward(X).tolist() == X[:, 0].tolist()


def test_the_reward_gets_torch_tensors_where_there_is_torch(folder, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    with isolated("scorer.py:half_in_torch") as log_reward:
        assert log_reward(X).tolist() == X.sum(1).bfloat16().tolist()


def test_threads_take_turns(folder):
    with isolated("scorer.py:total") as log_reward, ThreadPoolExecutor(4) as threads:
        batches = [torch.full((2, 1), float(i)) for i in range(40)]
        for batch, log_r in zip(batches, threads.map(log_reward, batches), strict=True):
            assert torch.equal(log_r, batch[:, 0])


def test_a_declared_bound_is_known_here(folder):
    with isolated("scorer.py:bounded") as log_reward:
        assert log_reward.bound == 0.0
        assert as_reward(log_reward).bound == 0.0
        assert as_reward(log_reward).name == "scorer.py:bounded"


def test_what_a_reward_prints_goes_to_stderr(folder, capfd):
    with isolated("scorer.py:noisy") as log_reward:
        for _ in range(2):
            assert torch.equal(log_reward(X), X.sum(1))
    out, err = capfd.readouterr()
    assert out == ""
    for line in ("printed from Python", "written to descriptor 1", "echoed by a child"):
        assert err.count(line) == 2


@pytest.mark.parametrize(
    "function", ["scalar", "nothing", "not_a_number", "booleans", "square", "demands"]
)
def test_unusable_values_are_refused_in_the_same_words_as_here(folder, function):
    spec = f"scorer.py:{function}"
    with pytest.raises(RewardError) as here:
        as_reward(load_reward(spec), name=spec)(X)
    with isolated(spec) as log_reward, pytest.raises(RewardError) as there:
        log_reward(X)
    assert str(there.value) == str(here.value)


def test_an_exception_is_an_answer_and_the_process_lives_on(folder):
    with isolated("scorer.py:fails_when_negative") as log_reward:
        before = log_reward(X.abs())
        with pytest.raises(RewardError) as raised:
            log_reward(X)
        assert torch.equal(log_reward(X.abs()), before)
    assert str(raised.value) == (
        "reward 'scorer.py:fails_when_negative' raised ValueError: negative pixels "
        "on a batch of shape (3, 2)"
    )
    (note,) = raised.value.__notes__
    assert 'scorer.py", line ' in note and "in fails_when_negative" in note


def test_a_reward_that_hangs_is_killed_and_tried_again(folder):
    with isolated("scorer.py:hangs", timeout=0.3, restarts=1) as log_reward:
        with pytest.raises(
            RewardError,
            match=r"^reward 'scorer.py:hangs' gave no answer within 0\.3 s \(attempt 2 of 2\) on a "
            r"batch of shape \(3, 2\); raise the time-out or score fewer samples at once$",
        ):
            log_reward(X)
        pids = _recorded_pids()
        assert len(set(pids)) == 2
        assert _all_end(pids)


def test_the_children_of_a_reward_die_with_it(folder):
    with (folder / "scorer.py").open("a") as source:
        source.write('with open("pids", "a") as file:\n')
        source.write('    file.write(str(subprocess.Popen(["sleep", "60"]).pid))\n')
    with isolated("scorer.py:hangs", timeout=0.3, restarts=0) as log_reward:
        with pytest.raises(RewardError, match=r"within 0\.3 s \(attempt 1 of 1\) on a batch"):
            log_reward(X)
        assert len(_recorded_pids()) == 2
        assert _all_end(_recorded_pids())


@pytest.mark.parametrize("function", ["hangs_once", "crashes_once"])
def test_a_batch_survives_a_lost_process(folder, function, capfd):
    with isolated(f"scorer.py:{function}", timeout=1.0, restarts=1) as log_reward:
        assert torch.equal(log_reward(X), X.sum(1))


def test_every_batch_has_its_own_restarts(folder):
    with isolated("scorer.py:crashes_once", restarts=1) as log_reward:
        for _ in range(3):
            Path("visited").unlink(missing_ok=True)
            assert torch.equal(log_reward(X), X.sum(1))


@pytest.mark.parametrize(
    ("function", "how"), [("leaves", "exit code 3"), ("crashes", "signal 11, Segmentation fault")]
)
def test_a_reward_that_always_dies_is_an_error_that_says_how(folder, function, how):
    with isolated(f"scorer.py:{function}", restarts=1) as log_reward:
        for attempts in (2, 4):
            with pytest.raises(
                RewardError,
                match=rf"^reward 'scorer.py:{function}' lost its process \({how}\) \(attempt 2 of "
                r"2\) on a batch of shape \(3, 2\); what it printed is on stderr$",
            ):
                log_reward(X)
            assert len(_recorded_pids()) == attempts


def test_an_interrupted_batch_does_not_answer_for_the_next(folder):
    with isolated("scorer.py:slow_when_negative") as log_reward:
        with pytest.raises(KeyboardInterrupt):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            log_reward(X)
        assert torch.equal(log_reward(X.abs()), X.abs().sum(1))


PROMPTED = """
def counts(images, prompts):
    return [float(len(p)) + float(x.sum()) for x, p in zip(images, prompts)]

def maker(power, offset=0.0):
    def log_reward(x_0):
        return x_0.sum(1) ** power + offset
    log_reward.bound = 50.0
    return log_reward

def broken(power):
    raise OSError("no weights here")
"""


@pytest.fixture
def prompted(folder) -> Path:
    (folder / "prompted.py").write_text(PROMPTED)
    return folder


def test_texts_go_over_as_a_condition(prompted):
    prompts = ["a cat", "ein grüner Hase", "兎"]
    with isolated("prompted.py:counts") as log_reward:
        expected = X.sum(1).double() + torch.tensor([5.0, 15.0, 1.0])
        assert torch.allclose(log_reward(X, prompts).double(), expected)


def test_a_maker_is_told_its_options(prompted):
    with isolated("prompted.py:maker", options={"power": 2, "offset": 1.0}) as log_reward:
        assert torch.allclose(log_reward(X), X.sum(1) ** 2 + 1)
        assert log_reward.bound == 50.0


def test_a_maker_that_raises_is_one_sentence(prompted):
    with pytest.raises(InputError, match=r"cannot be made: .*broken raised OSError: no weights"):
        isolated("prompted.py:broken", options={"power": 2})
