"""A problem whose posterior is known, and the truth that no method may read.

The truth is that of the *discrete* chain: the chain's own ``p(x_0)`` is the prior, and the
posterior is ``π(τ) ∝ p(τ) r(x_0)``. An exact draw of π needs no formula: a path of the prior,
accepted with probability ``r(x_0) / M`` where ``r <= M`` (``rejection_paths``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise
from difftilt.rewards.wrappers import GaussianLikelihood

LogReward = Callable[[Tensor], Tensor]
Functional = Callable[[Tensor], Tensor]


@runtime_checkable
class PathSampler(Protocol):
    """Exact, independent draws of the tilted path measure π."""

    def __call__(
        self, n: int, generator: torch.Generator | None = None, record: bool = True
    ) -> Path:
        """``n`` paths; with ``record=False`` only their ends are kept."""
        ...


@dataclass(frozen=True)
class Truth:
    """What is known of the posterior of the discrete chain.

    Arguments:
        log_z: ``log E_p[r(x_0)]`` in nats.
        log_z_standard_error: 0 for closed forms and quadrature.
        label: ``x_0 (B, ...) -> mode or cell number (B,)``.
        label_probabilities: posterior mass of each label.
        mean: posterior mean of x_0, shape of the event.
        covariance: posterior covariance of x_0, (d, d).
        sample_paths: exact draws of π.
        statistics: name -> (functional of x_0, its exact posterior expectation).
        kl_to_prior: ``KL(π ‖ p)`` in nats.
        prior_ess: effective sample size of prior draws weighted by r, as a share.
        floors: least path-KL ``KL(π ‖ q)`` in nats within a family of kernels: ``prior_variance``
            (shifted means), ``diagonal_variance`` (free diagonal too), ``initial`` (the law of x_N
            kept); each kernel floor excludes ``initial``.
    """

    log_z: float
    log_z_standard_error: float = 0.0
    label: Callable[[Tensor], Int[Tensor, " B"]] | None = None
    label_probabilities: Float[Tensor, " labels"] | None = None
    mean: Tensor | None = None
    covariance: Float[Tensor, "d d"] | None = None
    sample_paths: PathSampler | None = None
    statistics: Mapping[str, tuple[Functional, float]] = field(default_factory=dict)
    kl_to_prior: float | None = None
    prior_ess: float | None = None
    floors: Mapping[str, float] = field(default_factory=dict)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n ..."]:
        """``n`` exact, independent draws of x_0.

        Raises:
            InputError: this truth has no exact sampler.
        """
        if self.sample_paths is None:
            raise InputError("this truth has no exact sampler; build it with sample_paths")
        return self.sample_paths(n, generator, record=False).x_0


@dataclass(frozen=True)
class ExactProblem:
    """A prior chain, a reward, and the answer.

    Arguments:
        name: as in ``problems()``.
        summary: one line.
        chain: the prior.
        log_reward: ``x_0 (B, *event) -> log r (B,)`` in nats.
        log_bound: a bound of ``log r``, or None.
        truth: for judges only.
        likelihood: the reward as a Gaussian likelihood, for methods that need one, or None.
    """

    name: str
    summary: str
    chain: Chain
    log_reward: LogReward
    log_bound: float | None
    truth: Truth
    likelihood: GaussianLikelihood | None = None


def rejection_paths(
    chain: Chain,
    log_reward: LogReward,
    log_bound: float,
    batch: int = 8192,
    most: int = 100_000_000,
) -> PathSampler:
    """A sampler of π that accepts each path of the prior with probability ``r(x_0) / M``.

    Arguments:
        chain: the prior.
        log_reward: in nats.
        log_bound: ``log M``, with ``r <= M`` everywhere.
        batch: prior paths per round.
        most: prior paths after which the sampler gives up.
    """

    def accepted(generator: torch.Generator | None, record: bool) -> Path:
        path = rollout(chain, batch, GeneratorNoise(generator), record=record)
        uniform = torch.rand(batch, generator=generator, dtype=torch.float64)
        excess = log_reward(path.x_0) - log_bound
        if bool((excess > 1e-4).any()):
            raise InputError(f"log r exceeds its stated bound {log_bound:.4f}; state a larger one")
        return replace(path.select(uniform.log() < excess), log_ratio=None)

    def sample_paths(n: int, generator: torch.Generator | None = None, record: bool = True) -> Path:
        parts, found, tried = [], 0, 0
        while found < n:
            if tried >= most:
                raise InputError(
                    f"rejection accepted {found} of {tried} prior paths; the reward is too rare"
                )
            parts.append(accepted(generator, record))
            found, tried = found + parts[-1].batch, tried + batch
        return Path.joined(parts).select(torch.arange(n))

    return sample_paths
