"""One update through the first door: losses of path log-ratios.

    behaviours -> paths -> Λ, β log r -> losses -> d loss / dΛ -> ``scoring.backward`` -> optimiser

The same step serves every objective that sees the network through Λ.
"""

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difftilt.chains import Path
from difftilt.errors import InputError, TrainingError
from difftilt.objectives.balance import Scores, log_variance, relative_trajectory_balance
from difftilt.objectives.weighted import weighted_likelihood
from difftilt.replay.behaviour import Scored, Situation
from difftilt.scoring import backward, log_ratio
from difftilt.training.denoising import denoising_gradient
from difftilt.training.snapshot import trained
from difftilt.training.state import TrainingState


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
    """

    step: int
    phase: str
    loss: float
    log_z: float
    ess: float
    log_r: float
    beta: float
    gradient_norm: float


def training_step(state: TrainingState) -> Metrics:
    """Draw paths, move the posterior once, and say how it went.

    Raises:
        TrainingError: the loss or the gradient is not finite; names the cause.
    """
    beta = state.present_beta
    parts = _draw(state, beta)
    paths = [scored.path for scored in parts.values()]
    log_r = torch.cat([scored.log_r for scored in parts.values()])
    phase = "warm start" if state.warming else "balance"
    if state.warming and state.plan.warm_start_loss == "denoising":
        for optimiser in state.optimisers:
            optimiser.zero_grad(set_to_none=True)
        losses, ratios = denoising_gradient(state, Path.joined(paths)), torch.zeros(len(log_r))
        _check(state, losses, log_r)
    else:
        losses, ratios = _fitting_gradient(state, paths, log_r, beta)
    norm = _move(state)
    _remember(state, parts, ratios, beta)
    own = slice(0, parts["on_policy"].path.batch) if "on_policy" in parts else slice(0, 0)
    log_z, ess, mean_log_r = _estimates(beta * log_r[own] - ratios[own], log_r[own])
    loss = float(losses.mean())
    return Metrics(state.step, phase, loss, log_z, ess, mean_log_r, beta, norm)


def _one_chunk(state: TrainingState, batch: int) -> bool:
    """Whether the gradient sees all steps of all paths at once, and so finds Λ on its way."""
    plan = state.plan
    return state.subset is None and len(state.chain.density_steps) * batch <= plan.chunk


def _situation(state: TrainingState, beta: float, count: int, ratio: bool) -> Situation:
    chain = state.chain
    if state.conditions is not None:
        groups = max(1, math.ceil(count / state.plan.paths_per_condition))
        drawn = state.conditions(groups, state.generator)
        chain = chain.given(drawn.repeat_interleave(state.plan.paths_per_condition, 0)[:count])
    chunk = state.plan.chunk
    return Situation(chain, state.log_reward, beta, state.generator, state.buffer, chunk, ratio)


def _draw(state: TrainingState, beta: float) -> dict[str, Scored]:
    names = ["pool"] if state.warming else list(state.behaviours)
    weights = {n: 1.0 if state.warming else state.behaviours[n][1] for n in names}
    if not len(state.buffer):
        waiting = {"replay", "local_search"} & set(names)
        weights = {n: w for n, w in weights.items() if n not in waiting and w > 0}
    weights = {n: w for n, w in weights.items() if w > 0}
    if not weights:
        raise InputError(
            "replay and local search need ends to start from; give on_policy, prior or pool paths "
            "a weight too"
        )
    total = sum(weights.values())
    counts = {n: max(1, round(state.plan.batch * w / total)) for n, w in weights.items()}
    ratio = not _one_chunk(state, sum(counts.values()))
    return {
        n: state.behaviours[n][0].draw(_situation(state, beta, c, ratio), c)
        for n, c in counts.items()
    }


def _losses(state: TrainingState, ratios: Tensor, path: Path, log_r: Tensor, beta: float) -> Tensor:
    objective = state.plan.objective
    finite = torch.isfinite(log_r)
    if not bool(finite.any()):
        return ratios[finite]
    # A path of zero reward has an infinite residual; it teaches through its finite neighbours only.
    scores = Scores(ratios[finite], beta * log_r[finite], group=_groups(path, finite))
    if state.warming:
        return weighted_likelihood(scores)
    if objective.log_z == "batch":
        return log_variance(_comparable(scores), objective.residual_clip)
    condition = None if path.condition is None else path.condition[finite]
    learned = state.log_z(int(finite.sum()), condition)
    scores = Scores(scores.log_ratio, scores.log_r, learned)
    return relative_trajectory_balance(scores, objective.residual_clip)


def _comparable(scores: Scores) -> Scores:
    """Without paths that are alone in their condition: their log-variance is identically zero."""
    if scores.group is None:
        return scores
    shared = torch.bincount(scores.group)[scores.group] > 1
    if not bool(shared.any()):
        return scores
    group = torch.unique(scores.group[shared], return_inverse=True)[1]
    return Scores(scores.log_ratio[shared], scores.log_r[shared], group=group)


def _groups(path: Path, finite: Tensor) -> Tensor | None:
    if path.condition is None:
        return None
    flat = path.condition[finite].flatten(1) if path.condition.ndim > 1 else path.condition[finite]
    return torch.unique(flat, dim=0, return_inverse=True)[1]


def _fitting_gradient(
    state: TrainingState, paths: list[Path], log_r: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """The gradient; its chunk is halved until it fits into memory, the random numbers kept."""
    rows = len(state.chain.density_steps) * len(log_r)
    while True:
        for optimiser in state.optimisers:
            optimiser.zero_grad(set_to_none=True)
        drawn = state.generator.get_state()
        chunk = min(state.plan.chunk, rows)
        try:
            return _gradient(state, paths, log_r, beta)
        except (RuntimeError, MemoryError) as error:
            if chunk == 1 or not _out_of_memory(error):
                raise
        state.generator.set_state(drawn)
        state.plan = replace(state.plan, chunk=chunk // 2)
        warnings.warn(
            f"out of memory at update {state.step + 1}; going on with chunk={chunk // 2}",
            RuntimeWarning,
            stacklevel=3,
        )


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "out of memory"))


def _gradient(
    state: TrainingState, paths: list[Path], log_r: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Accumulate the gradient of the mean loss; returns losses and Λ, detached."""
    chain, plan, path = state.chain, state.plan, Path.joined(paths)
    if _one_chunk(state, path.batch):
        ratios = log_ratio(chain, path)
        losses = _losses(state, ratios, path, log_r, beta)
        _check(state, losses, log_r)
        losses.mean().backward()
        return losses.detach(), ratios.detach()
    leaf = _ratios(state, paths).requires_grad_()
    losses = _losses(state, leaf, path, log_r, beta)
    _check(state, losses, log_r)
    losses.mean().backward()
    assert leaf.grad is not None
    backward(chain, path, leaf.grad, plan.chunk, state.subset, state.generator)
    unknown = math.nan if state.warming else 0.0
    return losses.detach() + unknown, leaf.detach() + unknown


@torch.no_grad()
def _ratios(state: TrainingState, paths: list[Path]) -> Tensor:
    """Λ of every path, asking the network about those alone that were drawn without it."""
    if state.warming:
        # The warm start's gradient does not depend on the value of Λ, which stays unknown.
        return torch.cat([path.states.new_zeros(path.batch) for path in paths])
    chain, chunk = state.chain, state.plan.chunk
    known = [log_ratio(chain, p, chunk) if p.log_ratio is None else p.log_ratio for p in paths]
    return torch.cat(known)


def _check(state: TrainingState, losses: Tensor, log_r: Tensor) -> None:
    if len(losses) and bool(torch.isfinite(losses).all()):
        return
    raise TrainingError(
        f"non-finite loss at update {state.step + 1}: {_cause(state, losses, log_r)}; log r spans "
        f"[{float(log_r.min()):.4g}, {float(log_r.max()):.4g}]; lower the learning rate, set "
        "residual_clip, or floor the reward (the last checkpoint is intact)"
    )


def _cause(state: TrainingState, losses: Tensor, log_r: Tensor) -> str:
    for name, parameter in trained(state.chain).items():
        if not bool(torch.isfinite(parameter).all()):
            return f"parameter {name} is not finite"
    if len(losses):
        return "Λ of a path is not finite"
    if bool(log_r.isnan().any()):
        return "log r is not a number"
    return "every path of the batch has log r = -inf"


def _move(state: TrainingState) -> float:
    limit = state.plan.optimisation.gradient_clip
    norm = torch.nn.utils.clip_grad_norm_(state.parameters, math.inf if limit is None else limit)
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
