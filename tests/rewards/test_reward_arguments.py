"""Arguments of the wrappers out of range, and rewards loaded by name."""

import math
import sys

import pytest
import torch

from difftilt.errors import InputError
from difftilt.rewards.loading import load_reward
from difftilt.rewards.wrappers import Bounded, Floored, GaussianLikelihood, Summed, Tempered


def first(x_0):
    return x_0[:, 0]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(
        InputError, match=rf"^temperature is {temperature}; give a finite number above 0$"
    ):
        Tempered(first, temperature)


@pytest.mark.parametrize("std", [0.0, -0.5, math.nan])
def test_a_std_is_positive(std):
    with pytest.raises(InputError, match=rf"^std is {std}; give a finite number above 0$"):
        GaussianLikelihood(torch.zeros(2), lambda x: x, std)


def test_bounds_floors_and_weights_are_finite():
    with pytest.raises(InputError, match=r"^bound is inf; give a finite number$"):
        Bounded(first, math.inf)
    with pytest.raises(InputError, match=r"^floor is -inf; give a finite number$"):
        Floored(first, -math.inf)
    with pytest.raises(InputError, match=r"^a weight is nan; give a finite number$"):
        Summed([first], [math.nan])


def test_there_is_one_weight_per_reward_and_something_to_sum():
    with pytest.raises(InputError, match=r"^2 rewards with 1 weights; give one weight per reward$"):
        Summed([first, first], [1.0])
    for nothing in (Summed, lambda _: Summed([first], [0.0])):
        with pytest.raises(InputError, match=r"^no reward with a weight other than 0; give at "):
            nothing([])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, empty; ``sys.path`` and ``sys.modules`` are put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    return tmp_path


SOURCE = """
import math

threshold = 0.5

def log_reward(x_0):
    return x_0[:, 0] + 1.0

class Scorer:
    def __call__(self, x_0):
        return x_0[:, 0] + 2.0

    def method(self, x_0):
        return x_0[:, 0] + 3.0

scorer = Scorer()
"""


@pytest.mark.parametrize(
    ("attribute", "added"), [("log_reward", 1.0), ("scorer", 2.0), ("scorer.method", 3.0)]
)
@pytest.mark.parametrize("spec", ["brightness.py", "./brightness.py", "brightness"])
def test_a_reward_is_found_by_file_or_module(folder, spec, attribute, added):
    (folder / "brightness.py").write_text(SOURCE)
    log_reward = load_reward(f"{spec}:{attribute}")
    assert log_reward(torch.zeros(2, 1)).tolist() == [added] * 2


def test_a_dotted_module_of_the_current_folder_comes_first(folder):
    (folder / "wanted").mkdir()
    (folder / "wanted" / "cats.py").write_text("def log_reward(x_0):\n    return 7.0\n")
    assert load_reward("wanted.cats:log_reward")(None) == 7.0


def test_a_file_elsewhere_imports_its_neighbours_and_the_current_folder(folder):
    (folder / "here.py").write_text("one = 1.0\n")
    (folder / "far").mkdir()
    (folder / "far" / "beside.py").write_text("two = 2.0\n")
    (folder / "far" / "reward.py").write_text(
        "from here import one\nfrom beside import two\nlog_reward = lambda x_0: one + two\n"
    )
    assert load_reward(f"{folder}/far/reward.py:log_reward")(None) == 3.0


def test_a_file_does_not_replace_a_module_of_the_same_name(folder):
    import json

    (folder / "json.py").write_text("def log_reward(x_0):\n    return 1.0\n")
    assert load_reward("json.py:log_reward")(None) == 1.0
    assert sys.modules["json"] is json


def test_dataclasses_of_a_file_find_their_module(folder):
    (folder / "reward.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Scorer:\n    scale: float = 2.0\n"
        "    def __call__(self, x_0):\n        return self.scale\n\nscorer = Scorer()\n"
    )
    assert load_reward("reward.py:scorer")(None) == 2.0


BAD_SPECS = [
    ("brightness", "is no name; write package.module:function or file.py:function"),
    ("brightness:", "is no name; write package.module:function or file.py:function"),
    (":log_reward", "is no name; write package.module:function or file.py:function"),
    ("dim.py:log_reward", r"cannot be loaded: there is no file {folder}/dim.py"),
    (
        "dim.light:log_reward",
        r"cannot be loaded: there is no module 'dim' in the current folder \({folder}\) "
        r"or among the packages of \S+",
    ),
    (
        "brightness.dim:log_reward",
        r"cannot be loaded: there is no module 'brightness.dim' in the current folder .*",
    ),
    (
        "brightness.py:log_rewards",
        r"cannot be loaded: brightness.py has no 'log_rewards'; did you mean 'log_reward'\?",
    ),
    ("brightness:zebra", "cannot be loaded: brightness has no 'zebra'"),
    ("brightness.py:threshold", "is a float; name a function or another callable object"),
    ("brightness.py:Scorer", "is a class; name a function or another callable object"),
]


@pytest.mark.parametrize(("spec", "sentence"), BAD_SPECS)
def test_a_wrong_name_is_one_sentence(folder, spec, sentence):
    (folder / "brightness.py").write_text(SOURCE)
    with pytest.raises(InputError, match=rf"^reward '{spec}' {sentence.format(folder=folder)}$"):
        load_reward(spec)


@pytest.mark.parametrize(
    ("source", "quoted", "cause"),
    [
        (
            "import no_such_package",
            "ModuleNotFoundError: No module named 'no_such_package'",
            ImportError,
        ),
        ("1 / 0", "ZeroDivisionError: division by zero", ZeroDivisionError),
        ("import sys; sys.exit(2)", "SystemExit: 2", SystemExit),
        ("def log_reward(x_0)", r"SyntaxError: expected ':' \(.*line 1\)", SyntaxError),
    ],
)
@pytest.mark.parametrize("spec", ["broken.py", "broken"])
def test_an_error_on_import_is_quoted_and_chained(folder, spec, source, quoted, cause):
    (folder / "broken.py").write_text(source)
    path = rf"{folder}/broken.py" if spec.endswith(".py") else "broken"
    sentence = rf"^reward '{spec}:log_reward' cannot be loaded: importing {path} raised {quoted}$"
    with pytest.raises(InputError, match=sentence) as raised:
        load_reward(f"{spec}:log_reward")
    assert isinstance(raised.value.__cause__, cause)
