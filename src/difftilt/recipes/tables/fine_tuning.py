"""Plans for a copy of a large pre-trained network, where updates are few and dear.

* ``fine_tuning``: a warm start denoises ends that were resampled by their reward, held to the prior
  step by step, and a short balance phase follows;
* ``guided_fine_tuning``: for a copy beside learned strengths of guidance, which needs the reward's
  gradient: balance on own paths from the start.

What was tried instead is in ``docs/log.md``.
"""

from dataclasses import replace
from typing import Any

from difftilt.recipes.tables.makers import ON_POLICY
from difftilt.training.plan import RTB, BehaviourWeights, Optimisation, Replaying, Training

_OPTIMISATION = Optimisation(learning_rate=1e-3, balance_scale=0.3, decay_from=0.5, ema=0.98)
_PLAN = Training(
    steps=240,
    batch=16,
    warm_start=0.83,
    warm_start_loss="denoising",
    anchor=0.008,
    chunk=128,
    subset=8,
    warm_start_subset=8,
    objective=RTB(residual_clip=10.0),
    optimisation=_OPTIMISATION,
    behaviour=BehaviourWeights(on_policy=0.5, pool=0.5),
)


def fine_tuning(replaying: Replaying, rate: float = 1e-3, **changes: Any) -> Training:
    """The plan with a pool of its own.

    Arguments:
        replaying: the pool of the prior's paths.
        rate: learning rate of the warm start.
        changes: other fields of ``Training``.
    """
    optimisation = replace(_OPTIMISATION, learning_rate=rate)
    return replace(_PLAN, **{"replaying": replaying, "optimisation": optimisation, **changes})


def guided_fine_tuning(steps: int) -> Training:
    """Balance on own paths: strengths of guidance find their size, and a copy follows slowly.

    Arguments:
        steps: updates.
    """
    return Training(
        steps=steps,
        batch=16,
        paths_per_condition=8,
        warm_start=0.0,
        chunk=640,
        objective=RTB(log_z="batch"),
        behaviour=ON_POLICY,
        optimisation=Optimisation(
            learning_rate=1e-4, head_learning_rate=0.05, decay_from=0.5, ema=0.9
        ),
    )
