"""Trained methods of offline control move from the behaviour to the tilted behaviour."""

import pytest

from control_bandit import Known, build_known, drawn_q, plan_of
from difftilt.recipes.control.methods import (
    trained_methods,
)

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def known() -> Known:
    return build_known()


@pytest.mark.parametrize("name", list(trained_methods()))
def test_trained_methods_move_towards_the_tilted_behaviour(known: Known, name: str):
    """At least a fifth of the way (20 standard errors or so) in some 60 updates."""
    method = trained_methods()[name]
    chain = method.chain(known.setting, plan_of(name))
    found = float(drawn_q(known.setting, chain).mean())
    assert found > known.before + 0.2 * (known.after - known.before)
    if method.consistent and name != "awr":
        # Weighted regression leaves the behaviour's network for the data's own law.
        assert found < known.after + 0.15
