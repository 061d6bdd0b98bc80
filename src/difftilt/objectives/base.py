"""What an objective is: a pure function of tensors that gives one loss per path or sample.

Objectives differ in how they see the network, and there are three doors:

| door | the loss sees | one training step in |
|---|---|---|
| "paths" | log-ratios of the steps of given paths | ``training.paths`` |
| "ends" | single noised states of given ends, with their rewards | ``training.noising`` |
| "pathwise" | an end, differentiable through the steps that made it | ``training.pathwise`` |

An objective never sees a network, a chain or a modality; a door knows no objective by name.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Door = Literal["paths", "ends", "pathwise"]


@dataclass(frozen=True)
class Scores:
    """The tensors an objective of the first door may read; nats.

    Rows of a matrix are the steps with a density, from the last one drawn (next to ``x_0``) to the
    first, and, last, the law of ``x_N``: the rows of ``difftilt.chains.scoring.step_scores``.

    Arguments:
        log_ratio: (B,) ``Λ``, the sum of ``steps``; carries a gradient.
        log_r: (B,) ``β log r(x_0)``.
        log_z: (B,) learned ``log Z`` of each path's condition, with its own gradient, or None.
        group: (B,) which paths share a condition (0 ... G - 1), or None: all do.
        weight: (B,) non-negative weights, for the weighted likelihood.
        steps: (rows, B) ``λ``, the log-ratio of each step, or None.
        log_h: (rows, B) learned ``log h(x_n)`` at the state that each row's step leaves, with its
            own gradient; the last row, before ``x_N`` is drawn, is ``log Z``. Or None.
        divergence: (rows, B) ``KL(q ‖ p)`` of each row's law, with a gradient, or None.
        drawn: (rows, B) λ when the paths were drawn, detached, or None.
    """

    log_ratio: Float[Tensor, " B"]
    log_r: Float[Tensor, " B"]
    log_z: Float[Tensor, " B"] | None = None
    group: Int[Tensor, " B"] | None = None
    weight: Float[Tensor, " B"] | None = None
    steps: Float[Tensor, "rows B"] | None = None
    log_h: Float[Tensor, "rows B"] | None = None
    divergence: Float[Tensor, "rows B"] | None = None
    drawn: Float[Tensor, "rows B"] | None = None

    @property
    def log_h_after(self) -> Float[Tensor, "rows B"]:
        """``log h`` at the state where each row's step lands; ``β log r`` for the last one."""
        assert self.log_h is not None
        return torch.cat([self.log_r[None].to(self.log_h), self.log_h[:-1]])

    def select(self, rows: Tensor) -> "Scores":
        """The scores of some paths (a mask over B)."""
        chosen = {
            name: None if value is None else value[..., rows] for name, value in vars(self).items()
        }
        return replace(self, **chosen)

    def advantages(self, gains: Float[Tensor, "*rows B"]) -> Float[Tensor, "*rows B"]:
        """Gains minus the mean of the *other* paths of the same condition: unbiased, detached."""
        group = torch.zeros_like(self.log_r, dtype=torch.long) if self.group is None else self.group
        count = torch.bincount(group)[group]
        centred = torch.stack([self.centred(row) for row in gains.detach().reshape(-1, len(group))])
        return (centred * count / (count - 1)).reshape(gains.shape)

    def centred(self, values: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Values minus their mean over the paths that share a condition."""
        if self.group is None:
            return values - values.mean()
        group = self.group
        count = torch.bincount(group)
        total = torch.zeros(len(count), dtype=values.dtype, device=values.device)
        return values - (total.index_add(0, group, values) / count)[group]


@dataclass(frozen=True)
class Objective(ABC):  # noqa: B024
    """A loss that a posterior is trained on; a frozen record of its options.

    Class attributes:
        door: how it sees the network.
        on_policy: whether its paths must be the posterior's own.
    """

    door: ClassVar[Door] = "paths"
    on_policy: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """Fields of ``Scores`` that it reads besides Λ and ``log_r``.

        Any of "steps", "log_z", "log_h" (with it also "log_z"), "divergence", "drawn".
        """
        return frozenset()

    @property
    def consistent(self) -> bool:
        """Whether its optimum is the posterior; if not, the class says what it is."""
        return True

    @property
    def behaviours(self) -> frozenset[str] | None:
        """The behaviours whose paths it may use (fields of ``BehaviourWeights``); None: any."""
        return None

    @property
    def starts_warm(self) -> bool:
        """Whether a warm start by weighted likelihood makes sense before it."""
        return not self.on_policy

    @property
    def updates_per_batch(self) -> int:
        """Optimiser steps on each batch of paths; above 1 only with ``drawn``."""
        return 1

    @property
    def paths_per_group(self) -> int:
        """Least number of paths per condition in a batch."""
        return 1


@dataclass(frozen=True)
class PathObjective(Objective):
    """An objective of the first door."""

    @abstractmethod
    def losses(self, scores: Scores) -> Float[Tensor, " B"]:
        """One loss per path."""

    def forbidden(
        self, log_ratio: Float[Tensor, " F"], losses: Float[Tensor, " K"]
    ) -> Float[Tensor, " *F"]:
        """Losses of paths of zero reward, which ``losses`` never sees; none by default.

        Arguments:
            log_ratio: (F,) Λ of the forbidden paths, with its gradient.
            losses: of the other paths of the batch.
        """
        return log_ratio[:0]


def kinds() -> dict[str, type[Objective]]:
    """Every concrete objective of this package by its class name."""
    package = importlib.import_module("difftilt.objectives")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    found: dict[str, type[Objective]] = {}
    waiting = [Objective]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if not getattr(kind, "__abstractmethods__", None):
            found[kind.__name__] = kind
    return found
