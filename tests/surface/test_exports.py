"""The names that users import, and the errors that they can meet."""

import subprocess
from pathlib import Path

import pytest
import torch

import difftilt
from difftilt import errors


def test_every_error_is_exported():
    kinds = {kind.__name__ for kind in vars(errors).values() if isinstance(kind, type)}
    assert kinds <= set(difftilt.__all__)
    assert all(issubclass(getattr(difftilt, kind), difftilt.DifftiltError) for kind in kinds)


def test_types_are_shipped():
    assert (Path(difftilt.__file__).parent / "py.typed").is_file()


def test_star_import_is_the_list():
    shared: dict = {}
    exec("from difftilt import *", shared)
    assert set(shared) - {"__builtins__"} == set(difftilt.__all__)


def _prior() -> difftilt.Prior:
    network = _Zero()
    schedule = difftilt.VariancePreserving()
    return difftilt.load(network, steps=3, schedule=schedule, event_shape=(1,))


class _Zero(torch.nn.Module):
    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def test_each_error_is_raised_by_a_public_path(tmp_path):
    """InputError, RewardError, CheckpointError and TrainingError; see below for MissingPackage."""
    with pytest.raises(difftilt.InputError):
        _prior().tilt(lambda x_0: -x_0[:, 0], beta=0.0)
    with pytest.raises(difftilt.RewardError):
        _prior().tilt(lambda x_0: 1.0).fit(steps=1, batch=4)
    (tmp_path / "file").write_text("")
    with pytest.raises(difftilt.CheckpointError):
        _prior().tilt(lambda x_0: -x_0[:, 0]).fit(steps=1, batch=4, out=tmp_path / "file")
    own = difftilt.BehaviourWeights(on_policy=1.0, pool=0.0)
    nothing = _prior().tilt(lambda x_0: x_0[:, 0] - torch.inf)
    with pytest.raises(difftilt.TrainingError):
        nothing.fit(steps=1, batch=4, warm_start=0.0, behaviour=own)


def test_a_missing_package_is_named_with_its_remedy():
    """In a process that cannot import diffusers."""
    import sys

    program = (
        "import sys; sys.modules['diffusers'] = None\n"
        "from difftilt.cli import main\n"
        "main(['train', 'custom', '--prior', 'x', '--reward', 'math:exp'])"
    )
    source = str(Path(difftilt.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": source}
    )
    assert ended.returncode == 2
    sentence = "'diffusers' is not installed; run: pip install 'difftilt[diffusers]'"
    assert ended.stderr.splitlines()[-1] == f"difftilt: error: {sentence}"
