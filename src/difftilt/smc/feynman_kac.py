"""Sequential Monte Carlo: one engine, apart from the models it runs.

A ``FeynmanKac`` model says how particles start, how they move and how their weights grow; the
engine resamples when the weights become uneven and keeps an unbiased estimate of Z. Guidance
methods by particles differ in proposal and potential, never in this loop.

Source: Chopin & Papaspiliopoulos 2020, An Introduction to Sequential Monte Carlo, algorithm 10.3.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.smc.resampling import systematic

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
    state, log_w = model.start(particles)
    log_z, resampled = 0.0, 0
    for index in range(model.moves):
        if _effective_share(log_w) < threshold:
            log_z += float(torch.logsumexp(log_w, 0)) - math.log(particles)
            rows = systematic(log_w, particles, generator)
            state, log_w = tuple(t[rows] for t in state), torch.zeros_like(log_w)
            resampled += 1
        state, growth = model.move(index, state)
        log_w = log_w + growth
    log_z += float(torch.logsumexp(log_w, 0)) - math.log(particles)
    return Particles(state, log_w, log_z, resampled)


def _effective_share(log_w: Float[Tensor, " K"]) -> float:
    if not bool(torch.isfinite(log_w).any()):
        return 1.0
    w = torch.exp(log_w - log_w.max())
    return float(w.sum() ** 2 / (w**2).sum() / len(w))
