"""Exact correction by independence Metropolis-Hastings: many short chains, all at once.

Each of B chains is offered a fresh, independent path of the sampler per step and moves to it with
probability ``min(1, w' / w)``. The target π is invariant, whatever the sampler. With the bounded
weights of the defensive mixture (``ω ≤ M / a``) the distance to π falls at least by the factor
``1 - a Z / M`` a step; in practice two or three steps of a trained sampler suffice.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.errors import InputError


class Corrected(NamedTuple):
    """End of the chains.

    Attributes:
        indices: (B,) for each chain, which of its proposals (0 ... steps - 1) it ends at.
        acceptance: share of the offered moves that were taken; nan with a single step, where
            there is none.
    """

    indices: Int[Tensor, " B"]
    acceptance: float


def _check_chains(log_w: Float[Tensor, "steps B"]) -> Float[Tensor, "steps B"]:
    if log_w.ndim != 2 or 0 in log_w.shape:
        raise InputError(f"log_w has shape {tuple(log_w.shape)}; it needs (steps, B), both ≥ 1")
    log_w = log_w.detach().double()
    if bool((log_w.isnan() | (log_w == math.inf)).any()):
        raise InputError("log_w holds NaN or +inf; a log-weight is finite or -inf")
    lost = int((log_w.max(0).values == -math.inf).sum())
    if lost:
        raise InputError(
            f"{lost} of {log_w.shape[1]} chains saw only paths of zero weight; "
            "take more steps, or a sampler that reaches the target"
        )
    return log_w


def independence_metropolis(
    log_w: Float[Tensor, "steps B"], generator: torch.Generator | None = None
) -> Corrected:
    """Run B chains through their proposals: accept with probability ``min(1, w' / w)``.

    Exact in the limit of steps. The first proposal is where a chain starts, so one step returns
    the proposals as they are. A chain at weight 0 takes any move.

    Arguments:
        log_w: (steps, B) log-weights of independent proposals, with respect to the law that they
            were drawn from: ``β log r - Λ`` for q, ``log ω`` for the defensive mixture.
        generator: of the uniforms, on the device of ``log_w``.

    Raises:
        InputError: NaN or +inf, or a chain without a single proposal of positive weight.

    Source: Tierney 1994, section 2.3.3; Mengersen and Tweedie 1996, Theorem 2.1 (the rate).
    """
    log_w = _check_chains(log_w)
    steps, chains = log_w.shape
    uniform = torch.rand(
        steps, chains, generator=generator, dtype=torch.float64, device=log_w.device
    )
    indices = torch.zeros(chains, dtype=torch.long, device=log_w.device)
    current, moves = log_w[0], 0
    for step in range(1, steps):
        # At weight 0 the threshold is -inf or NaN, never above the proposal: the move is taken.
        accept = ~(log_w[step] < current + uniform[step].log())
        indices, current = indices.masked_fill(accept, step), log_w[step].where(accept, current)
        moves += int(accept.sum())
    return Corrected(indices, moves / ((steps - 1) * chains) if steps > 1 else math.nan)
