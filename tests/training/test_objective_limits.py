"""Every objective on a closed form: the consistent ones reach it, the others do not."""

import pytest
import torch

from difftilt.errors import InputError
from difftilt.objectives.balance import RTB
from difftilt.objectives.base import Objective, PathObjective, kinds
from difftilt.objectives.policy import DDPO, DPOK, FlowGRPO, Reinforce
from difftilt.objectives.subtrajectory import (
    DetailedBalance,
    PathConsistency,
    SubTrajectoryBalance,
)
from difftilt.sampling.draws import Tilted, certify
from difftilt.training.loop import train
from toys import Likelihood, quick_plan, toy_state

CONSISTENT: dict[str, tuple[Objective, dict]] = {
    "balance": (RTB(), {}),
    "detailed balance": (DetailedBalance(), {"learning_rate": 0.03}),
    "sub-trajectory balance": (SubTrajectoryBalance(), {"learning_rate": 0.03}),
    "path consistency": (PathConsistency(2, temperature=0.7), {"learning_rate": 0.03}),
    "REINFORCE": (Reinforce(), {"batch": 256, "learning_rate": 0.03}),
    "PPO": (DDPO(0.2, kl=True, updates=2), {"batch": 256, "learning_rate": 0.03}),
}
BIASED: dict[str, Objective] = {
    "DDPO": DDPO(),
    "DDPO clipped": DDPO(1e-2, updates=2),
    "Flow-GRPO": FlowGRPO(),
}


def fitted(objective: Objective, steps: int = 200, chunk: int = 16_384, **changes):
    state = toy_state(quick_plan(steps=steps, objective=objective, chunk=chunk, **changes))
    for _ in train(state):
        pass
    state.use_average()
    return state


def judged(state) -> tuple[float, float]:
    """Effective sample size and error of the importance log Z, of 4,000 paths."""
    target = Tilted(state.log_reward)
    found = certify(state.chain, target, 4000, share=0.01)
    truth = Likelihood().log_z(state.chain.prior)
    return found.ess.value if hasattr(found.ess, "value") else found.ess, found.log_z.value - truth


@pytest.mark.parametrize("name", CONSISTENT)
def test_consistent_objectives_reach_the_posterior(name: str):
    objective, changes = CONSISTENT[name]
    assert objective.consistent
    ess, error = judged(fitted(objective, **changes))
    assert ess > 0.95 and abs(error) < 0.02


@pytest.mark.filterwarnings("ignore::difftilt.training.watch.RewardHacking")
@pytest.mark.parametrize("name", BIASED)
def test_maximising_the_reward_leaves_the_posterior(name: str):
    """DDPO narrows onto the mode: the truth's std is .48, and its weights become uneven."""
    objective = BIASED[name]
    assert not objective.consistent
    state = fitted(objective, steps=400, learning_rate=0.05)
    ess, _ = judged(state)
    assert ess < 0.7


def test_dpok_comes_near_but_keeps_its_bias():
    assert not DPOK().consistent
    ess, error = judged(fitted(DPOK(), batch=256, learning_rate=0.03))
    assert 0.5 < ess < 0.999 and abs(error) < 0.1


@pytest.mark.parametrize("name", [*CONSISTENT, "DPOK"])
def test_the_chunk_does_not_change_the_update(name: str):
    """Two passes in chunks and one pass with a graph: the same gradient of the first update."""
    objective = DPOK() if name == "DPOK" else CONSISTENT[name][0]
    found = []
    for chunk in (16_384, 40):
        state = fitted(objective, steps=1, chunk=chunk, gradient_clip=None)
        value = [] if state.value is None else list(state.value.parameters())
        seen = [p.grad.flatten() for p in [*state.parameters, *value] if p.grad is not None]
        found.append(torch.cat(seen))
    assert float(found[0].norm()) > 1e-3
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-5


def test_every_objective_of_the_first_door_is_tested_here():
    tested = {type(o) for o, _ in CONSISTENT.values()} | {type(o) for o in BIASED.values()}
    assert tested | {DPOK} == {k for k in kinds().values() if issubclass(k, PathObjective)}


def test_on_policy_objectives_refuse_other_paths():
    with pytest.raises(InputError, match="Reinforce is an on-policy objective"):
        quick_plan(objective=Reinforce(), warm_start=0.3)
