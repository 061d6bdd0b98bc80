"""Tables of methods beside rejection truth, whatever a sample is.

The truth of a target with ``r <= 1`` is its prior's draws, each accepted with probability ``r^β``:
exact, slow, and the same for every method and seed. A table gives every method one budget of
network calls and puts its samples beside the truth's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.diagnostics.evidence import effective_sample_size, log_evidence
from difftilt.errors import InputError
from difftilt.posteriors import Posterior, Target
from difftilt.recipes.tables.cells import Cell, Cells, cells_of
from difftilt.recipes.tables.cost import Cost
from difftilt.recipes.tables.makers import Maker, Setting
from difftilt.sampling.draws import Samples

CHUNK = 1024
Row = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Truth:
    """Rejection truth of a target.

    Arguments:
        members: accepted prior samples.
        log_z: of all of them, nats.
        standard_error: of ``log_z``.
    """

    members: Tensor
    log_z: float
    standard_error: float


def truth_among(target: Target, x_0: Tensor, seed: int) -> Truth:
    """Prior samples of a target, accepted with probability ``r^β``."""
    log_r = target.beta * torch.cat([target.score(part) for part in x_0.split(CHUNK)])
    r = log_r.double().exp()
    error = float(r.std() / r.mean()) / len(x_0) ** 0.5
    return Truth(accepted(x_0, log_r, seed), float(r.mean().log()), error)


def accepted(x_0: Tensor, log_r: Tensor, seed: int) -> Tensor:
    """The rows of ``x_0`` whose uniform number is below ``r``."""
    uniform = torch.rand(len(log_r), generator=torch.Generator().manual_seed(seed))
    return x_0[uniform.log() < log_r]


def rejected(prior: Samples, beta: float, seed: int) -> Tensor:
    """Prior draws accepted with probability ``r^β``."""
    assert prior.log_r is not None
    return accepted(prior.x_0, beta * prior.log_r, seed)


def halved(samples: Samples, last: int) -> tuple[Samples, Samples]:
    """All draws but the last few, and those."""
    assert samples.log_r is not None
    first, rest = samples.x_0[:-last], samples.x_0[-last:]
    return Samples(first, samples.log_r[:-last]), Samples(rest, samples.log_r[-last:])


def prior_log_z(prior: Samples, beta: float) -> float:
    """``log Z``, nats, from the rewards of prior draws."""
    assert prior.log_r is not None
    return float((beta * prior.log_r).double().exp().mean().log())


@dataclass(frozen=True)
class Run:
    """One cell of such a table.

    Arguments:
        target: by name.
        method: by name.
        seed: of the training.
        calls: network calls of the training.
        samples: drawn of the sampler.
    """

    target: str
    method: str
    seed: int
    calls: int
    samples: int


Figures = Callable[[Samples, Truth], Row]


def measured_row(run: Run, make: Maker, setting: Setting, truth: Truth, figures: Figures) -> Row:
    """Make one sampler of one target and measure it."""
    target = setting.target
    with Cost() as cost:
        sampler = make(setting)
        trained, spent = cost.seconds, target.prior.chain.calls.total
        made = Posterior(target, sampler) if isinstance(sampler, Chain) else sampler
        drawn = made.draw(run.samples, run.seed + 1)
    return {
        "problem": run.target,
        "method": run.method,
        "seed": run.seed,
        **figures(drawn, truth),
        **evidence_figures(drawn, truth),
        "network_calls": spent,
        "training_seconds": trained,
        "seconds": cost.seconds,
        "peak_mb": cost.peak_mb,
    }


def evidence_figures(drawn: Samples, truth: Truth) -> Row:
    """Mean log r, the error of log Z and the effective sample size, where there are weights."""
    assert drawn.log_r is not None
    log_w = drawn.log_w
    return {
        "log_r": float(drawn.log_r.mean()),
        "log_z_error": None if log_w is None else log_evidence(log_w).value - truth.log_z,
        "ess": None if log_w is None else effective_sample_size(log_w),
    }


def check_names(chosen: list[str], known: Mapping[str, object], what: str) -> None:
    """Refuse a name before anything runs.

    Raises:
        InputError: an unknown one.
    """
    for name in chosen:
        if name not in known:
            raise InputError(f"unknown {what} {name!r}; choose one of {', '.join(known)}")


@dataclass(frozen=True)
class RejectionBench(ABC):
    """A table of methods beside rejection truth.

    Arguments:
        targets: by name.
        methods: by name.
        seeds: of the trainings.
        calls: network calls of each training.
        samples: drawn of each sampler.

    Raises:
        InputError: an unknown target or method.
    """

    targets: list[str]
    methods: list[str]
    seeds: list[int]
    calls: int
    samples: int

    def __post_init__(self) -> None:
        targets, methods = self.known()
        check_names(self.targets, dict(targets), "target")
        check_names(self.methods, dict(methods), "method")

    @abstractmethod
    def known(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The table's targets and methods by name."""

    @abstractmethod
    def row(self, run: Run) -> Row:
        """Make one sampler of one target and measure it."""

    def cells(self) -> Cells:
        """One per target, method and seed."""
        names = cells_of(problem=self.targets, method=self.methods, seed=self.seeds)
        return Cells(names, {"calls": self.calls, "samples": self.samples}, self._rows_of)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per target, method and seed."""
        return self.cells().rows()

    def _rows_of(self, cell: Cell) -> list[dict[str, Any]]:
        run = Run(cell["problem"], cell["method"], cell["seed"], self.calls, self.samples)
        return [dict(self.row(run))]
