"""Likelihood of pay-off samples: a posterior is fitted to landings that the reward has chosen.

* ``RewardWeighted``: noised ends, weighted by their reward;
* ``RGDM``: at each state, J landings ``x_{n-1}``, weighted among each other.

Source: Peters & Schaal 2007 (reward-weighted regression); Norouzi et al. 2016 (reward-augmented
maximum likelihood, arXiv 1609.00150); Zhang & Xu 2023 (RGDM, arXiv 2304.07132).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.contrastive import contrastive
from difftilt.objectives.ends import (
    Correction,
    EndObjective,
    EndScores,
    Landings,
    States,
    weights,
)

PER_STEP = ("reward", "value")


@dataclass(frozen=True)
class RewardWeighted(EndObjective):
    """``-w log q(x_{n-1} | x_n)`` on noised ends, ``w = r^β / Z``: simulation-free fitting.

    On prior ends, and on own ends, whose weights are divided by their path's q/p, it is the forward
    divergence from the reward-weighted law of ends noised by the forward process; on pooled paths
    what their resampling left of the weight is applied. On given data it tilts the law of the data
    (RAML). Its temperature is 1/β, the target's.

    *Exact when* the prior's chain reverses its forward process, or with ``states="chain"``.

    Arguments:
        normalisation: "unnormalised" weights over a running estimate of Z, or "self_normalised" in
            each set (bounded; biased by O(1/K)).
        states: "forward" (ends noised afresh) or "chain" (the paths' own states).
        contrast: K, rows of a set: with as many paths per condition, the weights of each condition
            are normalised by themselves; None: the whole batch.

    Raises:
        InputError: unknown normalisation or states, or fewer than 2 rows in a set.
    """

    normalisation: Literal["unnormalised", "self_normalised"] = "self_normalised"
    states: States = "forward"
    contrast: int | None = None

    def __post_init__(self) -> None:
        if self.contrast is not None and self.contrast < 2:
            raise InputError(f"a set of weights has at least 2 rows, got contrast={self.contrast}")
        if self.normalisation not in ("unnormalised", "self_normalised"):
            raise InputError(
                f"normalisation={self.normalisation!r} is unknown; choose 'unnormalised' or "
                "'self_normalised'"
            )
        _check_states(self.states)

    @property
    def paths_per_group(self) -> int:
        return self.contrast or 1

    @property
    def contrast_size(self) -> int | None:
        return self.contrast

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_ratio"})

    @property
    def behaviours(self) -> frozenset[str]:
        return frozenset({"prior", "on_policy", "pool", "data"})

    @property
    def states_from(self) -> States:
        return self.states

    @property
    def correction(self) -> Correction:
        return "path"

    def losses(self, scores: EndScores) -> Float[Tensor, " R"]:
        return reward_weighted(scores, self.normalisation == "self_normalised")


def reward_weighted(scores: EndScores, self_normalised: bool = False) -> Float[Tensor, " R"]:
    """``-w λ``: the prior's log-density is constant in the posterior's parameters.

    Raises:
        InputError: no ``log_ratio``.
    """
    if scores.log_ratio is None:
        raise InputError("a weighted likelihood needs landings; scores.log_ratio is None")
    return -weights(scores, self_normalised) * scores.log_ratio[0]


@dataclass(frozen=True)
class RGDM(EndObjective):
    """Reward-guided diffusion: at each state, the likelihood of the landings that pay off.

    ``per_step="value"``, the consistent form: J landings of the prior's own step, weighted by
    ``softmax_j log h_{n-1}``, tend to the exactly tilted step as J grows (error O(1/J)); log h is
    trained on the same rows by contrast (``CEP``).

    ``per_step="reward"``, the paper's idea as far as it can be reconstructed from public sources
    (no code was published): the noised end's own landing, moved by one of J random offsets no
    longer than ``exploration_radius``, weighted by the reward *of the noisy state*. **Not exact**:
    a product of such steps is no tilt of the prior by ``r^β``, and it leans on the law of the ends
    that are given.

    The paper draws one landing; here all J count, by their weights, which has the same mean and
    less variance.

    Arguments:
        per_step: what a landing is paid: "value" or "reward".
        candidates: J >= 2. "value" costs J network calls per row.
        exploration_radius: largest norm of an offset, in units of the state ("reward").
        temperature: divides β log r of the noisy state ("reward").
        contrast: K of the contrast that trains log h ("value"); None: the whole batch.

    Raises:
        InputError: an option out of range.

    Source: Zhang & Xu 2023 (arXiv 2304.07132).
    """

    per_step: Literal["value", "reward"] = "value"
    candidates: int = 16
    exploration_radius: float = 0.5
    temperature: float = 1.0
    contrast: int | None = None

    def __post_init__(self) -> None:
        if self.per_step not in PER_STEP:
            raise InputError(
                f"per_step={self.per_step!r} is unknown; choose one of {', '.join(PER_STEP)}"
            )
        checks = {
            "candidates": self.candidates >= 2,
            "exploration_radius": 0 < self.exploration_radius < math.inf,
            "temperature": 0 < self.temperature < math.inf,
            "contrast": self.contrast is None or self.contrast >= 2,
        }
        for name, fine in checks.items():
            if not fine:
                raise InputError(f"{name}={getattr(self, name)} is out of range")

    @property
    def consistent(self) -> bool:
        """Whether its optimum is the posterior (of many candidates): the "value" form's is."""
        return self.per_step == "value"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_ratio", "log_h"} if self.consistent else {"log_ratio"})

    @property
    def behaviours(self) -> frozenset[str] | None:
        return frozenset({"prior", "on_policy", "data"}) if self.consistent else None

    @property
    def starts_warm(self) -> bool:
        return not self.consistent

    @property
    def paths_per_group(self) -> int:
        return 1 if not self.consistent else self.contrast or 2

    @property
    def states_from(self) -> States:
        return "chain" if self.consistent else "forward"

    @property
    def correction(self) -> Correction:
        return "below" if self.consistent else "none"

    @property
    def landings(self) -> Landings:
        if self.consistent:
            return Landings("prior", self.candidates)
        return Landings("near", self.candidates, self.exploration_radius)

    @property
    def contrast_size(self) -> int | None:
        return self.contrast

    def losses(self, scores: EndScores) -> Float[Tensor, " R"]:
        if self.consistent:
            return preferred_landings(scores) + contrastive(scores)
        return preferred_landings(scores, self.temperature)


def preferred_landings(scores: EndScores, temperature: float = 1.0) -> Float[Tensor, " R"]:
    """``-Σ_j softmax_j(log_preference / τ) λ_j``; 0 where no landing of a row has any weight.

    Raises:
        InputError: no landings, or no preference among them.
    """
    if scores.log_ratio is None or scores.log_preference is None:
        raise InputError("RGDM needs landings with preferences; scores has none")
    share = torch.softmax(scores.log_preference / temperature, 0).nan_to_num(0.0)
    return -(share * scores.log_ratio).sum(0)


def _check_states(states: str) -> None:
    if states not in ("chain", "forward"):
        raise InputError(f"states={states!r} is unknown; choose 'chain' or 'forward'")
