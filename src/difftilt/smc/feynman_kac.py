"""Sequential Monte Carlo: one engine, apart from the models it runs.

A ``FeynmanKac`` model says how particles start, how they move and how their weights grow; the
engine resamples when the weights become uneven and keeps an unbiased estimate of Z. Guidance
methods by particles differ in proposal and potential, never in this loop.

The engine runs M independent systems of K particles at once (``particle_systems``): rows m K ...
m K + K - 1 of every tensor are system m, which is resampled by itself. ``particle_filter`` is the
case of one system.

Source: Chopin & Papaspiliopoulos 2020, An Introduction to Sequential Monte Carlo, algorithm 10.3.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise, Noise
from difftilt.smc.resampling import resample_systems

State = tuple[Tensor, ...]


class FeynmanKac(ABC):
    """Initial law, moves and log-potentials of a particle system with ``moves`` moves."""

    moves: int

    @abstractmethod
    def start(self, particles: int) -> tuple[State, Float[Tensor, " K"]]:
        """Particles, as tensors with a first axis of K, and their first log-weights."""

    @abstractmethod
    def move(self, index: int, state: State) -> tuple[State, Float[Tensor, " K"]]:
        """Move ``index`` (0, 1, ...) of all particles and the growth of their log-weights."""


@dataclass(frozen=True)
class Particles:
    """A weighted sample.

    Arguments:
        state: tensors with a first axis of K.
        log_w: (K,) unnormalised log-weights since the last resampling.
        log_z: estimate of log Z (the estimate of Z is unbiased).
        resampled: how often the particles were resampled.
    """

    state: State
    log_w: Float[Tensor, " K"]
    log_z: float
    resampled: int


@dataclass(frozen=True)
class ParticleSystems:
    """Weighted samples of M systems of K particles.

    Arguments:
        state: tensors with a first axis of M K, system by system.
        log_w: (M, K) unnormalised log-weights since the system's last resampling.
        log_z: (M,) estimates of log Z, one per system (those of Z are unbiased); -inf for a
            system whose particles all have weight zero.
        resampled: (M,) how often each was resampled.
    """

    state: State
    log_w: Float[Tensor, "M K"]
    log_z: Float[Tensor, " M"]
    resampled: Int[Tensor, " M"]


@dataclass(frozen=True)
class Resampling:
    """When and how a system is resampled.

    Arguments:
        threshold: resample below this share of effective particles; 0 never does (importance
            sampling), 1 does whenever weights differ, inf at every step.
        scheme: of ``resample_systems``, or "best": the heaviest particle, copied K times, which
            is biased.
        pinned: the first particle of each system is a given path that is never lost (conditional
            SMC); right for "multinomial" and "single", whose draws are independent or all equal.
    """

    threshold: float = 0.5
    scheme: str = "systematic"
    pinned: bool = False

    def rows(self, log_w: Float[Tensor, "M K"], noise: Noise) -> Int[Tensor, "M K"]:
        """The ancestors of the K particles of each system."""
        particles = log_w.shape[1]
        if self.scheme == "best":
            return log_w.argmax(1, keepdim=True).expand(-1, particles)
        if self.pinned and self.scheme == "single":
            return torch.zeros_like(log_w, dtype=torch.long)
        rows = resample_systems(log_w, particles, self.scheme, noise)
        if self.pinned:
            rows[:, 0] = 0
        return rows

    def wanted(self, log_w: Float[Tensor, "M K"]) -> Bool[Tensor, " M"]:
        """Which systems to resample now; a system without a positive weight cannot be."""
        alive = log_w.amax(1) > -math.inf
        if log_w.shape[1] == 1:
            return torch.zeros_like(alive)
        return alive & (_effective_shares(log_w) < self.threshold)


@torch.no_grad()
def particle_systems(
    model: FeynmanKac, systems: int, particles: int, resampling: Resampling, noise: Noise
) -> ParticleSystems:
    """Run M systems of K particles side by side.

    Arguments:
        model: what moves and weighs all M K rows.
        systems: M.
        particles: K.
        resampling: when and how; each system by itself.
        noise: of the resampling; the streams of a ``StreamNoise`` are the systems.

    Raises:
        InputError: a log-weight became NaN or +inf.
    """
    state, growth = model.start(systems * particles)
    log_w = _grown(0.0, growth, particles)
    log_z, resampled = log_w.new_zeros(systems), log_w.new_zeros(systems, dtype=torch.long)
    for index in range(model.moves):
        wanted = resampling.wanted(log_w)
        if bool(wanted.any()):
            rows = torch.arange(systems * particles, device=log_w.device).reshape(log_w.shape)
            local = resampling.rows(log_w[wanted], noise.of(wanted))
            rows[wanted] = rows[wanted].gather(1, local)
            log_z = log_z + torch.where(wanted, _log_means(log_w), 0.0)
            state, resampled = tuple(t[rows.flatten()] for t in state), resampled + wanted
            log_w = log_w.masked_fill(wanted[:, None], 0.0)
        state, growth = model.move(index, state)
        log_w = _grown(log_w, growth, particles)
    return ParticleSystems(state, log_w, log_z + _log_means(log_w), resampled)


def particle_filter(
    model: FeynmanKac,
    particles: int,
    threshold: float = 0.5,
    generator: torch.Generator | None = None,
) -> Particles:
    """Run a model; resample when the effective sample size falls below ``threshold`` K.

    Arguments:
        model: what moves and weighs.
        particles: K.
        threshold: in [0, 1]; 0 never resamples (importance sampling).
        generator: for resampling.
    """
    resampling = Resampling(threshold, "systematic")
    ran = particle_systems(model, 1, particles, resampling, GeneratorNoise(generator))
    return Particles(ran.state, ran.log_w[0], float(ran.log_z), int(ran.resampled))


def _grown(log_w: Tensor | float, growth: Float[Tensor, " R"], particles: int) -> Tensor:
    grown = log_w + growth.unflatten(0, (-1, particles))
    if not bool((grown < math.inf).all()):
        raise InputError(
            "a particle's log-weight became NaN or +inf: check that the twist's value network and "
            "the chain's kernel are finite"
        )
    return grown


def _log_means(log_w: Float[Tensor, "M K"]) -> Float[Tensor, " M"]:
    return torch.logsumexp(log_w, 1) - math.log(log_w.shape[1])


def _effective_shares(log_w: Float[Tensor, "M K"]) -> Float[Tensor, " M"]:
    """``(Σ w)² / (K Σ w²)`` of each system; NaN without a positive weight."""
    w = torch.exp(log_w - log_w.amax(1, keepdim=True))
    return w.sum(1) ** 2 / (w**2).sum(1) / log_w.shape[1]
