"""A cell of a table in a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from difftilt.errors import TrainingError
from difftilt.recipes.tables.processes import in_own_process

SOURCE = """
import os
import sys
import time
from pathlib import Path

from difftilt.recipes.tables.processes import in_own_process


def stay(file):
    Path(file).write_text(str(os.getpid()))
    time.sleep(600)


if __name__ == "__main__":
    in_own_process(stay, sys.argv[1])
"""


def add(a: int, b: int) -> tuple[int, int]:
    return a + b, os.getpid()


def fail(words: str) -> None:
    raise TrainingError(words)


def test_a_cell_is_made_elsewhere_and_its_errors_come_back():
    total, worker = in_own_process(add, 2, 3)
    assert total == 5 and worker != os.getpid()
    with pytest.raises(TrainingError, match="not finite"):
        in_own_process(fail, "the loss is not finite")


def test_a_bench_that_is_killed_leaves_no_worker(tmp_path: Path):
    script, file = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(SOURCE)
    bench = subprocess.Popen([sys.executable, str(script), str(file)])
    until = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < until and bench.poll() is None
        time.sleep(0.05)
    worker = psutil.Process(int(file.read_text()))
    bench.kill()
    bench.wait()
    worker.wait(30)  # raises if it lives on
    assert not worker.is_running()
