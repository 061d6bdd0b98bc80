"""The population methods, each a few lines over one engine.

| method | on the way | unbiased Ẑ |
|---|---|---|
| ``ImportanceResampling`` | nothing | yes |
| ``BestOfN`` | nothing; the best end wins | no |
| ``FKSteering`` | rewards of clean predictions, three potentials | yes |
| ``TDS`` | the same, "difference", around a guided chain | yes |
| ``ValueTwisted`` | a learned ``log h`` | yes |
| ``SVDD`` | one of several candidates per step, by value | yes, by weight; no, by argmax |
"""

import math
from dataclasses import dataclass
from typing import Literal

from difftilt.chains.chain import Chain, Kernel
from difftilt.errors import InputError
from difftilt.smc.feynman_kac import Resampling
from difftilt.smc.population import Population
from difftilt.smc.potentials import Potential, Twist
from difftilt.values.functions import Value

Scheme = Literal["multinomial", "stratified", "systematic"]
SCHEMES = ("multinomial", "stratified", "systematic")


def _check_size(name: str, size: int) -> None:
    if size < 1:
        raise InputError(f"{name} must be at least 1, got {size}")


def _check(particles: int, threshold: float, scheme: str) -> None:
    _check_size("particles", particles)
    if not threshold >= 0:
        raise InputError(f"threshold = {threshold} must be a share of particles, at least 0 (0.5)")
    if scheme not in SCHEMES:
        raise InputError(f"scheme {scheme!r} is not one of {', '.join(SCHEMES)}")


@dataclass(frozen=True)
class ImportanceResampling(Population):
    """K paths of the proposal, one of them drawn by its weight ``r^β p/q``; Ẑ is their mean.

    Arguments:
        particles: K.

    Source: sampling importance resampling, Rubin 1987.
    """

    particles: int

    def __post_init__(self) -> None:
        _check_size("particles", self.particles)

    @property
    def size(self) -> int:
        return self.particles

    @property
    def resampling(self) -> Resampling:
        return Resampling(0.0, "multinomial")


@dataclass(frozen=True)
class BestOfN(Population):
    """N paths of the proposal, and the one of the highest reward.

    Not a sampler of the tilt: with growing N it finds the reward's maximum, whatever β, and forgets
    the prior; it has no estimate of Z. Common practice, here for comparison.

    Arguments:
        particles: N.
    """

    particles: int

    def __post_init__(self) -> None:
        _check_size("particles", self.particles)

    @property
    def consistent(self) -> bool:
        return False

    @property
    def size(self) -> int:
        return self.particles

    @property
    def resampling(self) -> Resampling:
        return Resampling(0.0, "multinomial")


@dataclass(frozen=True)
class FKSteering(Population):
    """Particles resampled by what the reward says of the prior's clean predictions.

    The factors of the steps are in ``difftilt.smc.potentials``: with "difference" they telescope,
    with "max" and "sum" the last one divides the others out, so all three end with the weight
    ``r^β p/q`` and an unbiased Ẑ; the last two pay for it in variance, the more the more often
    they look. Unlike in the paper, twists have a floor (see ``Twist``; ``floor=1000`` is none), x_N
    is looked at if ``every`` divides N, resampling may be adaptive, and the weights that are left
    at the end draw the one sample.

    Arguments:
        particles: K.
        potential: "difference", "max" or "sum".
        every: look at, and resample by, every so many levels (those that ``every`` divides).
        threshold: resample below this share of effective particles; 1: whenever weights differ.
        floor: of the twists, nats below the system's best particle.
        scheme: of the resampling; certificates need "multinomial".

    Source: Singhal et al. 2025 (arXiv 2501.06848).
    """

    particles: int
    potential: Potential = "difference"
    every: int = 1
    threshold: float = 1.0
    floor: float = 4.0
    scheme: Scheme = "multinomial"

    def __post_init__(self) -> None:
        _check(self.particles, self.threshold, self.scheme)
        Twist(None, self.potential, self.every, self.floor)  # checks them

    @property
    def size(self) -> int:
        return self.particles

    @property
    def resampling(self) -> Resampling:
        return Resampling(self.threshold, self.scheme)

    @property
    def twist(self) -> Twist:
        return Twist(None, self.potential, self.every, self.floor)


@dataclass(frozen=True)
class TDS(Population):
    """Twisted diffusion sampler: a guided chain proposes, ``U_n = β log r(x̂_0(x_n))`` twists.

    A step's weight is ``p(x_{n-1} | x_n) e^{U_{n-1}} / (q(x_{n-1} | x_n) e^{U_n})``: exact, for any
    guidance whose steps have a density.

    Arguments:
        particles: K.
        kernel: the guidance, instead of the kernel of the chain that is sampled; None keeps that.
        threshold: resample below this share of effective particles.
        floor: of the twists, nats below the system's best particle.
        scheme: of the resampling; certificates need "multinomial".

    Source: Wu et al. 2023, algorithm 1 (arXiv 2306.17775).
    """

    particles: int
    kernel: Kernel | None = None
    threshold: float = 0.5
    floor: float = 4.0
    scheme: Scheme = "multinomial"

    def __post_init__(self) -> None:
        _check(self.particles, self.threshold, self.scheme)
        Twist(floor=self.floor)  # checks it

    @property
    def size(self) -> int:
        return self.particles

    @property
    def resampling(self) -> Resampling:
        return Resampling(self.threshold, self.scheme)

    @property
    def twist(self) -> Twist:
        return Twist(floor=self.floor)

    def proposal(self, chain: Chain) -> Chain:
        return chain if self.kernel is None else chain.tilted(self.kernel, chain.initial)


@dataclass(frozen=True)
class ValueTwisted(Population):
    """Particles twisted by a learned ``log h``; with the true one no weight varies.

    Exact whatever the value is: a bad one costs variance. The reward is asked at the end alone.

    Arguments:
        particles: K.
        value: ``log h``.
        threshold: resample below this share of effective particles.
        floor: of the twists, nats below the system's best particle.
        scheme: of the resampling; certificates need "multinomial".
    """

    particles: int
    value: Value
    threshold: float = 0.5
    floor: float = 10.0
    scheme: Scheme = "multinomial"

    def __post_init__(self) -> None:
        _check(self.particles, self.threshold, self.scheme)
        Twist(self.value, floor=self.floor)  # checks it

    @property
    def size(self) -> int:
        return self.particles

    @property
    def resampling(self) -> Resampling:
        return Resampling(self.threshold, self.scheme)

    @property
    def twist(self) -> Twist:
        return Twist(self.value, floor=self.floor)


@dataclass(frozen=True)
class SVDD(Population):
    """One path; each of its steps is drawn from several candidates by their value.

    By weight, a candidate is picked with probability ∝ ``e^{V(x_{n-1})} p/q``, V a learned
    ``log h`` or the reward of the clean prediction, and ``β log r`` at the end. Then

        Ẑ = e^{V(x_N)} Π_n mean_k e^{V(x_{n-1}^k)} (p/q)_k / e^{V(x_n)}

    is unbiased: it is a particle filter that goes down to one particle at every step. By argmax,
    as published for the limit of no temperature, it is no sampler and has no Ẑ. The published
    method has no floor (``floor=1000``): then a candidate that looks hopeless is never picked, and
    where it looked so wrongly Ẑ misses what it would have led to.

    Arguments:
        candidates: of each step; ``x_N`` is drawn once.
        value: ``log h``; None for the reward of the prior's clean prediction.
        argmax: pick the candidate of the largest ``V + log p/q`` instead.
        floor: of the values, nats below the best candidate.

    Source: Li et al. 2024 (arXiv 2408.08252), with its α at 1: β is in V.
    """

    together = True

    candidates: int
    value: Value | None = None
    argmax: bool = False
    floor: float = 4.0

    def __post_init__(self) -> None:
        _check_size("candidates", self.candidates)
        Twist(self.value, floor=self.floor)  # checks it

    @property
    def consistent(self) -> bool:
        return not self.argmax

    @property
    def size(self) -> int:
        return self.candidates

    @property
    def resampling(self) -> Resampling:
        return Resampling(math.inf, "best" if self.argmax else "single")

    @property
    def twist(self) -> Twist:
        return Twist(self.value, floor=self.floor)
