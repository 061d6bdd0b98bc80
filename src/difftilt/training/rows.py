"""Rows: single noised states of the paths of an update, and where their steps may land."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from difftilt._ops import over_event
from difftilt.chains.chain import Chain, Path
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise
from difftilt.objectives.ends import EndObjective
from difftilt.transitions.base import Transition
from difftilt.transitions.gaussian import Gaussian


@dataclass(frozen=True)
class Rows:
    """R rows: a state of a path each.

    Arguments:
        n: (R,) the step that leaves the state.
        path: (R,) which path.
        group: (R,) which set, 0 ... G - 1; a set holds at most one row of any path.
        x: (R, *event) ``x_n``.
        prediction: the prior's clean prediction there.
        eps: (J, R, *event) landings in the step's standardised coordinates, or None.
        beta: (R,) β that the row is about.
    """

    n: Int[Tensor, " R"]
    path: Int[Tensor, " R"]
    group: Int[Tensor, " R"]
    x: Shaped[Tensor, "R ..."]
    prediction: Tensor
    beta: Float[Tensor, " R"]
    eps: Shaped[Tensor, "J R ..."] | None = None

    def part(self, rows: Tensor) -> "Rows":
        """Some of the rows."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "eps"}
        eps = None if self.eps is None else self.eps[:, rows]
        return Rows(**{name: value[rows] for name, value in values.items()}, eps=eps)


@dataclass(frozen=True)
class RowDrawing:
    """What rows are drawn from.

    Arguments:
        chain: the posterior, bound to the paths' conditions.
        path: the paths.
        objective: says which rows it wants.
        generator: of all that is drawn.
        chunk: states per network call.
    """

    chain: Chain
    path: Path
    objective: EndObjective
    generator: torch.Generator
    chunk: int

    @property
    def noise(self) -> GeneratorNoise:
        """The generator as a source of noise."""
        return GeneratorNoise(self.generator)


@torch.no_grad()
def draw_rows(source: RowDrawing, subset: int | None, beta: float) -> Rows:
    """``subset`` (or as many as there are steps) rows of each path, at different steps.

    Arguments:
        source: paths and what is wanted of them.
        subset: rows per path, or None.
        beta: β of all rows.

    Raises:
        InputError: ``subset`` is not between 1 and the number of steps.
    """
    path, objective, device = source.path, source.objective, source.path.states.device
    leaps = objective.leaps
    anew = leaps or (_whole(objective) and not source.chain.diffusion.whole)
    sets = _sets(source)
    n = _steps(source, sets, subset)
    which = torch.arange(path.batch, device=device).expand_as(n).flatten()
    draw = torch.arange(len(n), device=device)[:, None]
    group = (sets + (int(sets.max()) + 1) * draw).flatten()
    n = n.flatten()
    if objective.states_from == "forward":
        condition = None if path.condition is None else path.condition[which]
        forward = source.chain.diffusion.noised_pairs
        x, landed = forward(path.x_0[which], n, source.noise, condition)
        prediction = _predicted(source, (x, landed), n, which)
    else:
        x, landed = path.states[n, which], path.states[0 if leaps else n - 1, which]
        kept = None if anew else path.predictions
        prediction = (
            _predicted(source, (x, landed), n, which) if kept is None else kept[n - 1, which]
        )
    eps = None
    if "log_ratio" in objective.needs:
        law = source.chain.law(prediction, x, n)
        eps = _landings(source, law, law.standardise(landed))
    betas = source.chain.like.new_full((len(n),), beta)
    return Rows(n, which, group, x, prediction, betas, eps)


def _whole(objective: EndObjective) -> bool:
    """Whether the prior's whole law of a step is read, not just where the row landed."""
    return "divergence" in objective.needs or objective.landings.kind != "own"


def _predicted(source: RowDrawing, ends: tuple[Tensor, Tensor], n: Tensor, which: Tensor) -> Tensor:
    """What is kept of the prior's predictions of steps ``x -> landed``."""
    chain, objective, (x, landed) = source.chain, source.objective, ends
    whole = _whole(objective)

    def part(rows: Tensor) -> Tensor:
        prediction = chain.predict(x[rows], n[rows], which[rows])
        if whole:
            return prediction
        law = chain.law(prediction, x[rows], n[rows])
        return chain.diffusion.kept(prediction, law, landed[rows])

    return torch.cat([part(rows) for rows in torch.arange(len(n)).split(source.chunk)])


def _sets(source: RowDrawing) -> Int[Tensor, " B"]:
    """The set of each path."""
    batch, objective, condition = source.path.batch, source.objective, source.path.condition
    if objective.within_condition and condition is not None:
        flat = condition.flatten(1) if condition.ndim > 1 else condition
        return torch.unique(flat, dim=0, return_inverse=True)[1]
    size = objective.contrast_size or batch
    # A rest that makes no whole set joins the last one.
    return (torch.arange(batch, device=source.path.states.device) // size).clamp(
        max=max(1, batch // size) - 1
    )


def _steps(source: RowDrawing, sets: Tensor, subset: int | None) -> Int[Tensor, "rows B"]:
    """Steps of each path, all different: with a density where something has to land."""
    chain, objective = source.chain, source.objective
    landing = {"log_ratio", "divergence"} & objective.needs
    steps = torch.tensor(chain.density_steps if landing else range(1, chain.steps + 1))
    if objective.from_noise:
        steps, subset = steps[-1:], None
    if subset is not None and not 1 <= subset <= len(steps):
        raise InputError(f"subset={subset} must lie between 1 and {len(steps)}, the chain's steps")
    count = int(sets.max()) + 1 if objective.shared_time else len(sets)
    keys = torch.rand(
        (len(steps), count), generator=source.generator, device=source.generator.device
    )
    order = keys.to(sets.device).argsort(0)[: len(steps) if subset is None else subset]
    return steps.to(sets.device)[order[:, sets] if objective.shared_time else order]


def _landings(
    source: RowDrawing, law: Transition, own: Shaped[Tensor, "R ..."]
) -> Shaped[Tensor, "J R ..."]:
    """Landings in the step's coordinates; ``own`` is the row's own.

    Raises:
        InputError: a pay-off within a radius, on a chain of tokens.
    """
    wanted, noise = source.objective.landings, source.noise
    if wanted.kind == "own":
        return own[None]
    if wanted.kind == "prior":
        return torch.stack([law.draw(noise) for _ in range(wanted.count)])
    if not isinstance(law, Gaussian):
        raise InputError("a pay-off within a radius needs continuous states; use RGDM('value')")
    drawn = torch.stack([noise.normal(own) for _ in range(wanted.count)])
    length = drawn.flatten(2).norm(dim=2)
    share = torch.stack([noise.uniform(own) for _ in range(wanted.count)])
    # Uniform in a ball: the share of its volume inside a radius is (radius / largest)^d.
    radius = wanted.radius * share ** (1 / own[0].numel())
    moves = over_event((radius / length).flatten(), own) * drawn.flatten(0, 1)
    return own + moves.reshape(drawn.shape) / law.std
