"""The gradient of every kind of objective on tokens does not depend on the chunk it is made in."""

import pytest
import torch
from torch import Tensor

from difftilt.forms import FullCopy
from difftilt.objectives.base import Objective
from difftilt.objectives.ddpp import DDPP
from difftilt.objectives.forward import AdvantageWeighted
from difftilt.objectives.group_policy import GroupPolicyGradient
from difftilt.objectives.payoff import RGDM
from difftilt.objectives.policy import DPOK
from difftilt.objectives.subtrajectory import SubTrajectoryBalance
from difftilt.objectives.wake import Wake
from difftilt.posteriors import Prior
from difftilt.training.plan import Optimisation, Training, suited
from difftilt.training.state import TrainingState
from difftilt.training.steps import training_step
from tabular import TableValue, arbitrary, conditionals, coupled, joint, token_chain

pytestmark = pytest.mark.usefixtures("unchecked")

OBJECTIVES = [
    Wake(least_ess=0.0),
    DDPP(),
    GroupPolicyGradient(),
    DPOK(),
    RGDM(candidates=3),
    AdvantageWeighted(states="chain"),
    SubTrajectoryBalance(),
]


def gradient(objective: Objective, chunk: int) -> Tensor:
    """Of the first update, by all parameters."""
    options = suited(objective) | {
        "warm_start": 0.0,
        "batch": 32,
        "chunk": chunk,
        "optimisation": Optimisation(gradient_clip=None),
    }
    plan = Training(**options, objective=objective)
    posterior = Prior(token_chain(conditionals(joint()))).tilt(coupled).posterior(FullCopy())
    kernel = posterior.chain.kernel
    assert kernel is not None
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += 0.3 * arbitrary(5)
    value = TableValue() if "log_h" in objective.needs else None
    state = TrainingState(posterior.chain, posterior.target.score, 1.0, plan, value=value)
    training_step(state)
    others = [] if value is None else list(value.parameters())
    seen = [p.grad.flatten() for p in [*state.parameters, *others] if p.grad is not None]
    return torch.cat(seen)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_the_chunk_does_not_change_the_gradient(objective: Objective):
    whole, parts = gradient(objective, 10_000), gradient(objective, 7)
    assert float(whole.norm()) > 1e-2
    assert float((whole - parts).norm() / whole.norm()) < 1e-5
