"""The choice of β by what it costs: nats away from the behaviour, on held-out states."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError


def divergences(q: Float[Tensor, "B K"], betas: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    """``KL(μ exp(β Q)/Z ‖ μ)`` in nats, averaged over states, for each β: from K support actions.

    At most log K, where one action has all the weight.
    """
    weighted = betas[:, None, None] * q
    log_share = torch.log_softmax(weighted, 2)
    return (log_share.exp() * (log_share + math.log(q.shape[1]))).sum(2).mean(1)


def beta_of_divergence(q: Float[Tensor, "B K"], nats: float = 1.0) -> float:
    """The β whose tilted behaviour is on average ``nats`` away from the behaviour.

    It is read off held-out states and a critic, before any policy is trained; no return enters.

    Arguments:
        q: Q of K support actions in each of B held-out states.
        nats: the wanted mean KL, between 0 and half of log K, where K actions still tell.

    Raises:
        InputError: ``nats`` out of range, or a critic that prefers no action.
    """
    check_nats(nats, q.shape[1])
    spread = float(q.std(1).mean())
    if not spread > 0:
        raise InputError("the critic gives all support actions one value; train it for longer")
    low, high = math.log(1e-3 / spread), math.log(1e3 / spread)
    for _ in range(60):
        middle = 0.5 * (low + high)
        found = float(divergences(q, q.new_tensor([math.exp(middle)]))[0])
        low, high = (middle, high) if found < nats else (low, middle)
    return math.exp(0.5 * (low + high))


def check_nats(nats: float, count: int) -> None:
    """Refuse a divergence that some support actions cannot show.

    Arguments:
        nats: the wanted mean KL.
        count: K, support actions per state.

    Raises:
        InputError: it is not above 0, or more than half of log K.
    """
    limit = 0.5 * math.log(count)
    if not 0 < nats <= limit:
        raise InputError(
            f"nats={nats} must lie in (0, {limit:.3g}], half of what {count} support actions "
            "can show"
        )
