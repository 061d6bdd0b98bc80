"""The optimal policy of a bandit, in any state and for any β, and how far a policy is from it.

On the line both laws are quadratures on one grid (``line_law``): their total variation is exact,
with no sampling noise. In more dimensions the truth is still a quadrature, in the plane that the
mixture lies in (``plane.data_law``), but the policy's mode weights and marginals are counted from
draws (``counts``), and ``counting_floor`` says how far counts of the truth itself would be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.diagnostics.distances import mode_total_variation
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise
from difftilt.tasks.bandits.counts import (
    WITHIN,
    Judged,
    PlaneTruth,
    counted,
    deviation,
    marginals,
)
from difftilt.tasks.bandits.line import LineLaw, best_of, line_law
from difftilt.tasks.bandits.problems import COMPONENTS, Bandit, plane_axes
from difftilt.tasks.exact.plane import Cloud, data_law

FINENESS = 2.0
"""Of the plane's quadrature; mode weights are right to 1e-4 (the tests halve it)."""
KEPT_LAWS = 8
"""A law in the plane takes 10 MB; what draws are held to takes little and is kept for all."""
DRAWS = 100_000


@dataclass(frozen=True)
class BestOf:
    """The policy that takes the action of the highest Q among several of the behaviour's (IDQL).

    Arguments:
        count: of actions, at least 1.
    """

    count: int


Policy = Callable[[Float[Tensor, "1 S"], float], Chain | BestOf]
"""``(state, β) -> the sampler of actions there``."""


@lru_cache(maxsize=KEPT_LAWS)
def _behaviour(bandit: Bandit, state: tuple[float, ...], fineness: float) -> LineLaw | Cloud:
    bound = torch.tensor([state])
    if bandit.dimension == 1:
        return line_law(bandit.chain.given(bound))
    # The directions off the plane do not interact with it.
    plane = Bandit("ring", bandit.critic, bandit.steps)
    return data_law(plane.chain.given(bound), fineness)


def behaviour(
    bandit: Bandit, state: Float[Tensor, "1 S"], fineness: float = FINENESS
) -> LineLaw | Cloud:
    """The law of the prior chain's actions in a state; in R^6 that of their part in the plane."""
    return _behaviour(bandit, tuple(state[0].tolist()), fineness)


def values_at(bandit: Bandit, state: Float[Tensor, "1 S"], law: LineLaw | Cloud) -> Tensor:
    """Q at the points of a law, float64; in R^6 the part of Q that depends on the plane."""
    points = law.x.reshape(len(law.x), -1)
    return _flat(bandit).value(state.double().expand(len(points), -1), points)


def _flat(bandit: Bandit) -> Bandit:
    """The problem on the line, or in the plane."""
    return bandit if bandit.dimension == 1 else Bandit("ring", bandit.critic, bandit.steps)


@lru_cache(maxsize=KEPT_LAWS)
def _values(bandit: Bandit, state: tuple[float, ...]) -> Tensor:
    """Q at the points of the behaviour's law."""
    at = torch.tensor([state])
    return values_at(bandit, at, behaviour(bandit, at))


@lru_cache(maxsize=4096)
def _plane_truth(bandit: Bandit, state: tuple[float, ...], beta: float) -> PlaneTruth:
    at = torch.tensor([state])
    law = optimal(bandit, at, beta)
    assert isinstance(law, Cloud)
    return PlaneTruth(mode_weights(bandit, at, law), marginals(law))


def optimal(bandit: Bandit, state: Float[Tensor, "1 S"], beta: float) -> LineLaw | Cloud:
    """``μ(a | s) exp(β Q(s, a)) / Z`` of the discrete chain, in a state.

    Arguments:
        bandit: the problem.
        state: (1, 2).
        beta: β >= 0.
    """
    law = behaviour(bandit, state)
    return law.tilted(beta * _values(bandit, tuple(state[0].tolist())))


def log_partition(bandit: Bandit, state: Float[Tensor, "1 S"], beta: float) -> float:
    """``log Z(s, β)`` in nats, of actions on the line or of their part in the plane."""
    law = behaviour(bandit, state)
    return float((law.mass.log() + beta * values_at(bandit, state, law)).logsumexp(0))


def mode_weights(
    bandit: Bandit, state: Float[Tensor, "1 S"], law: LineLaw | Cloud
) -> Float[Tensor, " K"]:
    """Masses of the actions that are nearest to each component."""
    points = law.x.reshape(len(law.x), -1)
    nearest = _flat(bandit).mixture.nearest(state.double().expand(len(points), -1), points)
    masses = torch.zeros(COMPONENTS[bandit.geometry], dtype=torch.float64)
    return masses.index_add(0, nearest, law.mass)


@dataclass(frozen=True)
class Distances:
    """Total variation to the optimal policy, in each state and for each β.

    Arguments:
        betas: β.
        tv: (states, betas); of laws on the line, else of mode weights.
        floor: (states, betas) expected of draws of the truth itself; zero on the line.
        marginal: (states, betas) largest deviation of a distribution function, on the line or along
            an axis of the plane; draws of the truth itself show some ``1 / sqrt(draws)``.
    """

    betas: tuple[float, ...]
    tv: Float[Tensor, "states betas"]
    floor: Float[Tensor, "states betas"]
    marginal: Float[Tensor, "states betas"]

    def to_dict(self) -> dict[str, float]:
        """Mean and largest over the states for each β, and over all."""
        each = {f"mean_{b:g}": float(v) for b, v in zip(self.betas, self.tv.mean(0), strict=True)}
        each |= {f"max_{b:g}": float(v) for b, v in zip(self.betas, self.tv.amax(0), strict=True)}
        share = float((self.tv <= WITHIN).double().mean())
        total = {"tv_mean": float(self.tv.mean()), "tv_max": float(self.tv.max())}
        last = {"marginal": float(self.marginal.max()), "floor": float(self.floor.mean())}
        return {**each, **total, "within": share, **last}


@torch.no_grad()
def distances(
    bandit: Bandit,
    policy: Policy,
    states: Float[Tensor, "count S"],
    betas: Sequence[float] = (0.0, 1.0, 3.0, 10.0),
    draws: int = DRAWS,
    seed: int = 0,
) -> Distances:
    """How far a policy is from the optimal one.

    Arguments:
        bandit: with the answer.
        policy: ``(state, β) -> chain``.
        states: to judge in.
        betas: to judge at.
        draws: most of each policy in each state, where they are counted; fewer where it is plainly
            further off than 0.02.
        seed: of these draws.

    Raises:
        InputError: no draw.
    """
    if draws < 1:
        raise InputError(f"draws={draws} must be at least 1")
    noise = GeneratorNoise(torch.Generator().manual_seed(seed))
    found = [
        [_judged(bandit, state, beta, policy(state, beta), (draws, noise)) for beta in betas]
        for state in states[:, None]
    ]

    def table(name: str) -> Tensor:
        rows = [[getattr(each, name) for each in row] for row in found]
        return torch.tensor(rows, dtype=torch.float64)

    return Distances(tuple(betas), table("tv"), table("floor"), table("marginal"))


def _judged(
    bandit: Bandit,
    state: Tensor,
    beta: float,
    sampler: Chain | BestOf,
    counting: tuple[int, GeneratorNoise],
) -> Judged:
    if bandit.dimension == 1:
        truth, law = optimal(bandit, state, beta), _line_law_of(bandit, state, sampler)
        assert isinstance(truth, LineLaw)
        return Judged(law.total_variation(truth), 0.0, deviation(law.mass, truth))
    known = _plane_truth(bandit, tuple(state[0].tolist()), beta)
    if isinstance(sampler, BestOf):
        return _best_in_plane(bandit, state, sampler, known)
    draws, noise = counting
    axes = plane_axes(bandit.dimension, sampler.like)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        assert sampler.condition is not None
        bound = sampler.given(sampler.condition.expand(count, -1))
        actions = rollout(bound, count, noise, record=False, ratio=False).x_0
        return actions @ axes, bandit.mixture.nearest(state.expand(count, -1), actions)

    return counted(known, draw, draws)


def _line_law_of(bandit: Bandit, state: Tensor, sampler: Chain | BestOf) -> LineLaw:
    if isinstance(sampler, Chain):
        return line_law(sampler)
    law = behaviour(bandit, state)
    assert isinstance(law, LineLaw)
    return LineLaw(law.x, best_of(law.mass, values_at(bandit, state, law), sampler.count))


def _best_in_plane(bandit: Bandit, state: Tensor, sampler: BestOf, known: PlaneTruth) -> Judged:
    law = behaviour(bandit, state)
    assert isinstance(law, Cloud)
    values = _values(bandit, tuple(state[0].tolist()))
    best = Cloud(law.x, best_of(law.mass, values, sampler.count))
    tv = mode_total_variation(mode_weights(bandit, state, best), known.weights)
    pairs = zip(marginals(best), known.marginals, strict=True)
    return Judged(tv, 0.0, max(deviation(own.mass, truth) for own, truth in pairs))
