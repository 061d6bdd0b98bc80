"""The first door: losses of the log-ratios of given paths.

    behaviours -> paths -> λ, β log r -> losses -> d loss / dλ -> ``scoring.backward``

If the gradient sees all steps of all paths at once, λ is found on its way: for the posterior's own
new paths, if there are no others, while they are drawn, so that the network sees each state once.
Otherwise the losses' derivatives are taken first, at λ known from the drawing, and the paths are
visited again in chunks.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from difftilt.chains.chain import Path
from difftilt.chains.rollouts import Ratio
from difftilt.chains.scoring import Coefficients, StepScores, backward, log_ratio, step_scores
from difftilt.errors import InputError
from difftilt.objectives.base import PathObjective, Scores
from difftilt.objectives.ends import EndObjective
from difftilt.objectives.weighted import weighted_likelihood
from difftilt.replay.behaviour import Scored, Situation
from difftilt.training.outcome import Outcome, check, forget_gradients
from difftilt.training.state import TrainingState
from difftilt.values.functions import path_values, value_backward


def path_updates(state: TrainingState, beta: float) -> Iterator[Outcome]:
    """Draw paths once, and accumulate the gradient of each optimiser step on them."""
    parts = draw_paths(state, beta)
    drawn: Tensor | None = None
    for _ in range(1 if state.warming else state.plan.objective.updates_per_batch):
        outcome, steps = _fitting_gradient(state, parts, beta, drawn)
        drawn = steps if drawn is None else drawn
        yield outcome


def _one_chunk(state: TrainingState, batch: int) -> bool:
    """Whether the gradient sees all steps of all paths at once, and so finds Λ on its way."""
    plan = state.plan
    return state.subset is None and len(state.chain.density_steps) * batch <= plan.chunk


def _wanted_ratio(state: TrainingState, counts: dict[str, int]) -> Ratio:
    """What drawing has to say about Λ of new paths, so that the gradient need not ask again."""
    objective = state.plan.objective
    if not _one_chunk(state, sum(counts.values())):
        return True
    by_step = objective.updates_per_batch > 1 or {"steps", "drawn", "divergence"} & objective.needs
    # Where other paths are visited all the same, one large visit costs less than two.
    own = counts.keys() <= {"on_policy", "widened"}
    return "differentiable" if own and not by_step else False


def situation(state: TrainingState, beta: float, count: int, ratio: Ratio) -> Situation:
    """What the behaviours of an update may use to draw ``count`` paths; draws the conditions."""
    chain = state.chain
    if state.conditions is not None:
        groups = max(1, math.ceil(count / state.plan.paths_per_condition))
        drawn = state.conditions(groups, state.generator)
        chain = chain.given(drawn.repeat_interleave(state.plan.paths_per_condition, 0)[:count])
    plan, reward = state.plan, state.log_reward
    ends = isinstance(plan.objective, EndObjective) and plan.objective.states_from == "forward"
    if state.warming:
        ends = plan.warm_start_loss == "denoising"
    return Situation(
        chain, reward, beta, state.generator, state.buffer, plan.chunk, ratio, ends=ends
    )


def draw_paths(state: TrainingState, beta: float, ratio: Ratio | None = None) -> dict[str, Scored]:
    """Paths of this update's behaviours, by behaviour.

    Arguments:
        state: the training.
        beta: β of this update.
        ratio: what is wanted of Λ of own paths; None: what the first door's gradient wants.

    Raises:
        InputError: replay or local search alone, with nothing to replay yet.
    """
    counts, drawn = _counts(state), {}
    batch = sum(counts.values())
    while len(drawn) < len(counts):
        name = list(counts)[len(drawn)]
        random = state.generator.get_state()
        wanted = _wanted_ratio(state, counts) if ratio is None else ratio
        present = situation(state, beta, counts[name], wanted)
        try:
            drawn[name] = state.behaviours[name][0].draw(present, counts[name])
            continue
        except (RuntimeError, MemoryError) as error:
            if wanted != "differentiable":
                raise
            _make_room(state, drawn, batch, error)
        state.generator.set_state(random)
    return drawn


def _counts(state: TrainingState) -> dict[str, int]:
    """Paths of each behaviour in this update."""
    names = [state.plan.warm_start_from] if state.warming else list(state.behaviours)
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
    return {n: max(1, round(state.plan.batch * w / total)) for n, w in weights.items()}


def _fitting_gradient(
    state: TrainingState, parts: dict[str, Scored], beta: float, drawn: Tensor | None
) -> tuple[Outcome, Tensor]:
    """The gradient; its chunk is halved until it fits into memory, the random numbers kept."""
    batch = sum(len(scored.log_r) for scored in parts.values())
    while True:
        forget_gradients(state)
        random = state.generator.get_state()
        try:
            return _gradient(state, parts, beta, drawn)
        except (RuntimeError, MemoryError) as error:
            _make_room(state, parts, batch, error)
        state.generator.set_state(random)


def _make_room(
    state: TrainingState, parts: dict[str, Scored], batch: int, error: RuntimeError | MemoryError
) -> None:
    """Halve the chunk and drop the graphs of paths; an error about anything else is raised."""
    chunk = min(state.plan.chunk, len(state.chain.density_steps) * batch)
    if chunk == 1 or not _out_of_memory(error):
        raise error
    for name, scored in parts.items():
        ratio = scored.path.log_ratio
        if ratio is not None:
            parts[name] = replace(scored, path=replace(scored.path, log_ratio=ratio.detach()))
    state.plan = replace(state.plan, chunk=chunk // 2)
    warnings.warn(
        f"out of memory at update {state.step + 1}; going on with chunk={chunk // 2}",
        RuntimeWarning,
        stacklevel=4,
    )


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "out of memory"))


def _gradient(
    state: TrainingState, parts: dict[str, Scored], beta: float, drawn: Tensor | None
) -> tuple[Outcome, Tensor]:
    """Accumulate the gradient of the mean loss; also returns λ (or Λ) as it was, detached."""
    paths = [scored.path for scored in parts.values()]
    path, log_r = Path.joined(paths), torch.cat([scored.log_r for scored in parts.values()])
    direct = _one_chunk(state, path.batch)
    seen = _seen(state, paths, path) if direct else _leaves(state, paths, path)
    log_z, log_h = _log_z(state, path), _log_h(state, path, beta, direct)
    if drawn is None:
        drawn = seen.log_ratio.detach().clone()
    scores = Scores(
        seen.log_ratio.sum(0),
        beta * log_r,
        log_z,
        _groups(path),
        steps=seen.log_ratio,
        log_h=None if log_h is None or log_z is None else torch.cat([log_h, log_z[None]]),
        divergence=seen.divergence,
        drawn=drawn,
    )
    losses = _losses(state, scores)
    check(state, losses, log_r)
    losses.mean().backward()
    unknown = 0.0
    if not direct:
        _visit(state, path, beta, seen, log_h)
        unknown = math.nan if state.warming else 0.0
    ratios = seen.log_ratio.detach().sum(0) + unknown
    return Outcome(losses.detach() + unknown, parts, ratios), drawn


def _losses(state: TrainingState, scores: Scores) -> Tensor:
    objective = state.plan.objective
    finite = torch.isfinite(scores.log_r)
    if not bool(finite.any()):
        return scores.log_ratio[finite]
    forbidden = None
    if not bool(finite.all()):
        forbidden, scores = scores.log_ratio[~finite], scores.select(finite)
    if state.warming:
        return weighted_likelihood(scores)
    assert isinstance(objective, PathObjective)
    if objective.paths_per_group > 1:
        scores = _comparable(scores)
    losses = objective.losses(scores)
    if forbidden is None:
        return losses
    return torch.cat([losses, objective.forbidden(forbidden, losses)])


def _comparable(scores: Scores) -> Scores:
    """Without paths that are alone in their condition, which have nothing to be compared with."""
    if scores.group is None:
        return scores
    shared = torch.bincount(scores.group)[scores.group] > 1
    if not bool(shared.any()):
        return scores
    chosen = scores.select(shared)
    assert chosen.group is not None
    return replace(chosen, group=torch.unique(chosen.group, return_inverse=True)[1])


def _groups(path: Path) -> Tensor | None:
    if path.condition is None:
        return None
    flat = path.condition.flatten(1) if path.condition.ndim > 1 else path.condition
    return torch.unique(flat, dim=0, return_inverse=True)[1]


def _seen(state: TrainingState, paths: list[Path], path: Path) -> StepScores:
    if any(p.log_ratio is not None and p.log_ratio.requires_grad for p in paths):
        return StepScores(_ratios(state, paths)[None])
    divergence = not state.warming and "divergence" in state.plan.objective.needs
    return step_scores(state.chain, path, state.plan.chunk, divergence)


@torch.no_grad()
def _leaves(state: TrainingState, paths: list[Path], path: Path) -> StepScores:
    """What the losses read, as leaves; the network is asked only for what is not known yet."""
    if {"steps", "drawn", "divergence"} & state.plan.objective.needs and not state.warming:
        seen = _seen(state, [], path)
    else:
        seen = StepScores(_ratios(state, paths)[None])
    if seen.divergence is not None:
        seen.divergence.requires_grad_()
    seen.log_ratio.requires_grad_()
    return seen


def _ratios(state: TrainingState, paths: list[Path]) -> Tensor:
    """Λ of every path, asking the network about those alone that were drawn without it."""
    if state.warming:
        # The warm start's gradient does not depend on the value of Λ, which stays unknown.
        return torch.cat([state.chain.like.new_zeros(path.batch) for path in paths])
    chain, chunk = state.chain, state.plan.chunk
    known = [log_ratio(chain, p, chunk) if p.log_ratio is None else p.log_ratio for p in paths]
    return torch.cat(known)


def _log_z(state: TrainingState, path: Path) -> Tensor | None:
    """The learned ``log Z`` of each path's condition, with a graph."""
    if state.warming or not {"log_z", "log_h"} & state.plan.objective.needs:
        return None
    return state.log_z(path.batch, path.condition)


def _log_h(state: TrainingState, path: Path, beta: float, direct: bool) -> Tensor | None:
    """``log h`` at the states of the paths: with a graph, or as a leaf."""
    if state.value is None or state.warming or "log_h" not in state.plan.objective.needs:
        return None
    with torch.set_grad_enabled(direct):
        found = path_values(state.value, state.chain, path, beta, state.plan.chunk)
    return found if direct else found.requires_grad_()


def _visit(
    state: TrainingState, path: Path, beta: float, seen: StepScores, log_h: Tensor | None
) -> None:
    """The networks' gradients from the losses' derivatives, a chunk at a time."""
    chain, plan = state.chain, state.plan
    by_ratio = seen.log_ratio.grad
    assert by_ratio is not None
    by_divergence = None if seen.divergence is None else seen.divergence.grad
    coefficients = Coefficients(by_ratio, by_divergence)
    backward(chain, path, coefficients, plan.chunk, state.subset, state.generator)
    if log_h is not None:
        assert state.value is not None and log_h.grad is not None
        value_backward(state.value, chain, path, beta, log_h.grad, plan.chunk)
