"""A training from Python is kept in a folder: continued bit for bit, and read again."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

import difftilt
from commands import told
from difftilt.errors import CheckpointError, InputError
from difftilt.posteriors import Posterior, Prior, Target
from difftilt.training.snapshot import trained
from toys import gaussian_chain


def right(x_0: Tensor) -> Tensor:
    return -torch.relu(-x_0[:, 0])


class Interrupting:
    """The same reward, which sends Ctrl-C while it is asked for the third time."""

    asked = 0
    __name__ = "right"

    def __call__(self, x_0: Tensor) -> Tensor:
        self.asked += 1
        if self.asked == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return right(x_0)


def target(reward=right, beta: float = 1.0, steps: int = 3) -> Target:
    return Prior(gaussian_chain(2, steps), source="a toy").tilt(reward, beta, log_bound=0.0)


def fitted(of: Target, folder: Path, seed: int = 0, **options) -> Posterior:
    torch.manual_seed(seed)
    objective = difftilt.RTB(log_z="learned")
    return of.fit(objective, **{"steps": 6, "batch": 16, "out": folder, **options})


def weights(posterior: Posterior) -> list[Tensor]:
    return list(trained(posterior.chain).values())


def equal(one: Posterior, other: Posterior) -> bool:
    pairs = zip(weights(one), weights(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_kept_posterior_is_read_again(tmp_path: Path):
    first = fitted(target(), tmp_path / "run")
    again = target().posterior().load(tmp_path / "run")
    assert equal(first, again)
    assert torch.equal(first.sample(5), again.sample(5))


def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path: Path):
    whole = fitted(target(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match=r"go on with fit\(.*, resume=True\)"):
        fitted(target(Interrupting()), tmp_path / "run")
    with pytest.raises(
        CheckpointError, match=r"is not finished; continue it with fit\(.*resume=Tr"
    ):
        target().posterior().load(tmp_path / "run")
    resumed = fitted(target(), tmp_path / "run", seed=9, resume=True)
    assert equal(whole, resumed)
    assert equal(whole, target().posterior().load(tmp_path / "run"))


def test_a_training_that_is_there_is_not_written_over(tmp_path: Path):
    first = fitted(target(), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"already holds a run; resume it \(.*resume=True\)\)"
    ):
        fitted(target(), tmp_path)
    assert equal(first, fitted(target(), tmp_path, resume=True))
    with pytest.raises(CheckpointError, match="there is no run in"):
        fitted(target(), tmp_path / "other", resume=True)
    with pytest.raises(InputError, match="name it with out="):
        target().fit(steps=1, resume=True)


@pytest.mark.parametrize(
    ("of", "options", "named"),
    [
        (target(beta=2.0), {}, "config.beta is 1.0 there and 2.0 here"),
        (target(steps=4), {}, "chain.diffusion.levels.alpha.entries is 4 there and 5 here"),
        (target(lambda x_0: right(x_0)), {}, "reward is"),
        (target(), {"steps": 7}, "config.training.steps is 6 there and 7 here"),
        (target(), {"form": difftilt.Perceptron(2)}, "config.form.components is 4 there and 2"),
        (target(), {"initial": True}, "config.initial is false there and true here"),
    ],
)
def test_another_training_is_not_continued(of, options, named, tmp_path: Path):
    fitted(target(), tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another run") as said:
        fitted(of, tmp_path, resume=True, **options)
    assert named in str(said.value)
    if "steps" not in options:
        posterior = of.posterior(options.get("form"), options.get("initial", False))
        with pytest.raises(CheckpointError, match="belongs to another run"):
            posterior.load(tmp_path)


def test_the_command_line_says_how_to_read_it(tmp_path: Path):
    fitted(target(), tmp_path / "run")
    ended = told("sample", tmp_path / "run")
    assert ended.code == 2
    assert f"target.posterior(form).load('{tmp_path / 'run'}')" in ended.err
    with pytest.raises(
        InputError, match=r"fit\(..., out=FOLDER\).*posterior\(form\).load\(FOLDER\)"
    ):
        target().posterior().export(tmp_path / "out")


def test_what_is_no_fit_is_not_read(tmp_path: Path):
    with pytest.raises(CheckpointError, match="there is no run in"):
        target().posterior().load(tmp_path)
    (tmp_path / "config.json").write_text('{"recipe": "custom", "config": {}}')
    with pytest.raises(CheckpointError, match="draw from it with difftilt sample"):
        target().posterior().load(tmp_path)
