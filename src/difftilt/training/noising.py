"""The second door: losses of single noised states of given ends.

    behaviours -> paths -> rows (x_n, end) -> log h, λ, β log r -> losses -> the networks' gradients

As in the first door, all rows are seen at once with a graph, or, where they are more than a chunk,
the losses' derivatives come first and the networks are visited again in chunks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from difftilt._ops import log_mean_exp
from difftilt.chains.chain import Chain, Path
from difftilt.chains.scoring import step_scores
from difftilt.objectives.ends import EndObjective, EndScores
from difftilt.replay.behaviour import Pooled, Scored
from difftilt.training.outcome import Outcome, check, forget_gradients
from difftilt.training.paths import draw_paths
from difftilt.training.rows import RowDrawing, Rows, draw_rows
from difftilt.training.state import TrainingState


def end_updates(state: TrainingState, beta: float) -> Iterator[Outcome]:
    """Draw paths, make rows of them, and accumulate one gradient.

    The gradient of an objective that trains a value does not go through the tilt of a posterior
    that the value guides.
    """
    parts = draw_paths(state, beta, ratio=True)
    forget_gradients(state)
    batch = _Batch.of(state, parts, beta)
    rows = _rows(state, batch)
    log_scale = _known_scale(state, batch, rows)
    seen = _seen(state, batch, rows)
    losses = _objective(state).losses(
        EndScores(
            rows.beta * batch.log_r[rows.path],
            batch.log_w(rows),
            log_scale,
            rows.group,
            log_preference=_preferences(state, batch, rows),
            **seen,
        )
    )
    check(state, losses, batch.log_r)
    losses.mean().backward()
    _visit(state, batch, rows, seen)
    _remember(state, batch, rows, seen)
    yield Outcome(losses.detach(), parts, batch.ratio)


@dataclass(frozen=True)
class _Batch:
    """The joined paths of an update.

    Arguments:
        chain: the posterior, bound to their conditions.
        path: B paths.
        log_r: (B,) before any β.
        ratio: (B,) Λ, nan where unknown.
        taken_off: (N + 1, B) what ``log_w`` of a row at step n lacks of ``β log r``.
        pooled: (B,) whether a path was resampled by its reward.
        beta: β of this update.
    """

    chain: Chain
    path: Path
    log_r: Float[Tensor, " B"]
    ratio: Float[Tensor, " B"]
    taken_off: Float[Tensor, "levels B"]
    pooled: Tensor
    beta: float

    @staticmethod
    def of(state: TrainingState, parts: dict[str, Scored], beta: float) -> "_Batch":
        paths = [scored.path for scored in parts.values()]
        if _objective(state).states_from == "forward":
            paths = [path.ends for path in paths]
        path = Path.joined(paths)
        known = [p.path.log_ratio for p in parts.values()]
        unknown = [torch.full_like(p.log_r, torch.nan) for p in parts.values()]
        ratio = [u if k is None else k for k, u in zip(known, unknown, strict=True)]
        taken_off = [_taken_off(state, name, scored, beta) for name, scored in parts.items()]
        pooled = [torch.full_like(p.log_r, name == "pool").bool() for name, p in parts.items()]
        chain = state.chain.leap if _objective(state).leaps else state.chain
        return _Batch(
            chain.given(path.condition),
            path,
            torch.cat([scored.log_r for scored in parts.values()]),
            torch.cat(ratio),
            torch.cat(taken_off, 1),
            torch.cat(pooled),
            beta,
        )

    def condition(self, paths: Tensor) -> Tensor | None:
        """The conditions of some paths."""
        return None if self.path.condition is None else self.path.condition[paths]

    def log_w(self, rows: Rows) -> Float[Tensor, " R"]:
        """Log-weights of rows."""
        return rows.beta * self.log_r[rows.path] - self.taken_off[rows.n, rows.path]


def _objective(state: TrainingState) -> EndObjective:
    objective = state.plan.objective
    assert isinstance(objective, EndObjective)
    return objective


@torch.no_grad()
def _taken_off(
    state: TrainingState, name: str, scored: Scored, beta: float
) -> Float[Tensor, "levels B"]:
    """What the law that drew the paths has already done, by the step of a row."""
    chain, correction = state.chain, _objective(state).correction
    nothing = torch.zeros_like(scored.log_r).repeat(chain.steps + 1, 1)
    if correction == "none":
        return nothing
    if name == "pool":
        behaviour = state.behaviours[name][0]
        assert isinstance(behaviour, Pooled)
        return nothing + behaviour.exponent * beta * scored.log_r
    if name != "on_policy":
        return nothing
    if correction == "path":
        assert scored.path.log_ratio is not None
        return nothing + scored.path.log_ratio
    steps = step_scores(chain, scored.path, state.plan.chunk).log_ratio[:-1]
    nothing[chain.density_steps] = steps
    return nothing.cumsum(0)


def _rows(state: TrainingState, batch: _Batch) -> Rows:
    """This update's rows; a value that has β as an input is shown all of its range."""
    objective, plan = _objective(state), state.plan
    source = RowDrawing(batch.chain, batch.path, objective, state.generator, plan.chunk)
    rows = draw_rows(source, state.subset, batch.beta)
    if objective.within_condition:
        rows = _comparable(rows)
    largest = None if state.value is None else state.value.largest_beta
    if objective.guides and largest is not None:
        share = 1 - torch.rand(len(rows.n), generator=state.generator).to(rows.beta)
        rows = replace(rows, beta=largest * share)
    return rows


def _comparable(rows: Rows) -> Rows:
    """Without rows that are alone in their set, which have nothing to be compared with."""
    shared = torch.bincount(rows.group)[rows.group] > 1
    if bool(shared.all()) or not bool(shared.any()):
        return rows
    kept = rows.part(shared.nonzero().flatten())
    return replace(kept, group=torch.unique(kept.group, return_inverse=True)[1])


def _known_scale(state: TrainingState, batch: _Batch, rows: Rows) -> Float[Tensor, " R"]:
    """The scale of weights as it was before this batch; the first batch has only its own."""
    if not _objective(state).contrasts and state.value is not None:
        return torch.zeros_like(rows.beta)
    if state.value is not None:
        if not state.value.anchor.evidence.started:
            _see_ends(state, batch)
        return state.value.anchor.scale(rows.beta).expand(len(rows.n)).to(rows.beta)
    log_w = batch.log_w(rows)
    if not state.log_z.running.started:
        _see_weights(state, batch, log_w, rows)
    scale = state.log_z.running.finite.expand(len(rows.n)).to(rows.beta)
    pooled = batch.pooled[rows.path]
    if not bool(pooled.any()):
        return scale
    # Resampled paths have a scale of their own: what their resampling left of the weights.
    return torch.where(pooled, log_mean_exp(log_w[pooled]), scale)


def _see_ends(state: TrainingState, batch: _Batch) -> None:
    assert state.value is not None
    state.value.anchor.see_ends(batch.log_r, batch.beta, batch.taken_off[-1])


def _see_weights(state: TrainingState, batch: _Batch, log_w: Tensor, rows: Rows) -> None:
    unbiased = ~batch.pooled[rows.path]
    if bool(unbiased.any()):
        state.log_z.running.update(log_w[unbiased][None])


def _look(state: TrainingState, batch: _Batch, rows: Rows) -> dict[str, Tensor]:
    """What the networks say at some rows."""
    needs, found = _objective(state).needs, {}
    if "log_h" in needs:
        assert state.value is not None
        state.chain.calls.posterior += len(rows.n)
        condition = batch.condition(rows.path)
        found["log_h"] = state.value(rows.x, rows.n, rows.prediction, condition, rows.beta)
    if {"log_ratio", "divergence"} & needs:
        tilt = batch.chain.tilt(rows.x, rows.n, rows.prediction, rows.path)
        assert tilt is not None
        if rows.eps is not None:
            found["log_ratio"] = torch.stack([tilt.log_ratio(eps) for eps in rows.eps])
        if "divergence" in needs:
            found["divergence"] = tilt.divergence()
    return found


def _seen(state: TrainingState, batch: _Batch, rows: Rows) -> dict[str, Tensor]:
    """What the losses read of the networks: with a graph, or, beyond a chunk, as leaves."""
    if len(rows.n) <= state.plan.chunk:
        return _look(state, batch, rows)
    with torch.no_grad():
        found = [_look(state, batch, rows.part(chosen)) for chosen in _chunks(state, rows)]
    return {name: torch.cat([f[name] for f in found], -1).requires_grad_() for name in found[0]}


def _visit(state: TrainingState, batch: _Batch, rows: Rows, seen: dict[str, Tensor]) -> None:
    """The networks' gradients from the losses' derivatives, where these ended at leaves."""
    if len(rows.n) <= state.plan.chunk:
        return
    for chosen in _chunks(state, rows):
        again = _look(state, batch, rows.part(chosen))
        derivatives = {name: leaf.grad for name, leaf in seen.items() if leaf.grad is not None}
        outputs = [again[name] for name in derivatives]
        torch.autograd.backward(outputs, [g[..., chosen] for g in derivatives.values()])


def _chunks(state: TrainingState, rows: Rows) -> tuple[Tensor, ...]:
    return torch.arange(len(rows.n)).split(state.plan.chunk)


@torch.no_grad()
def _preferences(state: TrainingState, batch: _Batch, rows: Rows) -> Float[Tensor, "J R"] | None:
    """Log-weights of the landings of each row among each other."""
    if rows.eps is None or _objective(state).landings.kind == "own":
        return None
    law = batch.chain.law(rows.prediction, rows.x, rows.n)

    def worth(landed: Tensor) -> Tensor:
        parts = [_worth(state, batch, rows.part(r), landed[r]) for r in _chunks(state, rows)]
        return torch.cat(parts)

    return torch.stack([worth(law.at(eps)) for eps in rows.eps])


def _worth(
    state: TrainingState, batch: _Batch, rows: Rows, landed: Shaped[Tensor, "R ..."]
) -> Float[Tensor, " R"]:
    """β log r of landings that are ends or are paid as if they were; else ``log h_{n-1}``."""
    noisy = (rows.n > 1) & (_objective(state).landings.kind == "prior")
    worth = torch.zeros_like(rows.beta)
    paid, valued = (~noisy).nonzero().flatten(), noisy.nonzero().flatten()
    if len(paid):
        log_r = state.log_reward(landed[paid], batch.condition(rows.path[paid]))
        worth[paid] = rows.beta[paid] * log_r.to(worth)
    if len(valued):
        assert state.value is not None
        n, path, x = rows.n[valued] - 1, rows.path[valued], landed[valued]
        prediction = batch.chain.predict(x, n, path)
        state.chain.calls.posterior += len(x)
        worth[valued] = state.value(x, n, prediction, batch.condition(path), rows.beta[valued])
    return worth


@torch.no_grad()
def _remember(state: TrainingState, batch: _Batch, rows: Rows, seen: dict[str, Tensor]) -> None:
    """Average this batch into what the next one is scaled by, and into the value's anchor."""
    if state.value is not None and not _objective(state).contrasts:
        return
    if state.value is None:
        if state.log_z.running.started:
            _see_weights(state, batch, batch.log_w(rows), rows)
        return
    anchor = state.value.anchor
    labels = batch.log_w(rows) - anchor.scale(rows.beta)
    f = seen["log_h"].detach() - anchor(rows.beta)
    if anchor.labels.started:
        _see_ends(state, batch)
    anchor.see_rows(labels, f)
