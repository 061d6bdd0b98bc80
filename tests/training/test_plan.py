"""Options of a training that are out of range are refused where they are written."""

import math

import pytest

from difftilt.errors import InputError
from difftilt.objectives.ddpp import DDPP
from difftilt.training.plan import RTB, BehaviourWeights, Optimisation, Replaying, Training

NAN = math.nan


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        (Training, "steps", (0, NAN, "9")),
        (Training, "seconds", (0, -1, NAN, math.inf)),
        (Training, "network_calls", (0, -5)),
        (Training, "batch", (0, 8.5)),
        (Training, "warm_start", (-0.1, 1.1, NAN)),
        (Training, "warm_start_from", ("prior",)),
        (Training, "warm_start_loss", ("x",)),
        (Training, "anchor", (-1, NAN)),
        (Training, "warm_start_subset", (0,)),
        (Training, "paths_per_condition", (0,)),
        (Training, "chunk", (0,)),
        (Training, "subset", (0, 2.5)),
        (Training, "widen", (0, NAN)),
        (Training, "beta_start", (-1, NAN)),
        (Training, "beta_annealed", (-0.5, 2)),
        (Training, "seed", (2**70, -(2**70), 0.5, None)),
        (Optimisation, "learning_rate", (-1, NAN, math.inf)),
        (Optimisation, "hidden_learning_rate", (-1,)),
        (Optimisation, "head_learning_rate", (-1,)),
        (Optimisation, "log_z_learning_rate", (-1,)),
        (Optimisation, "balance_scale", (-1,)),
        (Optimisation, "decay_from", (-1, 2)),
        (Optimisation, "gradient_clip", (-1, 0)),
        (Optimisation, "ema", (-0.1, 1, 5, NAN)),
        (Optimisation, "warm_up", (-1, 1.5)),
        (Replaying, "capacity", (0,)),
        (Replaying, "priority", ("newest",)),
        (Replaying, "pool_capacity", (0,)),
        (Replaying, "pool_memory", (0,)),
        (Replaying, "pool_fresh", (-1,)),
        (Replaying, "pool_prior_share", (-1, 2)),
        (Replaying, "pool_effective", (0, 2, NAN)),
        (RTB, "log_z", ("exact",)),
        (RTB, "residual_clip", (-1, 0, NAN)),
        (DDPP, "residual_clip", (-1,)),
    ],
)
def test_a_field_out_of_range_is_named(kind, field, values):
    for value in values:
        record = kind()
        object.__setattr__(record, field, value)  # past the type checker of the tests
        with pytest.raises(InputError, match=f"^{field}=") as said:
            record.__post_init__()
        assert repr(value) in str(said.value)


@pytest.mark.parametrize("share", [-1.0, NAN, math.inf])
def test_shares_of_a_batch_are_finite(share):
    with pytest.raises(InputError, match="behaviour weights must be finite, >= 0 and not all 0"):
        BehaviourWeights(prior=share)


def test_what_is_at_the_edge_is_taken():
    Training(steps=1, warm_start=1, seconds=1e-3, network_calls=1, beta_start=0.0, seed=-1)
    Optimisation(learning_rate=0.0, ema=0.0, gradient_clip=None, decay_from=1)
    Replaying(pool_fresh=0, pool_effective=1)
