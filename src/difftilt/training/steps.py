"""One update: a door accumulates a gradient, the optimisers move, the buffer remembers.

The door is the objective's (``difftilt.objectives.base``); the warm start has its own two.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from difftilt.diagnostics.collapse import OwnPaths, Weights, mean_divergence, weights_of
from difftilt.diagnostics.features import diversity
from difftilt.errors import TrainingError
from difftilt.replay.behaviour import Scored
from difftilt.training.denoising import denoising_updates
from difftilt.training.noising import end_updates
from difftilt.training.outcome import Outcome
from difftilt.training.paths import path_updates
from difftilt.training.pathwise import pathwise_updates
from difftilt.training.state import TrainingState

MOST_SAMPLES = 64
"""Own ends whose pairs are compared at each update."""

DOORS: dict[str, Callable[[TrainingState, float], Iterator[Outcome]]] = {
    "paths": path_updates,
    "ends": end_updates,
    "pathwise": pathwise_updates,
}


@dataclass(frozen=True)
class Metrics:
    """What one update tells.

    Arguments:
        step: updates done.
        phase: "warm start" or "balance".
        loss: mean loss.
        log_z: importance estimate of ``log Z`` from this batch's own-policy paths (else nan).
        ess: effective sample size of the same paths, as a share.
        log_r: mean ``log r`` of the same paths.
        beta: β of this update.
        gradient_norm: before clipping.
        kl: mean log-ratio to the prior of the same paths: ``KL(q ‖ p)``, nats.
        diversity: mean pairwise distance of their ends, within each condition.
        alarm: the sentence about reward hacking, at the update where it goes off, else None.
    """

    step: int
    phase: str
    loss: float
    log_z: float
    ess: float
    log_r: float
    beta: float
    gradient_norm: float
    kl: float = math.nan
    diversity: float = math.nan
    alarm: str | None = None


def training_step(state: TrainingState) -> Metrics:
    """Draw paths, move the posterior once, and say how it went.

    Raises:
        TrainingError: the loss or the gradient is not finite; names the cause.
    """
    beta = state.present_beta
    phase = "warm start" if state.warming else "balance"
    norm, outcome = math.nan, None
    for outcome in _door(state)(state, beta):  # noqa: B007
        norm = _move(state)
    assert outcome is not None
    _remember(state, outcome.parts, outcome.ratios, beta)
    parts, log_r, ratios = outcome.parts, outcome.log_r, outcome.ratios
    own = slice(0, parts["on_policy"].path.batch) if "on_policy" in parts else slice(0, 0)
    log_w = beta * log_r[own] - ratios[own]
    log_z, ess, mean_log_r = _estimates(log_w, log_r[own])
    kl, spread = mean_divergence(ratios[own]), _spread(state, parts)
    weights = _weights(state, parts, log_w, beta)
    alarm = state.watch.seen(OwnPaths(state.step, mean_log_r, ess, spread, weights))
    loss = float(outcome.losses.mean())
    return Metrics(state.step, phase, loss, log_z, ess, mean_log_r, beta, norm, kl, spread, alarm)


def _weights(
    state: TrainingState, parts: dict[str, Scored], log_w: Tensor, beta: float
) -> tuple[Weights, ...]:
    """Weights of own paths by condition; none where they are unknown or of one condition."""
    if "on_policy" not in parts or bool(log_w.isnan().any()):
        return ()
    return weights_of(log_w, parts["on_policy"].path.condition, beta, state.step)


def _spread(state: TrainingState, parts: dict[str, Scored]) -> float:
    """Diversity of own ends, or of their features; nan where no own path was drawn."""
    if "on_policy" not in parts:
        return math.nan
    path = parts["on_policy"].path
    ends = path.x_0[:MOST_SAMPLES]
    condition = None if path.condition is None else path.condition[:MOST_SAMPLES]
    return diversity(ends if state.features is None else state.features(ends), condition)


def _door(state: TrainingState) -> Callable[[TrainingState, float], Iterator[Outcome]]:
    if not state.warming:
        return DOORS[state.plan.objective.door]
    return denoising_updates if state.plan.warm_start_loss == "denoising" else path_updates


def _move(state: TrainingState) -> float:
    limit = state.plan.optimisation.gradient_clip
    norm = torch.nn.utils.clip_grad_norm_(
        state.parameters, math.inf if limit is None else limit, foreach=True
    )
    if not bool(torch.isfinite(norm)):
        raise TrainingError(
            f"non-finite gradient at update {state.step + 1}: the loss is finite but its gradient "
            "is not; lower the learning rate or set residual_clip (the last checkpoint is intact)"
        )
    scale = state.learning_rate_scale()
    for optimiser in state.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] * scale
        optimiser.step()
    state.step += 1
    state.average.update(state.step)
    return float(norm)


def _remember(state: TrainingState, parts: dict[str, Scored], ratios: Tensor, beta: float) -> None:
    if not {"replay", "local_search"} & set(state.behaviours):
        return
    sizes = [scored.path.batch for scored in parts.values()]
    found = list(zip(parts.values(), ratios.split(sizes), strict=True))
    # Rows of the buffer are valid until something is added.
    for scored, ratio in sorted(found, key=lambda each: each[0].replayed is None):
        residual = ratio - beta * scored.log_r
        residual = residual - residual[torch.isfinite(residual)].mean()
        if scored.replayed is not None:
            state.buffer.update(scored.replayed, residual)
        else:
            state.buffer.add(scored.path.x_0, scored.log_r, residual, scored.path.condition)


def _estimates(log_w: Tensor, log_r: Tensor) -> tuple[float, float, float]:
    """Importance ``log Z``, effective sample size, mean ``log r``; nan if no weight is finite."""
    if not bool(torch.isfinite(log_w).any()):
        return math.nan, math.nan, math.nan
    log_z = float(torch.logsumexp(log_w, 0)) - math.log(len(log_w))
    w = (log_w - log_w.max()).exp()
    ess = float(w.sum() ** 2 / (w**2).sum() / len(w))
    return log_z, ess, float(log_r.mean())
