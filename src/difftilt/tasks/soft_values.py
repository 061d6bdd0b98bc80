"""What a state is worth by the values of some actions in it, where leaving the behaviour costs.

With a price of 1/β per nat of divergence from the behaviour μ, the optimal policy is
``π = μ exp(β Q) / Z``, and a state is worth ``log E_μ[exp(β Q)] / β`` (``soft_value``): π's mean of
Q (``softmax_value``) less the price of its divergence.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def soft_value(
    values: Float[Tensor, "B K"],
    beta: float,
    log_weights: Float[Tensor, "B K"] | None = None,
) -> Float[Tensor, " B"]:
    """``log E[exp(β Q)] / β`` over K actions of each state: the soft state value.

    With actions of a quadrature and their masses it is exact. With K draws of the behaviour it is
    too small on average, by ``Var(exp β Q) / (2 K β E[exp β Q]²)`` for large K.

    Arguments:
        values: Q(s, a_k), nats times α.
        beta: β > 0.
        log_weights: log-masses of the actions; None for K draws of equal weight.
    """
    weights = torch.zeros_like(values) if log_weights is None else log_weights
    return (beta * values + weights.log_softmax(1)).logsumexp(1) / beta


def softmax_value(
    values: Float[Tensor, "B K"],
    beta: float,
    log_weights: Float[Tensor, "B K"] | None = None,
) -> Float[Tensor, " B"]:
    """``Σ_k softmax(β Q)_k Q_k``: the mean of Q under the optimal policy (QGPO's backup).

    It exceeds ``soft_value`` by ``KL(π ‖ μ) / β``.

    Source: Lu et al. 2023, section 4 (arXiv 2304.12824).
    """
    weights = torch.zeros_like(values) if log_weights is None else log_weights
    return ((beta * values + weights.log_softmax(1)).softmax(1) * values).sum(1)
