"""Starting and ending the other process: names, interpreters, closing, leaving."""

import gc
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import difftilt
from difftilt.errors import InputError, RewardError
from difftilt.rewards.isolation import IsolatedReward, isolated
from difftilt.rewards.loading import load_reward

X = torch.tensor([[0.5, 1.0], [-2.0, 0.25]])

SOURCE = """
import os

with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")

threshold = 0.5

def log_reward(x_0):
    return x_0.sum(1)

def three(x_0, condition, scale):
    return x_0.sum(1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with ``scorer.py``; child processes find no torch, and so start fast."""
    (tmp_path / "scorer.py").write_text(SOURCE)
    _hide(tmp_path / "path", "torch")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return tmp_path


def _hide(folder: Path, package: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{package}.py").write_text("raise ImportError('hidden by a test')\n")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _last_pid() -> int:
    return int(Path("pids").read_text().split()[-1])


@pytest.mark.parametrize(
    "spec",
    [
        "scorer",
        "nowhere.py:log_reward",
        "nowhere:log_reward",
        "errors:log_reward",  # there is one beside the script, which is none of the user's
        "scorer.py:log_rewards",
        "scorer.py:threshold",
        "broken.py:log_reward",
        "script.py:log_reward",
    ],
)
def test_a_wrong_name_is_refused_in_the_same_words_as_here(folder, spec):
    (folder / "broken.py").write_text("import no_such_package\n")
    (folder / "script.py").write_text("raise SystemExit(2)\n")
    with pytest.raises(InputError) as here:
        load_reward(spec)
    with pytest.raises(InputError) as there:
        isolated(spec)
    assert str(there.value) == str(here.value)


def test_wrong_parameters_are_refused_at_once(folder):
    with pytest.raises(
        InputError,
        match=r"^reward 'scorer.py:three' has the parameters \(x_0, condition, scale\); it must be "
        r"callable as log_reward\(x_0\) or log_reward\(x_0, condition\)$",
    ):
        isolated("scorer.py:three")
    assert not _is_running(_last_pid())


def test_a_module_that_dies_or_hangs_on_import_is_an_error(folder):
    (folder / "deadly.py").write_text("import os; os._exit(4)\n")
    with pytest.raises(
        InputError,
        match=r"^reward 'deadly.py:f' cannot be loaded: it lost its process \(exit code 4\) while "
        rf"loading in {re.escape(sys.executable)}; what it printed is on stderr$",
    ):
        isolated("deadly.py:f")
    (folder / "endless.py").write_text("import time; time.sleep(60)\n")
    with pytest.raises(InputError, match=r"it gave no answer within 0\.5 s while loading in \S+; "):
        IsolatedReward("endless.py:f", start_timeout=0.5)


def test_modules_named_like_ours_are_the_users(folder):
    for name in ("rewards", "errors", "isolation"):
        (folder / f"{name}.py").write_text(f"origin = {name!r}\n")
    (folder / "rewards.py").write_text(
        "import errors, isolation\n\ndef log_reward(x_0):\n"
        "    return [float(len(errors.origin + isolation.origin))] * len(x_0)\n"
    )
    with isolated("rewards:log_reward") as log_reward:
        assert log_reward(X).tolist() == [15.0] * 2


def test_a_restart_looks_where_the_first_start_did(folder, monkeypatch, tmp_path_factory):
    with isolated("scorer.py:log_reward") as log_reward:
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        os.kill(int((folder / "pids").read_text()), 9)
        assert torch.equal(log_reward(X), X.sum(1))


# Interpreters


def test_an_interpreter_must_exist_and_be_executable(folder):
    for python, reason in (("nowhere/python", "No such file"), ("path", "Permission denied")):
        with pytest.raises(
            InputError,
            match=rf"^python='{folder}/{python}' cannot be started \({reason}.*\); "
            r"give the path of a Python interpreter$",
        ):
            isolated("scorer.py:log_reward", python=folder / python)


def test_an_interpreter_must_be_python(folder):
    true = shutil.which("true")
    assert true is not None
    with pytest.raises(
        InputError, match=rf"it lost its process \(exit code 0\) while loading in {true}; "
    ):
        isolated("scorer.py:log_reward", python=true)


def test_an_interpreter_without_numpy_is_told_to_get_it(folder):
    _hide(folder / "path", "numpy")
    python = re.escape(sys.executable)
    with pytest.raises(
        InputError,
        match=rf"^the interpreter {python} has no numpy, which it needs to talk to us; "
        rf"run: {python} -m pip install numpy$",
    ):
        isolated("scorer.py:log_reward")


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_times_are_positive_and_restarts_whole(folder, seconds):
    with pytest.raises(InputError, match=rf"^timeout is {seconds}; give a number of seconds abo"):
        isolated("scorer.py:log_reward", timeout=seconds)
    with pytest.raises(InputError, match=r"^restarts is -1; give a whole number, 0 or more$"):
        isolated("scorer.py:log_reward", restarts=-1)


# Ends


def test_closing_ends_the_process_for_good(folder):
    log_reward = isolated("scorer.py:log_reward")
    assert _is_running(_last_pid())
    log_reward.close()
    log_reward.close()
    assert not _is_running(_last_pid())
    with pytest.raises(
        RewardError,
        match=r"^reward 'scorer.py:log_reward' is closed; make another with isolated\(\.\.\.\)$",
    ):
        log_reward(X)
    assert len(Path("pids").read_text().split()) == 1


def test_leaving_the_block_ends_the_process_whatever_happened(folder):
    with pytest.raises(ZeroDivisionError), isolated("scorer.py:log_reward"):
        raise ZeroDivisionError
    assert not _is_running(_last_pid())


def test_a_reward_that_will_not_leave_is_made_to(folder):
    with (folder / "scorer.py").open("a") as source:
        source.write("from threading import Thread\nfrom time import sleep\n")
        source.write("Thread(target=sleep, args=(60,)).start()\n")
    start = time.monotonic()
    isolated("scorer.py:log_reward").close()
    assert not _is_running(_last_pid())
    assert time.monotonic() - start < 30.0


def test_a_forgotten_reward_takes_its_process_along(folder):
    log_reward = isolated("scorer.py:log_reward")
    log_reward(X)
    del log_reward
    gc.collect()
    assert not _is_running(_last_pid())


def test_the_end_of_the_interpreter_ends_the_process(folder):
    (folder / "main.py").write_text(
        "import os\n"
        "from difftilt.rewards.isolation import isolated\n"
        "os.environ['PYTHONPATH'] = 'path'\n"
        "keep = isolated('scorer.py:log_reward')\n"
    )
    source = str(Path(difftilt.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "main.py"],
        env={**os.environ, "PYTHONPATH": source},
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not _is_running(_last_pid())
