"""Samples and certificates of populations (``difftilt.smc``), as chains have them.

``PopulationSampler`` binds a method to a chain and a target. Each sample comes from a system of
particles of its own, with its own stream of random numbers, so that sample i does not depend on n.

The certificate is the same one as a chain's, on the space of whole systems. A system that drew the
path τ has, against the law "τ from the prior, the other particles around it" (conditional SMC),

    Λ = log q/p = β log r(τ) - log Ẑ,      log w = β log r - Λ = log Ẑ.

So prior paths, each with a conditional system around it, make the defensive mixture, its proven
interval of log Z and the bound of the total variation; the latter bounds that of the drawn x_0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.diagnostics.certificate import Certificate, Expense, PathScores, certify_weights
from difftilt.errors import InputError
from difftilt.noise import StreamNoise
from difftilt.sampling.draws import (
    SCORED_TWICE,
    Samples,
    Tilted,
    batches,
    bound_rows,
    check_one_condition,
    prior_count,
    reward_noise,
)
from difftilt.smc.population import Ends, Population

ROWS_AT_ONCE = 4096


def _same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class PopulationSampler:
    """A population method, bound to the chain that proposes and the target. ``Target.population``.

    Arguments:
        method: e.g. ``FKSteering(16)``.
        chain: what moves the particles; prior, guided or trained.
        target: what is sampled.
        decode: from the chain's x_0 to what the user sees.
    """

    method: Population
    chain: Chain
    target: Tilted
    decode: Callable[[Tensor], Tensor] = _same

    def given(self, condition: Tensor) -> "PopulationSampler":
        """This sampler with a condition (1, ...), or (n, ...) for n samples, bound."""
        return replace(self, chain=self.chain.given(condition))

    def sample(self, n: int, seed: int = 0) -> Shaped[Tensor, "n ..."]:
        """``n`` independent samples (decoded), one of each of n systems.

        Raises:
            InputError: n < 1, or every particle of every system has zero reward.
        """
        return self.decode(self.draw(n, seed).x_0)

    def draw(self, n: int, seed: int = 0) -> Samples:
        """Like ``sample``, undecoded, with ``log r`` and ``log_w = log Ẑ`` (None without a Ẑ).

        Weighted by Ẑ the samples are the posterior's; a system whose particles all have zero reward
        has the weight 0.
        """
        ends = self._ends(n, seed)
        if bool((ends.log_r == -math.inf).all()):
            raise InputError(
                f"every particle of all {n} systems ends with zero reward (log r = -inf); take "
                "more particles, a better proposal, or a reward that is positive somewhere on "
                "the proposal's samples"
            )
        return Samples(ends.x_0, ends.log_r, ends.log_z)

    def certify(
        self, n: int = 1024, *, share: float = 0.25, confidence: float = 0.99, seed: int = 0
    ) -> Certificate:
        """How near the population is to the posterior; its "paths" are systems.

        Arguments:
            n: systems in all, of K paths each.
            share: of them that are run around a prior path, in (0, 1).
            confidence: of every interval and bound.
            seed: of the systems.

        Raises:
            InputError: several conditions are bound, share outside (0, 1), too few systems, a
                method without an unbiased Ẑ, or one whose resampling has no exact conditional run.
        """
        self.method.check_conditional()
        check_one_condition(self.chain, "certificates", "certify with each by itself")
        before, n_prior = self.chain.calls.total, prior_count(n, share)
        ends = self._ends(n - n_prior, seed)
        prior, asked = self._around_prior(n_prior, seed + 1)
        assert ends.log_z is not None
        own = PathScores(_log_ratio(ends.log_r, ends.log_z, self.target.beta), ends.log_r)
        calls = self.chain.calls.total - before
        condition = bound_rows(self.chain, range(min(SCORED_TWICE, len(ends.x_0)))).condition
        noise, twice = reward_noise(self.target, ends.x_0, condition)
        expense = Expense(calls, ends.reward_calls + asked + twice, noise)
        bound = self.target.log_bound
        return certify_weights(own, prior, self.target.beta, bound, confidence, expense)

    def _ends(self, n: int, seed: int) -> Ends:
        if n < 1:
            raise InputError(f"n must be at least 1 system, got {n}")
        parts = []
        for rows in batches(n, max(1, ROWS_AT_ONCE // self.method.size)):
            bound, noise = bound_rows(self.chain, rows), StreamNoise(seed, rows)
            parts.append(self.method.draw(bound, self.target, len(rows), noise))
        return Ends.joined(parts)

    def _around_prior(self, n: int, seed: int) -> tuple[PathScores, int]:
        """Scores of systems around prior paths, and the calls of the reward."""
        ratios, rewards, asked = [], [], n
        for rows in batches(n, max(1, ROWS_AT_ONCE // self.method.size)):
            bound, noise = bound_rows(self.chain, rows), StreamNoise(seed, rows)
            path = rollout(bound.prior, len(rows), noise)
            log_r = self.target.log_reward(path.x_0, path.condition).double()
            log_z, count = self.method.conditional(bound, self.target, path, noise)
            ratios.append(_log_ratio(log_r, log_z, self.target.beta))
            rewards.append(log_r)
            asked += count
        return PathScores(torch.cat(ratios), torch.cat(rewards)), asked


def _log_ratio(
    log_r: Float[Tensor, " n"], log_z: Float[Tensor, " n"], beta: float
) -> Float[Tensor, " n"]:
    """``β log r - log Ẑ``; a path of zero reward is never drawn, and its weight is 0 anyway."""
    return torch.where(log_r == -math.inf, log_r, beta * log_r - log_z)


def sample_population(
    population: Population, chain: Chain, target: Tilted, n: int, seed: int = 0
) -> Samples:
    """``n`` samples by systems of particles: ``PopulationSampler.draw``."""
    return PopulationSampler(population, chain, target).draw(n, seed)


def certify_population(
    population: Population, chain: Chain, target: Tilted, n: int = 1024, seed: int = 0
) -> Certificate:
    """How near a population is to the posterior: ``PopulationSampler.certify``."""
    return PopulationSampler(population, chain, target).certify(n, seed=seed)
