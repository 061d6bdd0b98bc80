"""What the guides show runs as it stands, and what they name exists."""

import inspect
import re
import runpy
from pathlib import Path

import pytest

import difftilt
from difftilt.cli import COMMANDS
from readme import GUIDES, command_lines, python_blocks

CALL = re.compile(r"`(?:difftilt\.)?([A-Z]\w*[a-z]\w*|RTB)\(")
OPTION = re.compile(r"\b([a-z]\w+)=")


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_every_python_block_of_a_guide_runs(page: Path, tmp_path, monkeypatch, unchecked):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "page.py"
    script.write_text("\n".join(python_blocks(page)), "utf-8")
    assert "prior" in runpy.run_path(str(script))


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_is_short(page: Path):
    assert len(page.read_text("utf-8").splitlines()) <= 80


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_names_what_exists(page: Path):
    text = page.read_text("utf-8")
    assert set(CALL.findall(text)) <= set(difftilt.__all__)
    assert {words[0] for words in command_lines(page)} <= set(COMMANDS)
    for example in re.findall(r"examples/\w+\.py", text):
        assert (page.parents[2] / example).is_file()


def parameters() -> set[str]:
    """Names of the arguments of everything that the package exports, and of its methods."""
    exported = [getattr(difftilt, name) for name in difftilt.__all__]
    errors = difftilt.DifftiltError
    public = [e for e in exported if not (inspect.isclass(e) and issubclass(e, errors))]
    methods = [
        value
        for kind in (difftilt.Prior, difftilt.Target, difftilt.Posterior, difftilt.TextPrior)
        for value in vars(kind).values()
        if inspect.isfunction(value)
    ]
    return {name for each in public + methods for name in inspect.signature(each).parameters}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_options_that_a_guide_names_exist(page: Path):
    inline = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = {name for code in re.findall(r"`[^`]+`", inline) for name in OPTION.findall(code)}
    assert named <= parameters()


def test_every_guide_shows_code():
    assert len(GUIDES) == 7 and all(python_blocks(page) for page in GUIDES)
