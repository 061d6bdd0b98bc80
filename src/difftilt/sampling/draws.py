"""Samples of any chain, their exact correction, and their certificate.

The three verbs serve every chain alike, trained or guided, because they read only paths, their
log-ratio ``Λ`` to the prior and their reward.

* ``sample``: independent samples, one stream per sample;
* ``corrected_sample``: exact in the limit of proposals ("snis"), of steps ("mh") or of particles
  ("smc"), whatever the chain is;
* ``certify``: how near the chain is to the posterior.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.diagnostics.certificate import Certificate, Expense, PathScores, certify_weights
from difftilt.diagnostics.evidence import defensive_log_weights
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise, StreamNoise
from difftilt.smc.feynman_kac import particle_filter
from difftilt.smc.metropolis import independence_metropolis
from difftilt.smc.potentials import Twist, TwistedChain
from difftilt.smc.resampling import systematic

Correction = Literal["snis", "mh", "smc"]
CORRECTIONS = ("snis", "mh", "smc")
CERTIFIED_AT_ONCE = 512
SCORED_TWICE = 8


@dataclass(frozen=True)
class Samples:
    """Samples with what is known of each.

    Arguments:
        x_0: (n, *event), before any decoding.
        log_r: (n,) ``log r``, nats, or None where the reward was not asked.
        log_w: (n,) ``β log r - Λ``: log-weight of each sample against the posterior, or None.
    """

    x_0: Shaped[Tensor, "n ..."]
    log_r: Float[Tensor, " n"] | None = None
    log_w: Float[Tensor, " n"] | None = None


@dataclass(frozen=True)
class Tilted:
    """The target ``p(x_0) r(x_0)^β`` on a chain: what corrections and certificates need.

    Arguments:
        log_reward: ``(x_0, condition) -> log r (B,)``, nats.
        beta: β > 0.
        log_bound: upper bound of ``log r``, or None.
    """

    log_reward: Callable[[Tensor, Tensor | None], Tensor]
    beta: float = 1.0
    log_bound: float | None = None


def batches(n: int, batch: int) -> Iterator[range]:
    """``0 ... n - 1`` in ranges of at most ``batch``."""
    for start in range(0, n, batch):
        yield range(start, min(start + batch, n))


def bound_rows(chain: Chain, rows: range) -> Chain:
    """The chain with the conditions of some samples; a single one serves all.

    Raises:
        InputError: several conditions are bound, but fewer than samples.
    """
    if chain.condition is None:
        return chain
    if len(chain.condition) == 1:
        return chain.given(chain.condition.expand(len(rows), *chain.condition.shape[1:]))
    if len(chain.condition) < rows.stop:
        raise InputError(
            f"{len(chain.condition)} conditions are bound, too few for {rows.stop} samples; bind a "
            "single one for all samples, or one for each"
        )
    return chain.given(chain.condition[rows.start : rows.stop])


def check_one_condition(chain: Chain, what: str, remedy: str) -> None:
    """Refuse several bound conditions where samples of one are weighed against each other."""
    if chain.condition is not None and len(chain.condition) != 1:
        raise InputError(
            f"{what} weigh samples of one condition against each other, got "
            f"{len(chain.condition)} conditions; {remedy}"
        )


def sample_paths(chain: Chain, n: int, seed: int, batch: int = 1024, record: bool = False) -> Path:
    """``n`` paths, each from its own stream of ``seed``: the batch size does not change a draw.

    Raises:
        InputError: n below 1.
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    parts = [
        rollout(bound_rows(chain, rows), len(rows), StreamNoise(seed, rows), record=record)
        for rows in batches(n, batch)
    ]
    return Path.joined(parts)


def sample(chain: Chain, n: int, seed: int = 0, batch: int = 1024) -> Samples:
    """``n`` independent samples of a chain."""
    return Samples(sample_paths(chain, n, seed, batch).x_0)


def weighted_sample(chain: Chain, target: Tilted, n: int, seed: int, batch: int = 1024) -> Samples:
    """``n`` samples with their rewards and their log-weights against the target."""
    path = sample_paths(chain, n, seed, batch)
    log_r = target.log_reward(path.x_0, path.condition)
    assert path.log_ratio is not None
    return Samples(path.x_0, log_r, target.beta * log_r - path.log_ratio)


def corrected_sample(
    chain: Chain, target: Tilted, n: int, correct: Correction, seed: int = 0, effort: int = 4
) -> Samples:
    """``n`` samples of the target, exact in the limit of ``effort``.

    * "snis": resample n of ``effort * n`` defensive proposals (10 % prior paths);
    * "mh": n independence Metropolis-Hastings chains of ``effort`` steps, same proposals;
    * "smc": n of ``effort * n`` particles of the chain, twisted by the reward of its prediction.

    Arguments:
        chain: proposals.
        target: what is sampled.
        n: number of samples.
        correct: the correction.
        seed: of the whole draw.
        effort: proposals or steps per sample, >= 2, or particles, >= 1.

    Raises:
        InputError: unknown correction, n below 1, too little effort, or several conditions.
    """
    if correct not in CORRECTIONS:
        raise InputError(f"unknown correction {correct!r}; choose one of {', '.join(CORRECTIONS)}")
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    # With one proposal per sample there is nothing to choose from: a tenth would be the prior's.
    least = 1 if correct == "smc" else 2
    if effort < least:
        raise InputError(f"effort must be at least {least} for {correct!r}, got {effort}")
    check_one_condition(chain, "corrections", "draw each condition by itself")
    generator = torch.Generator().manual_seed(seed)
    if correct == "smc":
        return _particles(chain, target, n, effort, generator)
    proposals, log_omega = _defensive_proposals(chain, target, n * effort, seed)
    if correct == "snis":
        rows = systematic(log_omega, n, generator)
        rows = rows[torch.randperm(n, generator=generator)]
    else:
        order = torch.randperm(n * effort, generator=generator).reshape(effort, n)
        kept, _ = independence_metropolis(log_omega[order], generator)
        rows = order[kept, torch.arange(n)]
    assert proposals.log_r is not None
    return Samples(proposals.x_0[rows], proposals.log_r[rows])


@torch.no_grad()
def _particles(
    chain: Chain, target: Tilted, n: int, effort: int, generator: torch.Generator
) -> Samples:
    count = n * effort
    bound = bound_rows(chain, range(count))
    noise = GeneratorNoise(generator)
    model = TwistedChain(bound, target.log_reward, target.beta, noise, Twist())
    particles = particle_filter(model, count, generator=generator)
    rows = systematic(particles.log_w, n, generator)
    x_0 = particles.state[0][rows[torch.randperm(n, generator=generator)]]
    return Samples(x_0, target.log_reward(x_0, bound_rows(chain, range(n)).condition))


def _defensive_proposals(
    chain: Chain, target: Tilted, count: int, seed: int, share: float = 0.1
) -> tuple[Samples, Float[Tensor, " K"]]:
    n_prior = max(1, round(share * count))
    own = sample_paths(chain, count - n_prior, seed)
    prior = sample_paths(chain.prior, n_prior, seed + 1, record=True)
    with torch.no_grad():
        prior_ratio = log_ratio(chain.given(None), prior, 4096)
    assert own.log_ratio is not None
    x_0 = torch.cat([own.x_0, prior.x_0])
    ratio = torch.cat([own.log_ratio, prior_ratio])
    condition = None
    if own.condition is not None and prior.condition is not None:
        condition = torch.cat([own.condition, prior.condition])
    log_r = target.log_reward(x_0, condition)
    log_omega = defensive_log_weights(ratio, target.beta * log_r, n_prior / count)
    return Samples(x_0, log_r), log_omega


def prior_count(n: int, share: float = 0.25) -> int:
    """How many of the ``n`` paths of a certificate are the prior's: ``share`` of them, at least 2.

    Raises:
        InputError: share outside (0, 1), or fewer than 2 paths are left to the sampler.
    """
    if not 0 < share < 1:
        raise InputError(f"share must lie in (0, 1), got {share}")
    count = max(2, round(share * n))
    if n - count < 2:
        raise InputError(
            f"{n} paths with a share of {share:g} of the prior leave the sampler fewer than 2; "
            "certify with more paths (at least 4), or a smaller share"
        )
    return count


def certify(
    chain: Chain,
    target: Tilted,
    n: int = 4096,
    *,
    share: float = 0.25,
    confidence: float = 0.99,
    seed: int = 0,
) -> Certificate:
    """How near a chain, trained or guided, is to the posterior (``Certificate``).

    Arguments:
        chain: the sampler.
        target: the posterior that it aims at.
        n: paths in all.
        share: share of prior paths among them, in (0, 1).
        confidence: of every interval and bound.
        seed: of the paths.

    Raises:
        InputError: several conditions are bound, share outside (0, 1), or too few paths.
    """
    check_one_condition(chain, "certificates", "use certify_each, or bind one of them")
    before, n_prior = chain.calls.total, prior_count(n, share)
    own = [
        _scores(chain, target, rows, seed, of_prior=False)
        for rows in batches(n - n_prior, CERTIFIED_AT_ONCE)
    ]
    prior = [
        _scores(chain, target, rows, seed + 1, of_prior=True)
        for rows in batches(n_prior, CERTIFIED_AT_ONCE)
    ]
    calls, first = chain.calls.total - before, own[0][1]
    noise, asked = reward_noise(target, first.x_0, first.condition)
    expense = Expense(network_calls=calls, reward_calls=n + asked, reward_noise=noise)
    scores = (_joined(own), _joined(prior))
    return certify_weights(*scores, target.beta, target.log_bound, confidence, expense)


def reward_noise(
    target: Tilted, x_0: Shaped[Tensor, "B ..."], condition: Tensor | None
) -> tuple[float, int]:
    """Standard deviation of repeated calls of log r on one x_0, nats, and the calls it took.

    The first few x_0 are scored twice in batches of one size, because a deterministic network may
    round differently in another; 0 if both calls agree to the bit, inf if r vanishes in one alone.
    """
    few, condition = x_0[:SCORED_TWICE], None if condition is None else condition[:SCORED_TWICE]
    first, second = (target.log_reward(few, condition).double() for _ in range(2))
    difference = torch.where(first == second, 0.0, first - second)
    return math.sqrt(difference.square().mean().item() / 2), 2 * len(few)


def _scores(
    chain: Chain, target: Tilted, rows: range, seed: int, of_prior: bool
) -> tuple[PathScores, Path]:
    bound = bound_rows(chain, rows)
    source = bound.prior if of_prior else bound
    path = rollout(source, len(rows), StreamNoise(seed, rows), record=of_prior)
    ratio = path.log_ratio
    if of_prior:
        with torch.no_grad():
            ratio = log_ratio(bound, path, 4096)
    assert ratio is not None
    return PathScores(ratio, target.log_reward(path.x_0, path.condition)), path


def _joined(scored: list[tuple[PathScores, Path]]) -> PathScores:
    scores = [each for each, _ in scored]
    return PathScores(
        torch.cat([s.log_ratio for s in scores]), torch.cat([s.log_r for s in scores])
    )
