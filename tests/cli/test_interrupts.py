"""Ctrl-C, or the end of a batch job, says how to go on, whatever the run was at."""

import json
import shlex
from pathlib import Path

import pytest

from commands import told

OPTIONS = "--steps 5 --samples 4 --certificate-paths 40 --training.steps 2 --training.batch 4"
CTRL_C, TERMINATED = "raise KeyboardInterrupt", "os.kill(os.getpid(), signal.SIGTERM)"
REWARD = """
import os
import signal
from pathlib import Path

stop = Path(__file__).with_name("stop")


def log_reward(x_0):
    if len(x_0) {sizes} and stop.exists():
        stop.unlink()
        {stopped}
    return -x_0.flatten(1).square().mean(1)
"""


def interrupted(folder: Path, studio: Path, sizes: str, stopped: str = CTRL_C) -> list[str]:
    """Train with a reward that is interrupted at batches of these sizes; how to go on."""
    reward = folder / "reward.py"
    reward.write_text(REWARD.format(sizes=sizes, stopped=stopped))
    (folder / "stop").touch()
    words = [
        "train",
        "custom",
        "--prior",
        f"{studio / 'prior'}",
        "--reward",
        f"{reward}:log_reward",
    ]
    ended = told(*words, *OPTIONS.split(), "--out", folder / "run")
    assert ended.code == 130, ended.err
    assert not (folder / "stop").exists()
    again = ended.err.splitlines()[-1].partition(" with: ")[2]
    assert again.endswith("--resume"), ended.err
    return shlex.split(again)[1:]


@pytest.mark.parametrize("stopped", [CTRL_C, TERMINATED])
def test_an_interrupted_certificate_is_made_on_resuming(studio, tmp_path, stopped):
    """Its batches are of 30 and of 10 paths, those of the samples of 12, 4 and 16."""
    again = interrupted(tmp_path, studio, "in (30, 10)", stopped)
    run = tmp_path / "run"
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert "resume to draw samples and certify" in status["message"]
    assert (run / "samples" / "posterior.safetensors").exists()
    assert (run / "report.html").exists()
    assert not (run / "certificate.json").exists()
    ended = told(*again)
    assert ended.code == 0, ended.err
    assert (run / "certificate.json").exists()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_an_interruption_inside_an_update_says_how_to_go_on(studio, tmp_path):
    """The first batch, of 32 prior samples, is scored before there is a run."""
    again = interrupted(tmp_path, studio, "!= 32")
    assert told(*again).code == 0
