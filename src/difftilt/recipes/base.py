"""A recipe: one frozen dataclass from which a whole run follows.

Its fields are the Python options, the command-line options and ``config.json``. ``job()`` builds
the target and the posterior; ``evaluation`` measures samples when the run is done.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.diagnostics.certificate import Certificate
from difftilt.diagnostics.conditional import ConditionalCertificate
from difftilt.errors import CheckpointError, InputError
from difftilt.objectives.base import Objective, kinds
from difftilt.posteriors import Posterior, Sources, Target
from difftilt.recipes.pictures import Picture
from difftilt.sampling.draws import Samples, prior_count
from difftilt.training.plan import Training


@dataclass(frozen=True)
class Job:
    """What a recipe builds.

    Arguments:
        target: prior, reward and β.
        posterior: untrained.
        training: the plan.
        sources: what the training may draw besides paths: data, conditions.
        contexts: (C, ...) conditions that samples, certificate and evaluation are of, or None.
        names: of the contexts, as text.
        reward_digest: SHA-256 of the user's file that holds the reward, or None.
    """

    target: Target
    posterior: Posterior
    training: Training
    sources: Sources = field(default_factory=Sources)
    contexts: Tensor | None = None
    names: tuple[str, ...] = ()
    reward_digest: str | None = None

    def context_of(self, n: int) -> Tensor | None:
        """A context for each of n samples, in turn; None for an unconditional posterior."""
        if self.contexts is None:
            return None
        return self.contexts[torch.arange(n) % len(self.contexts)]

    def bound(self, chain: Chain, n: int) -> Chain:
        """A chain with the contexts of n samples."""
        context = self.context_of(n)
        return chain if context is None else chain.given(context)

    def draw(self, posterior: Posterior, n: int, seed: int) -> Samples:
        """``n`` samples of a posterior of this target, the contexts in turn."""
        return replace(posterior, chain=self.bound(posterior.chain, n)).draw(n, seed)


@dataclass(frozen=True)
class Drawn:
    """Samples that a finished run draws, and its certificate.

    Arguments:
        prior: of the prior, with rewards.
        posterior: of the posterior, with rewards and weights.
        corrected: resampled towards the exact posterior; None where the weights are too uneven.
        certificate: of the posterior; of each context where it has several.
    """

    prior: Samples
    posterior: Samples
    corrected: Samples | None
    certificate: Certificate | ConditionalCertificate


@dataclass(frozen=True)
class Recipe(ABC):
    """A run from one record.

    Arguments:
        samples: samples drawn for the report, of the prior and of the posterior.
        certificate_paths: paths of the certificate; a quarter of them are the prior's.
        training: the plan.
    """

    samples: int = 256
    certificate_paths: int = 4096
    training: Training = field(default_factory=Training)

    @abstractmethod
    def job(self) -> Job:
        """Load or build everything; says in one sentence what is wrong with a bad input."""

    def check_draws(self) -> None:
        """Refuse counts that would fail only when the training is over.

        Raises:
            InputError: no samples, or too few paths for a certificate.
        """
        if self.samples < 1:
            raise InputError(f"samples must be at least 1 for the report, got {self.samples}")
        prior_count(self.certificate_paths)

    def readable(self, job: Job, samples: Samples) -> list[str] | None:
        """Samples as lines of text, where they are text."""
        return None

    def pictured(self, job: Job, samples: Samples) -> Tensor | None:
        """The first samples as pictures (n, 3, H, W) of bytes, where they can be drawn as such."""
        return None

    def evaluation(self, job: Job, drawn: Drawn) -> dict[str, Any]:
        """The report's table: title, rows (name, prior, posterior, ...) and notes."""
        rows = [_mean_log_r(drawn)]
        return {"title": "Reward", "rows": rows, "notes": []}

    def pictures(self, job: Job, drawn: Drawn) -> list[Picture]:
        """What the report shows besides grids of images and clouds of points."""
        return []


def metric_row(name: str, note: str, values: Mapping[str, float]) -> dict[str, Any]:
    """A row of the report's table: a metric of some of the samplers."""
    columns = ("prior", "prompted", "posterior", "corrected", "truth")
    return {"name": name, **{c: values.get(c) for c in columns}, "note": note}


def _mean_log_r(drawn: Drawn) -> dict[str, Any]:
    def mean(samples: Samples | None) -> float | None:
        if samples is None or samples.log_r is None:
            return None
        return float(samples.log_r.mean())

    return {
        "name": "mean log r",
        "prior": mean(drawn.prior),
        "posterior": mean(drawn.posterior),
        "corrected": mean(drawn.corrected),
        "truth": None,
        "note": "nats; higher is more rewarded",
    }


def to_config(value: Any) -> Any:
    """A recipe as JSON-like values; an objective carries the name of its class."""
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: to_config(getattr(value, f.name)) for f in fields(value)}
        return {"name": type(value).__name__, **named} if isinstance(value, Objective) else named
    if isinstance(value, tuple | list):
        return [to_config(v) for v in value]
    return value


def from_config(cls: type, config: Any) -> Any:
    """Rebuild a dataclass from what ``to_config`` made of it.

    Raises:
        CheckpointError: a field is unknown, or its value is none that the field can have.
    """
    if not isinstance(config, Mapping):
        raise _damaged(f"holds {config!r} where the fields of {cls.__name__} are meant")
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(config) - known)
    if unknown:
        raise CheckpointError(
            f"config.json has the field {unknown[0]!r}, which {cls.__name__} does not know; "
            "it was written by another version of difftilt"
        )
    found = {name: _value(name, hints[name], value) for name, value in config.items()}
    try:
        return cls(**found)
    except (InputError, TypeError) as error:
        raise _damaged(f"makes no {cls.__name__} ({error})") from error


def _value(name: str, hint: Any, value: Any) -> Any:
    if hint is Objective:
        if not isinstance(value, Mapping):
            raise _damaged(f"holds {value!r} where an objective is meant")
        options = {k: v for k, v in value.items() if k != "name"}
        return from_config(_objective(value.get("name")), options)
    if is_dataclass(hint) and isinstance(hint, type):
        return from_config(hint, value)
    if not _fits(hint, value):
        raise _damaged(f"holds {name}={value!r}, which is of another kind than that option")
    if isinstance(value, list) and (hint is tuple or tuple in _origins(hint)):
        return tuple(value)
    return value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a JSON value may be one of a number or a text; other kinds are not looked into."""
    kinds = {kind for kind in get_args(hint) or (hint,) if kind is not type(None)}
    # A number that is not finite is null in JSON.
    if value is None or not kinds <= {bool, int, float, str}:
        return True
    return type(value) in kinds or (type(value) is int and float in kinds)


def _objective(name: Any) -> type[Objective]:
    known = kinds()
    if not isinstance(name, str) or name not in known:
        raise CheckpointError(
            f"config.json names the objective {name!r}, which this version does not know"
        )
    return known[name]


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"config.json {what}; restore the file, or train again")


def _origins(hint: Any) -> set[Any]:
    return {getattr(h, "__origin__", h) for h in (hint, *get_args(hint))}


def tell(sentence: str) -> None:
    """Say what is being fitted, on stderr."""
    print(sentence, file=sys.stderr, flush=True)
