"""The optimal policy of a bandit, in any state and for any β, and how far a policy is from it.

On the line both laws are quadratures on one grid (``line_law``): their total variation is exact,
with no sampling noise. In more dimensions the truth is still a quadrature, in the plane that the
mixture lies in (``plane.data_law``), but the policy's mode weights are counted from draws, and
``counting_floor`` says how far counts of the truth itself would be.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains import Chain
from difftilt.diagnostics.distances import mode_total_variation
from difftilt.noise import GeneratorNoise
from difftilt.rollouts import rollout
from difftilt.tasks.bandits.line import LineLaw, best_of, line_law
from difftilt.tasks.bandits.problems import COMPONENTS, Bandit
from difftilt.tasks.exact.plane import Cloud, data_law

FINENESS = 2.0
"""Of the plane's quadrature; mode weights are right to 1e-4 (the tests halve it)."""


@dataclass(frozen=True)
class BestOf:
    """The policy that takes the action of the highest Q among several of the behaviour's (IDQL).

    Arguments:
        count: of actions, at least 1.
    """

    count: int


Policy = Callable[[Float[Tensor, "1 S"], float], Chain | BestOf]
"""``(state, β) -> the sampler of actions there``."""


@lru_cache(maxsize=1024)
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
    flat = bandit if bandit.dimension == 1 else Bandit("ring", bandit.critic, bandit.steps)
    return flat.value(state.double().expand(len(points), -1), points)


def optimal(bandit: Bandit, state: Float[Tensor, "1 S"], beta: float) -> LineLaw | Cloud:
    """``μ(a | s) exp(β Q(s, a)) / Z`` of the discrete chain, in a state.

    Arguments:
        bandit: the problem.
        state: (1, 2).
        beta: β >= 0.
    """
    law = behaviour(bandit, state)
    return law.tilted(beta * values_at(bandit, state, law))


def log_partition(bandit: Bandit, state: Float[Tensor, "1 S"], beta: float) -> float:
    """``log Z(s, β)`` in nats, of actions on the line or of their part in the plane."""
    law = behaviour(bandit, state)
    return float((law.mass.log() + beta * values_at(bandit, state, law)).logsumexp(0))


def mode_weights(
    bandit: Bandit, state: Float[Tensor, "1 S"], law: LineLaw | Cloud
) -> Float[Tensor, " K"]:
    """Masses of the actions that are nearest to each component."""
    flat = bandit if bandit.dimension == 1 else Bandit("ring", bandit.critic, bandit.steps)
    points = law.x.reshape(len(law.x), -1)
    nearest = flat.mixture.nearest(state.double().expand(len(points), -1), points)
    masses = torch.zeros(COMPONENTS[bandit.geometry], dtype=torch.float64)
    return masses.index_add(0, nearest, law.mass)


@dataclass(frozen=True)
class Distances:
    """Total variation to the optimal policy, in each state and for each β.

    Arguments:
        betas: β.
        tv: (states, betas); of laws on the line, else of mode weights.
        floor: (states, betas) expected of draws of the truth itself; zero on the line.
    """

    betas: tuple[float, ...]
    tv: Float[Tensor, "states betas"]
    floor: Float[Tensor, "states betas"]

    def to_dict(self) -> dict[str, float]:
        """Mean and largest over the states for each β, and over all."""
        each = {f"mean_{b:g}": float(v) for b, v in zip(self.betas, self.tv.mean(0), strict=True)}
        each |= {f"max_{b:g}": float(v) for b, v in zip(self.betas, self.tv.amax(0), strict=True)}
        share = float((self.tv <= 0.02).double().mean())
        total = {"tv_mean": float(self.tv.mean()), "tv_max": float(self.tv.max())}
        return {**each, **total, "within": share, "floor": float(self.floor.mean())}


@torch.no_grad()
def distances(
    bandit: Bandit,
    policy: Policy,
    states: Float[Tensor, "count S"],
    betas: Sequence[float] = (0.0, 1.0, 3.0, 10.0),
    draws: int = 4000,
    seed: int = 0,
) -> Distances:
    """How far a policy is from the optimal one.

    Arguments:
        bandit: with the answer.
        policy: ``(state, β) -> chain``.
        states: to judge in.
        betas: to judge at.
        draws: of each policy in each state, where mode weights are counted.
        seed: of these draws.
    """
    noise = GeneratorNoise(torch.Generator().manual_seed(seed))
    tv = torch.zeros(len(states), len(betas), dtype=torch.float64)
    floor = torch.zeros_like(tv)
    for i, state in enumerate(states[:, None]):
        for j, beta in enumerate(betas):
            truth, sampler = optimal(bandit, state, beta), policy(state, beta)
            if isinstance(truth, LineLaw):
                tv[i, j] = _line_law_of(bandit, state, sampler).total_variation(truth)
                continue
            wanted = mode_weights(bandit, state, truth)
            found = _weights_of(bandit, state, sampler, draws, noise)
            tv[i, j] = mode_total_variation(found, wanted)
            floor[i, j] = 0.0 if isinstance(sampler, BestOf) else counting_floor(wanted, draws)
    return Distances(tuple(betas), tv, floor)


def counting_floor(masses: Float[Tensor, " K"], draws: int) -> float:
    """``E TV`` between the shares of n independent draws and their law, for large n.

    Each share errs like a Gaussian of variance ``p (1 - p) / n``, whose mean size is
    ``sqrt(2 / π)`` of its standard deviation.
    """
    return (
        0.5
        * float((masses * (1 - masses)).clamp(min=0).sqrt().sum())
        * math.sqrt(2 / (math.pi * draws))
    )


def _line_law_of(bandit: Bandit, state: Tensor, sampler: Chain | BestOf) -> LineLaw:
    if isinstance(sampler, Chain):
        return line_law(sampler)
    law = behaviour(bandit, state)
    assert isinstance(law, LineLaw)
    return LineLaw(law.x, best_of(law.mass, values_at(bandit, state, law), sampler.count))


def _weights_of(
    bandit: Bandit, state: Tensor, sampler: Chain | BestOf, draws: int, noise: GeneratorNoise
) -> Float[Tensor, " K"]:
    if isinstance(sampler, BestOf):
        law = behaviour(bandit, state)
        assert isinstance(law, Cloud)
        best = best_of(law.mass, values_at(bandit, state, law), sampler.count)
        return mode_weights(bandit, state, Cloud(law.x, best))
    assert sampler.condition is not None
    bound = sampler.given(sampler.condition.expand(draws, -1))
    actions = rollout(bound, draws, noise, record=False).x_0
    nearest = bandit.mixture.nearest(state.expand(draws, -1), actions)
    return torch.bincount(nearest, minlength=COMPONENTS[bandit.geometry]).double() / draws
