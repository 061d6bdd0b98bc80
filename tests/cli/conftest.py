"""A tiny pipeline on disk, the README's reward file, and a finished run of the two."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import difftilt
from commands import Ended, told
from readme import reward_file

SOURCE = Path(difftilt.__file__).parents[1]
SHORT = ["--training.steps", "8", "--training.batch", "8", "--training.optimisation.learning-rate"]
SHORT += ["1e-5", "--samples", "8", "--certificate-paths", "32"]


@pytest.fixture
def difftilt_command() -> Callable[..., Ended]:
    """``told``: runs a command in this process."""
    return told


@pytest.fixture
def refused() -> Callable[..., str]:
    """Runs a command that must be refused in one sentence; returns the sentence."""

    def run(*words: object) -> str:
        ended = told(*words)
        assert ended.code == 2, ended
        last = ended.err.splitlines()[-1]
        assert last.startswith("difftilt: error: ")
        assert ended.err.count("difftilt: error: ") == 1
        assert "Traceback" not in ended.err
        assert not ended.out
        return last.removeprefix("difftilt: error: ")

    return run


@pytest.fixture
def child() -> Callable[..., subprocess.Popen]:
    """Starts a command in a process of its own; ``before`` is python that it runs first."""

    def start(*words: object, before: str = "", **options) -> subprocess.Popen:
        program = f"{before}\nfrom difftilt.cli import main\nmain()"
        return subprocess.Popen(
            [sys.executable, "-c", program, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "80"},
            **options,
        )

    return start


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``prior`` (an 8x8 pipeline) and the README's ``reward.py``."""
    from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

    folder = tmp_path_factory.mktemp("studio")
    (folder / "reward.py").write_text(reward_file())
    torch.manual_seed(7)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    # So set, its last step ends at a noise level above zero and has a density.
    scheduler = DDIMScheduler(set_alpha_to_one=False, steps_offset=1)
    DDPMPipeline(unet, scheduler).save_pretrained(folder / "prior")
    return folder


@pytest.fixture(scope="session")
def pair(studio: Path) -> list[str]:
    """The options that name prior and reward, and a short chain."""
    reward = f"{studio / 'reward.py'}:log_reward"
    prior = f"{studio / 'prior'}"
    return ["--prior", prior, "--reward", reward, "--log-bound", "0", "--steps", "5"]


class Trained(NamedTuple):
    """A finished run: its folder, the words of its command but for --out, and how it ended."""

    folder: Path
    words: list[str]
    ended: Ended


@pytest.fixture(scope="session")
def trained(pair: list[str], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of eight updates; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "bright"
    words = ["train", "custom", *pair, *SHORT]
    return Trained(folder, words, told(*words, "--out", folder))


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(trained.folder, tmp_path / "run"))
