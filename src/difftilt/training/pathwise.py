"""The third door: the reward's gradient, pulled back through the posterior's own paths.

    paths of q -> log r, ∇ log r -> a_0 = -β ∇ log r -> ``adjoint``: a step's graph at a time

Paths on which r = 0 have no gradient and teach nothing; the others make up the mean.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.adjoint import Cost, match_lean_adjoint, pull_back
from difftilt.chains.chain import Path
from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.objectives.pathwise import PathwiseObjective
from difftilt.replay.behaviour import Scored
from difftilt.training.outcome import Outcome, check, forget_gradients
from difftilt.training.paths import situation
from difftilt.training.state import TrainingState


def pathwise_updates(state: TrainingState, beta: float) -> Iterator[Outcome]:
    """Draw paths, and accumulate one gradient.

    Raises:
        InputError: the reward has no gradient, or the kernel is a mixture.
    """
    objective, plan = state.plan.objective, state.plan
    assert isinstance(objective, PathwiseObjective)
    found = situation(state, beta, plan.batch, ratio=True)
    path = rollout(found.chain, plan.batch, found.noise)
    log_r, slope = reward_gradient(state.log_reward, path)
    assert path.log_ratio is not None
    finite = torch.isfinite(log_r)
    losses = (objective.divergence_weight * path.log_ratio - beta * log_r)[finite]
    check(state, losses, log_r)
    forget_gradients(state)
    matched = _gradient(state, objective, path.select(finite), -beta * slope[finite])
    losses = losses if matched is None else matched
    yield Outcome(losses, {"on_policy": Scored(path, log_r)}, path.log_ratio)


def _gradient(
    state: TrainingState, objective: PathwiseObjective, path: Path, end: Tensor
) -> Tensor | None:
    """Accumulate the gradient of the mean over paths; also the losses of a regression."""
    rows, chunk = len(state.chain.density_steps) + 1, state.plan.chunk
    weights = objective.weights(rows, state.generator) / path.batch
    if objective.lean:
        return match_lean_adjoint(state.chain, path, end, weights, chunk)
    cost = Cost(objective.divergence_weight, objective.drops_score)
    pull_back(state.chain, path, end, weights, cost, chunk)
    return None


def reward_gradient(
    log_reward: Callable[[Tensor, Tensor | None], Tensor], path: Path
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B ..."]]:
    """``log r`` (B,) and ``∇ log r`` (B, *event) at the ends of paths, from one call.

    Arguments:
        log_reward: ``(x_0, condition) -> log r (B,)``, with its graph where x_0 has one.
        path: B paths.

    Raises:
        InputError: the reward has no gradient.
    """
    ask = getattr(log_reward, "differentiable", log_reward)
    x_0 = path.x_0.detach().requires_grad_()
    with torch.enable_grad():
        log_r = ask(x_0, path.condition)
    slope = None
    if log_r.requires_grad:
        (slope,) = torch.autograd.grad(log_r.sum(), x_0, allow_unused=True)
    if slope is None:
        raise InputError(
            "this objective follows the gradient of log r, and the reward has none (it left torch, "
            "rounded, or ran without gradients); make it differentiable, or use an objective that "
            "takes any reward, such as RTB()"
        )
    return log_r.detach(), slope
