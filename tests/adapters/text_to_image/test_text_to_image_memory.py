"""The memory of an update of a text-to-image posterior, in a process of its own."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import difftilt as dt
from difftilt.training.plan import Training
from difftilt.training.steps import training_step
from tiny_pipelines import tiny

TESTS = Path(__file__).parents[2]
PATHS = [str(Path(dt.__file__).parents[1]), str(TESTS)]
# A small block's freed pages go back to the system, so that the peak is that of live tensors.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def update(pipeline: Any, steps: int) -> None:
    """One update of the paper's kind: all steps of two own paths, sixteen states at once."""
    plan = Training(
        batch=2,
        chunk=16,
        paths_per_condition=2,
        warm_start=0.0,
        objective=dt.RTB(log_z="learned"),
        behaviour=dt.BehaviourWeights(on_policy=1, pool=0),
    )
    prior = dt.load(pipeline, steps=steps, guidance_scale=7.5, height=64, width=64)
    task = prior.draw(["cat", "dog"], lambda x: x.mean((1, 2, 3)))
    training_step(task.target.state(task.posterior().posterior, plan, task.sources))


def peak() -> int:
    """Bytes of memory at the most, so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident() -> int:
    """Bytes of memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(counts: list[int]) -> list[int]:
    """Bytes by which updates of rising numbers of steps exceed what the process held before."""
    torch.set_num_threads(1)
    pipeline, found = tiny("sd"), []
    update(pipeline, 2)
    before = resident()
    for steps in counts:
        update(pipeline, steps)
        # A peak stays: the larger number of steps can only add to it.
        found.append(peak() - before)
    return found


def test_memory_does_not_grow_with_the_steps():
    path = {"PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"}
    command, environment = [sys.executable, __file__, "10", "50"], os.environ | path | ALLOCATOR
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.splitlines()[-1].split())
    assert few > 5_000_000  # a chunk's graph
    assert many <= 1.1 * few


if __name__ == "__main__":
    print(*measure([int(steps) for steps in sys.argv[1:]]))
