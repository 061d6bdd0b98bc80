"""The names that users import, and the errors that they can meet."""

import ast
import importlib
import runpy
import subprocess
import sys
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


def test_star_import_is_the_list(tmp_path: Path):
    page = tmp_path / "star.py"
    page.write_text("from difftilt import *\n")
    public = {name for name in runpy.run_path(str(page)) if not name.startswith("__")}
    assert public == {name for name in difftilt.__all__ if not name.startswith("__")}


def test_every_name_is_what_a_type_checker_is_told():
    """The imports that pyright reads and the table that ``__getattr__`` reads say the same."""
    tree = ast.parse(Path(difftilt.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(told) == difftilt.__all__
    for name, home in told.items():
        assert home is not None
        assert difftilt.__getattr__(name) is getattr(importlib.import_module(home), name)
    assert set(difftilt.__all__) <= set(dir(difftilt))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        difftilt.nothing  # noqa: B018


@pytest.mark.parametrize("words", [["--help"], ["--version"], []], ids=" ".join)
def test_help_and_version_do_not_wait_for_torch(words: list[str]):
    program = (
        "import sys; from difftilt.cli import main\n"
        f"main({words})\n"
        "print(sorted({'torch', 'jaxtyping', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    source = str(Path(difftilt.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": source}
    )
    assert ended.returncode == 0 and ended.stdout.strip()
    assert ended.stderr.strip() == "[]"


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
