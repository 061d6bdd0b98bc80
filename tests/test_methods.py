"""The bench's registry: every method runs on a problem within its budget of network calls."""

import pytest

from difftilt.errors import InputError
from difftilt.recipes.methods import Bench, Effort, default_methods, methods

CALLS = 60_000


def test_ablations_are_not_run_by_default():
    assert set(default_methods()) < set(methods())
    assert "rtb" in default_methods() and "rtb_on_policy" not in default_methods()


def test_an_unknown_method_is_named_before_anything_runs():
    with pytest.raises(InputError, match="unknown method 'nope'; choose one of rtb"):
        Bench(["gmm9of25"], ["rtb", "nope"], [0], Effort(CALLS))
