"""Bounded actions for a chain of unbounded states.

A Gaussian chain lives on all of R^A, an action in [-1, 1]^A. Between them is one fixed map, which
prior and posterior share:

| kind | action | state of a logged action |
|---|---|---|
| "clip" | ``clamp(x, -1, 1)`` | the action itself; keeps atoms at the bounds |
| "tanh" | ``tanh(x)`` | ``artanh`` of the action, pulled inside the bounds first |

The tilted law of the chain is ``p(x) exp(β Q(s, map(x)))``. Its image under the map is exactly
``μ(a) exp(β Q(s, a))``, because the tilt is a function of the image: *no Jacobian belongs into the
reward*. It cancels in q/p, too. It is needed for one thing only, the density of an action itself:

    log π(a | s) = log q(x) - Σ log(1 - tanh² x).

(To add ``Σ log(1 - a²)`` to the reward, as if the prior were a density of a, tilts by it, and pulls
actions away from the bounds.)
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError

Bound = Literal["clip", "tanh"]
MARGIN = 0.01


def bounded(x: Float[Tensor, "*B A"], bound: Bound) -> Float[Tensor, "*B A"]:
    """The actions of states of the chain, in [-1, 1]."""
    return x.tanh() if bound == "tanh" else x.clamp(-1.0, 1.0)


def unbounded(actions: Float[Tensor, "*B A"], bound: Bound) -> Float[Tensor, "*B A"]:
    """States of the chain whose actions are the given ones; under "tanh" at most 0.99 in size.

    Raises:
        InputError: an action outside [-1, 1], or none at all (NaN).
    """
    if not bool((actions.abs() <= 1 + 1e-5).all()):
        raise InputError(
            f"actions must lie in [-1, 1], got {float(actions.min()):.3g} to "
            f"{float(actions.max()):.3g}; scale them by the bounds of the action space"
        )
    if bound == "clip":
        return actions.clamp(-1.0, 1.0)
    return actions.clamp(MARGIN - 1, 1 - MARGIN).atanh()


def log_stretch(x: Float[Tensor, "*B A"]) -> Float[Tensor, "*B"]:
    """``Σ log d tanh(x) / dx``, nats: what the log-density of x loses to be that of tanh x."""
    # log(1 - tanh² x) = 2 (log 2 - x - softplus(-2 x)) has no difference of near numbers.
    return (2 * (math.log(2) - x - torch.nn.functional.softplus(-2 * x))).sum(-1)
