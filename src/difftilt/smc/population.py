"""Populations: M independent particle systems, each of which gives one sample.

A system of K particles ends with one of them, drawn by its weight, and an estimate Ẑ of Z. Where Ẑ
is unbiased, the pair is a sampler of ``p r^β`` in its own right, on the space of whole systems:

    E[Ẑ f(x_0)] = Z E_π[f],    E[log Ẑ] ≤ log Z,    target / proposal = Ẑ / Z

(Andrieu, Doucet and Holenstein 2010, section 4.4 and Theorem 2), so ``log Ẑ`` is to a population
what ``log w`` is to a chain, and every diagnostic of log-weights applies.

``conditional`` runs the same systems around given paths. Started from exact paths of π its log Ẑ
is that of a system drawn from the target, so ``E[1/Ẑ] = 1/Z`` (where Ẑ > 0 always) and
``E[log Ẑ] ≥ log Z``. Started from paths of the prior it gives ``Λ = β log r - log Ẑ``, the
log-ratio of the population to "a prior path in its system", which is what a certificate reads.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.errors import InputError
from difftilt.noise import Noise
from difftilt.smc.feynman_kac import ParticleSystems, Resampling, particle_systems
from difftilt.smc.potentials import Twist, TwistedChain
from difftilt.smc.resampling import resample_systems

CONDITIONAL_SCHEMES = ("multinomial", "single")


@runtime_checkable
class Goal(Protocol):
    """What a population weighs by; ``difftilt.sampling.draws.Tilted`` is one."""

    @property
    def log_reward(self) -> Callable[[Tensor, Tensor | None], Tensor]:
        """``(x_0, condition) -> log r (B,)``, nats."""
        ...

    @property
    def beta(self) -> float:
        """β > 0."""
        ...


@dataclass(frozen=True)
class Ends:
    """One drawn end of each of M systems.

    Arguments:
        x_0: (M, *event).
        log_r: (M,) ``log r(x_0)``, nats, in float64.
        log_z: (M,) the systems' ``log Ẑ``; -inf for one whose particles all have zero reward (its
            end is then any of them). None where the method has no unbiased Ẑ.
        reward_calls: how many x_0 or clean predictions the reward has seen.
    """

    x_0: Shaped[Tensor, "M ..."]
    log_r: Float[Tensor, " M"]
    log_z: Float[Tensor, " M"] | None
    reward_calls: int

    @staticmethod
    def joined(parts: "list[Ends]") -> "Ends":
        """The ends of several batches as one."""
        log_z = [p.log_z for p in parts if p.log_z is not None]
        return Ends(
            torch.cat([p.x_0 for p in parts]),
            torch.cat([p.log_r for p in parts]),
            torch.cat(log_z) if log_z else None,
            sum(p.reward_calls for p in parts),
        )


class Population(ABC):
    """A method that samples with systems of particles; a frozen record of its options.

    Class attributes:
        together: whether the particles of a system share their ``x_N``.
    """

    together: ClassVar[bool] = False

    @property
    def consistent(self) -> bool:
        """Whether Ẑ is unbiased, hence the ends weighted by Ẑ are the posterior's.

        The other methods have no Ẑ, and their summary says what they are.
        """
        return True

    @property
    @abstractmethod
    def size(self) -> int:
        """K, the particles of a system."""

    @property
    @abstractmethod
    def resampling(self) -> Resampling:
        """When and how a system is resampled."""

    @property
    def twist(self) -> Twist | None:
        """What particles are weighed by on their way; None: by nothing."""
        return None

    def proposal(self, chain: Chain) -> Chain:
        """The chain that moves the particles."""
        return chain

    def draw(self, chain: Chain, goal: Goal, systems: int, noise: Noise) -> Ends:
        """Run M systems and draw an end of each.

        Arguments:
            chain: proposals; a bound condition has one row, or one per system.
            goal: what to weigh by.
            systems: M.
            noise: of everything; the streams of a ``StreamNoise`` are the systems.

        Raises:
            InputError: M < 1, M conditions that do not fit, or a log-weight NaN or +inf.
        """
        model = self._model(chain, goal, systems, noise)
        ran = particle_systems(model, systems, self.size, self.resampling, noise)
        rows = torch.arange(systems, device=ran.log_w.device) * self.size + self._chosen(ran, noise)
        log_z = ran.log_z if self.consistent else None
        x_0, log_r = ran.state[0][rows], ran.state[2][rows] / goal.beta
        return Ends(x_0, log_r, log_z, model.reward_calls)

    def conditional(
        self, chain: Chain, goal: Goal, path: Path, noise: Noise
    ) -> tuple[Float[Tensor, " M"], int]:
        """``log Ẑ`` of M systems, each around one given path, and the calls of the reward.

        Arguments:
            chain: proposals, as in ``draw``; their condition must be the paths' own.
            goal: what to weigh by.
            path: M whole paths; those of π give a system of the target's law.
            noise: of everything but the paths.

        Raises:
            InputError: the method has no unbiased Ẑ, its resampling is neither "multinomial" nor
                "single", or the path holds its ends alone.

        Source: Andrieu, Doucet and Holenstein 2010, section 4.3 (conditional SMC).
        """
        self.check_conditional()
        if len(path.states) != chain.steps + 1:
            raise InputError(
                f"conditional runs follow whole paths of {chain.steps + 1} states, got "
                f"{len(path.states)}; draw them with record=True"
            )
        model = self._model(chain, goal, path.batch, noise)
        model.pinned = path
        resampling = replace(self.resampling, pinned=True)
        ran = particle_systems(model, path.batch, self.size, resampling, noise)
        return ran.log_z, model.reward_calls

    @property
    def has_conditional(self) -> bool:
        """Whether its systems have an exact law around a given path (``conditional``)."""
        return self.consistent and self.resampling.scheme in CONDITIONAL_SCHEMES

    def check_conditional(self) -> None:
        """Refuse a method whose systems have no exact law around a given path."""
        name = type(self).__name__
        if not self.consistent:
            raise InputError(
                f"{name} has no unbiased estimate of Z, so there is nothing to certify; judge its "
                "samples, or take a method that has one"
            )
        if self.resampling.scheme not in CONDITIONAL_SCHEMES:
            raise InputError(
                f"{name} with {self.resampling.scheme} resampling has no exact conditional run; "
                "take scheme='multinomial'"
            )

    def _model(self, chain: Chain, goal: Goal, systems: int, noise: Noise) -> TwistedChain:
        chain = self.proposal(_spread(chain, systems, self.size))
        return TwistedChain(
            chain,
            goal.log_reward,
            goal.beta,
            noise,
            self.twist,
            group=self.size,
            together=self.together,
        )

    def _chosen(self, ran: ParticleSystems, noise: Noise) -> Int[Tensor, " M"]:
        """The particle of each system that is its end: by weight, or the best where no weights."""
        if not self.consistent:
            return ran.state[2].unflatten(0, ran.log_w.shape).argmax(1)
        chosen, alive = torch.zeros_like(ran.resampled), ran.log_w.amax(1) > -math.inf
        if self.size > 1 and bool(alive.any()):
            drawn = resample_systems(ran.log_w[alive], 1, "multinomial", noise.of(alive))
            chosen[alive] = drawn[:, 0]
        return chosen


def _spread(chain: Chain, systems: int, particles: int) -> Chain:
    """The chain with its condition once per particle."""
    if systems < 1:
        raise InputError(f"a population needs at least 1 system, got {systems}")
    if chain.condition is None:
        return chain
    if len(chain.condition) not in (1, systems):
        raise InputError(
            f"{len(chain.condition)} conditions are bound for {systems} systems; bind one, or one "
            "per system"
        )
    each = chain.condition.expand(systems, *chain.condition.shape[1:])
    return chain.given(each.repeat_interleave(particles, 0))
