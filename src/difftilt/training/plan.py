"""What a training is made of: plain frozen records, the single source of API and command line."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from difftilt.errors import InputError
from difftilt.objectives.balance import RTB
from difftilt.objectives.base import Objective
from difftilt.ranges import (
    AT_LEAST_ONE,
    COUNT,
    DECAY,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SEED,
    SHARE,
    WHOLE,
    check_choices,
    check_ranges,
)


@dataclass(frozen=True)
class Optimisation:
    """How parameters move.

    Arguments:
        learning_rate: of the posterior's parameters (Adam), constant, then cosine to zero.
        hidden_learning_rate: of hidden matrices under Muon; 0 puts them under Adam too.
        head_learning_rate: of heads that start at zero beside a copied network (temperature,
            order); None: as the others.
        log_z_learning_rate: of a learned log Z.
        balance_scale: learning rates of the balance phase relative to the warm start's.
        decay_from: share of the training after which the learning rate falls, in [0, 1].
        gradient_clip: largest norm of the gradient, or None.
        ema: decay of the exponential moving average that is used for sampling; 0 for none.
        warm_up: first updates, over which the learning rates rise linearly; 0 for none.

    Raises:
        InputError: a field out of range.
    """

    learning_rate: float = 1.5e-3
    hidden_learning_rate: float = 0.0
    head_learning_rate: float | None = None
    log_z_learning_rate: float = 0.05
    balance_scale: float = 1.0
    decay_from: float = 0.6
    gradient_clip: float | None = 1.0
    ema: float = 0.998
    warm_up: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            learning_rate=NOT_NEGATIVE,
            hidden_learning_rate=NOT_NEGATIVE,
            head_learning_rate=NOT_NEGATIVE.or_none,
            log_z_learning_rate=NOT_NEGATIVE,
            balance_scale=NOT_NEGATIVE,
            decay_from=SHARE,
            gradient_clip=POSITIVE.or_none,
            ema=DECAY,
            warm_up=WHOLE,
        )


@dataclass(frozen=True)
class BehaviourWeights:
    """Shares of a batch by where its paths come from; scaled to sum to one.

    Arguments:
        on_policy: the posterior's own paths.
        widened: the same with noise scaled by ``Training.widen``.
        prior: prior paths.
        pool: a pool of prior and posterior paths, resampled by importance weight.
        replay: replayed ends, noised back to paths.
        data: given data, noised to paths.
        local_search: replayed ends, noised part of the way and denoised.

    Raises:
        InputError: a share is negative or not finite, or all are 0.
    """

    on_policy: float = 0.5
    widened: float = 0.0
    prior: float = 0.0
    pool: float = 0.5
    replay: float = 0.0
    data: float = 0.0
    local_search: float = 0.0

    def __post_init__(self) -> None:
        shares = list(vars(self).values())
        if not all(NOT_NEGATIVE.has(share) for share in shares) or not 0 < sum(shares) < math.inf:
            raise InputError(
                f"behaviour weights must be finite, >= 0 and not all 0, got {vars(self)}"
            )


@dataclass(frozen=True)
class Replaying:
    """How ends and paths are kept for replay.

    Arguments:
        capacity: ends in the replay buffer.
        priority: "uniform", or by rank of "reward" or of the last absolute "residual".
        pool_capacity: paths in the pool, at most.
        pool_memory: bytes of their states and predictions, at most.
        pool_fresh: paths added to a full pool per update.
        pool_prior_share: share of prior paths among them.
        pool_effective: effective sample size, as a share, that tempering keeps in the pool.

    Raises:
        InputError: a field out of range.
    """

    capacity: int = 10_000
    priority: Literal["uniform", "reward", "residual"] = "reward"
    pool_capacity: int = 20_000
    pool_memory: int = 200_000_000
    pool_fresh: int = 128
    pool_prior_share: float = 0.5
    pool_effective: float = 0.2

    def __post_init__(self) -> None:
        check_choices(self, priority=("uniform", "reward", "residual"))
        check_ranges(
            self,
            capacity=COUNT,
            pool_capacity=COUNT,
            pool_memory=COUNT,
            pool_fresh=WHOLE,
            pool_prior_share=SHARE,
            pool_effective=POSITIVE_SHARE,
        )


@dataclass(frozen=True)
class Alarm:
    """When to warn of reward hacking; see ``difftilt.diagnostics.collapse``.

    Arguments:
        share: the alarm goes off where the effective sample size or the diversity of own paths has
            fallen below this share of its value at the start while log r rose; 0 for no alarm.
        window: last updates that are averaged; with conditions, more where they have fewer than 32
            own paths together.
        start: first updates that they are compared with, counted in the same way; few, since a
            sampler that climbs the reward may collapse within a window.
        stop: also end the training there.

    Raises:
        InputError: the share is not in [0, 1), or there are fewer than 2 updates in a mean.
    """

    share: float = 0.25
    window: int = 10
    start: int = 5
    stop: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or min(self.window, self.start) < 2:
            raise InputError(
                f"share={self.share}, window={self.window}, start={self.start} of the alarm: the "
                "share must lie in [0, 1), window and start hold at least 2 updates"
            )


@dataclass(frozen=True)
class Training:
    """A whole training.

    Arguments:
        steps: number of updates.
        seconds: stop after this wall time instead (steps is then no limit); not resumable bit for
            bit, because the schedules follow the clock.
        network_calls: stop after this many states seen by any network instead; what methods are
            compared at.
        batch: paths per update.
        warm_start: share of the training spent on the likelihood of pooled paths, or of data.
        warm_start_from: "pool" (paths of prior and posterior, resampled by their weights), or
            "data": given ends that are draws of the posterior itself, each under its condition, as
            pairs ``x ~ p(x), y ~ p(y | x)`` are of an amortised one.
        warm_start_loss: "likelihood" of their paths, or "denoising" of their ends (posteriors that
            are denoisers; less noisy, close to the likelihood for a good prior).
        warm_start_subset: the same as ``subset``, for the warm start.
        anchor: weight of ``KL(q ‖ p)`` per step, in nats, in the denoising warm start.
        paths_per_condition: paths that share a condition in a batch (conditional posteriors).
        chunk: states per forward-backward; the peak memory is a chunk's.
        subset: random steps of each path that get a gradient (unbiased), or None for all.
        widen: scale of the exploring noise of the widened behaviour.
        beta_start: β at the start; None for the target's own throughout.
        beta_annealed: share of the training after which the target's β is reached.
        seed: of the whole run.
        alarm: when to warn of reward hacking.

    Raises:
        InputError: a field out of range, or one that the objective cannot do with.
    """

    steps: int = 1000
    seconds: float | None = None
    network_calls: int | None = None
    batch: int = 512
    warm_start: float = 0.4
    warm_start_from: Literal["pool", "data"] = "pool"
    warm_start_loss: Literal["likelihood", "denoising"] = "likelihood"
    anchor: float = 0.0
    warm_start_subset: int | None = None
    paths_per_condition: int = 16
    chunk: int = 16_384
    subset: int | None = None
    widen: float = 1.2
    beta_start: float | None = None
    beta_annealed: float = 0.5
    seed: int = 0
    objective: Objective = field(default_factory=RTB)
    optimisation: Optimisation = field(default_factory=Optimisation)
    behaviour: BehaviourWeights = field(default_factory=BehaviourWeights)
    replaying: Replaying = field(default_factory=Replaying)
    alarm: Alarm = field(default_factory=Alarm)

    def __post_init__(self) -> None:
        check_ranges(
            self,
            steps=AT_LEAST_ONE,
            seconds=POSITIVE.or_none,
            network_calls=AT_LEAST_ONE.or_none,
            batch=COUNT,
            warm_start=SHARE,
            anchor=NOT_NEGATIVE,
            warm_start_subset=COUNT.or_none,
            paths_per_condition=COUNT,
            chunk=COUNT,
            subset=COUNT.or_none,
            widen=POSITIVE,
            beta_start=NOT_NEGATIVE.or_none,
            beta_annealed=SHARE,
            seed=SEED,
        )
        check_choices(
            self,
            warm_start_from=("pool", "data"),
            warm_start_loss=("likelihood", "denoising"),
        )
        self._check_objective()

    def _check_objective(self) -> None:
        least = self.objective.paths_per_group
        if self.batch < least:
            raise InputError(
                f"{type(self.objective).__name__} compares paths: it needs at least {least} paths "
                f"in a batch, got batch={self.batch}; raise batch (or, for RTB, use "
                "log_z='learned')"
            )
        elsewhere = sum(vars(self.behaviour).values()) - self.behaviour.on_policy
        if self.objective.on_policy and (self.warm_start > 0 or elsewhere > 0):
            raise InputError(
                f"{type(self.objective).__name__} is an on-policy objective: it needs "
                "warm_start=0 and behaviour=BehaviourWeights(on_policy=1, pool=0)"
            )
        if self.subset is not None and self.objective.door == "pathwise":
            raise InputError(
                f"{type(self.objective).__name__} needs every step of its paths, got "
                f"subset={self.subset}, which is for objectives of log-ratios; set subset=None "
                "(--training.subset None), or use KLControl(truncation='random') for a cheaper "
                "unbiased gradient"
            )
        self._check_sources()

    def _check_sources(self) -> None:
        objective = self.objective
        name, usable = type(objective).__name__, objective.behaviours
        if not objective.starts_warm and self.warm_start > 0:
            raise InputError(
                f"{name} has no warm start, got warm_start={self.warm_start}; set it to 0"
            )
        used = {name for name, share in vars(self.behaviour).items() if share > 0}
        if usable is not None and used - usable:
            source = "prior" if "prior" in usable else min(usable)
            raise InputError(
                f"{name} is right on paths of {', '.join(sorted(usable))} alone, got "
                f"{', '.join(sorted(used - usable))}; change behaviour, for example to "
                f"BehaviourWeights({source}=1, on_policy=0, pool=0)"
            )


def suited(objective: Objective) -> dict[str, Any]:
    """The fields of ``Training`` that an objective asks for where its user says nothing."""
    if objective.on_policy:
        own = {"warm_start": 0.0, "behaviour": BehaviourWeights(on_policy=1, pool=0)}
        return own | ({"subset": None} if objective.door == "pathwise" else {})
    usual = {name for name, share in vars(BehaviourWeights()).items() if share > 0}
    found: dict[str, Any] = {} if objective.starts_warm else {"warm_start": 0.0}
    if objective.behaviours is not None and not usual <= objective.behaviours:
        source = "prior" if "prior" in objective.behaviours else min(objective.behaviours)
        found["behaviour"] = BehaviourWeights(**{"on_policy": 0, "pool": 0, source: 1})
    return found
