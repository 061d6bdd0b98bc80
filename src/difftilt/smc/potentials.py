"""Feynman-Kac models over a chain: the chain proposes, the reward and the prior weigh.

With proposals ``q`` (the prior, a guided chain or a trained posterior) and log-potentials ``S_n``
of the states so far, that end in ``S_0 = β log r(x_0)``, a particle's log-weight grows by

    - log q/p  +  S_{n-1} - S_n,

so that the final weights are exact for ``p r^β`` whatever the potentials are. They are made of a
twist ``U_n(x_n)``, the reward of the prior's clean prediction ``β log r(x̂_0(x_n))`` (of tokens, the
likeliest ones at all masks, in one more network call) or a learned value ``log h_n(x_n)``, in one
of three ways:

| potential | ``S_n`` | the step's factor ``S_{n-1} - S_n`` |
|---|---|---|
| "difference" | ``U_n`` | ``U_{n-1} - U_n`` |
| "max" | ``Σ_{m≥n} max_{l≥m} U_l`` | ``max_{l≥n-1} U_l`` |
| "sum" | ``Σ_{m≥n} Σ_{l≥m} U_l`` | ``Σ_{l≥n-1} U_l`` |

The last step's factor is ``β log r(x_0) - S_1`` in all three, so that it takes back what the
others gave. Sources: FK steering, Singhal et al. 2025 (arXiv 2501.06848); TDS, Wu et al. 2023
(arXiv 2306.17775), which is "difference" on a guided chain.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.errors import InputError
from difftilt.noise import Noise
from difftilt.smc.feynman_kac import FeynmanKac, State
from difftilt.transitions.base import Tilt, Transition
from difftilt.values.functions import Value

Potential = Literal["difference", "max", "sum"]
POTENTIALS: tuple[str, ...] = get_args(Potential)


@dataclass(frozen=True)
class Twist:
    """What a state on the way is thought to be worth, and how potentials are made of it.

    Arguments:
        value: a learned ``log h``; None for the reward of the prior's clean prediction.
        potential: "difference", "max" or "sum".
        every: look at the levels n that it divides; at the others ``S_n = S_{n+1}``.
        floor: lower end of the twists, in nats below the best particle of the system. It must be
            finite: a state whose own twist is -inf may still end where the reward is positive. Any
            finite one is exact, but a wrongly discarded particle that comes back anyway has a
            weight of up to e^floor: a large floor makes Ẑ heavy-tailed, mostly too small.

    Raises:
        InputError: an unknown potential, every < 1, or a floor that is not positive and finite.
    """

    value: Value | None = None
    potential: Potential = "difference"
    every: int = 1
    floor: float = 4.0

    def __post_init__(self) -> None:
        if self.potential not in POTENTIALS:
            raise InputError(f"potential {self.potential!r} is not one of {', '.join(POTENTIALS)}")
        if self.every < 1:
            raise InputError(f"every must be at least 1 step, got {self.every}")
        if not 0 < self.floor < math.inf:
            raise InputError(
                f"floor must be positive and finite, got {self.floor}: an infinite one would kill "
                "particles that may still reach a positive reward; take 1000 for hardly any"
            )

    def added(self, total: Tensor, memory: Tensor, twist: Tensor) -> tuple[Tensor, Tensor]:
        """``S_n`` and what the next level must remember, from those of the level above."""
        if self.potential == "difference":
            return twist, memory
        memory = torch.maximum(memory, twist) if self.potential == "max" else memory + twist
        return total + memory, memory


@dataclass
class TwistedChain(FeynmanKac):
    """Particles of a chain, weighed on their way by a twist and exactly at their end.

    Its state is ``(x, prediction, S, memory)``; S ends as ``β log r(x_0)``, in float64.

    Arguments:
        chain: proposals; a bound condition has a row per particle.
        log_reward: ``(x_0, condition) -> log r``, nats.
        beta: β.
        noise: source of randomness.
        twist: None weighs at the end alone.
        group: particles of a system (rows next to each other); None: all are one system.
        together: the particles of a system share their ``x_N``.
        pinned: paths, one per system, that its first particle follows.
        reward_calls: counts the calls of the reward, one per row.
    """

    chain: Chain
    log_reward: Callable[[Tensor, Tensor | None], Tensor]
    beta: float
    noise: Noise
    twist: Twist | None = None
    group: int | None = None
    together: bool = False
    pinned: Path | None = None
    reward_calls: int = 0

    def __post_init__(self) -> None:
        self.moves = self.chain.steps

    def start(self, particles: int) -> tuple[State, Float[Tensor, " K"]]:
        group = particles if self.group is None else self.group
        copies = group if self.together else 1
        kept = self.chain.condition
        bound = self.chain if kept is None else self.chain.given(kept[::copies])
        base = bound.base(particles // copies)
        tilt = None if self.chain.initial is None else self.chain.initial(particles // copies)
        x, ratio = self._drawn(base, tilt, self.chain.steps, group // copies)
        # The states of a pinned path are planned already.
        x = self._pin(bound.planned(x, self.chain.steps, self.noise), self.moves, group // copies)
        x, ratio = x.repeat_interleave(copies, 0), ratio.repeat_interleave(copies)
        total = ratio.new_zeros(particles)
        highest = self.twist is not None and self.twist.potential == "max"
        memory = torch.full_like(total, -math.inf if highest else 0.0)
        prediction, total, memory = self._look(x, self.chain.steps, total, memory)
        return (x, prediction, total, memory), total - ratio

    def move(self, index: int, state: State) -> tuple[State, Float[Tensor, " K"]]:
        x, prediction, total, memory = state
        n = self.chain.steps - index
        law = self.chain.law(prediction, x, n)
        if self.chain.diffusion.has_density(n):
            tilt, group = self.chain.tilt(x, n, prediction), self.group or len(x)
            x, ratio = self._drawn(law, tilt, n - 1, group)
        else:
            x, ratio = self._pin(law.landing, n - 1, self.group or len(x)), torch.zeros_like(total)
        if n > 1:
            x = self.chain.planned(x, n - 1, self.noise)
            x = self._pin(x, n - 1, self.group or len(x))
        prediction, after, memory = self._look(x, n - 1, total, memory)
        return (x, prediction, after, memory), after - total - ratio

    def _drawn(
        self, law: Transition, tilt: Tilt | None, n: int, stride: int
    ) -> tuple[Tensor, Float[Tensor, " R"]]:
        """States at level n and their log-ratio to the prior; every stride-th may be pinned."""
        eps = (law if tilt is None else tilt).draw(self.noise)
        x = self._pin(law.at(eps), n, stride)
        if tilt is None:
            return x, x.new_zeros(len(x), dtype=torch.float64)
        if self.pinned is not None:
            eps[::stride] = law.standardise(x)[::stride]
        return x, tilt.log_ratio(eps).double()

    def _pin(self, x: Tensor, n: int, stride: int) -> Tensor:
        if self.pinned is None:
            return x
        x = x.clone()
        x[::stride] = self.pinned.states[n]
        return x

    def _look(
        self, x: Tensor, n: int, total: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The prior's prediction at level n, the log-potential ``S_n``, and the memory."""
        if n == 0:
            return x, self._reward(x), memory
        prediction = self.chain.predict(x, n)
        if self.twist is None or n % self.twist.every:
            return prediction, total, memory
        twist = self._floored(self._twist(x, n, prediction), self.twist.floor)
        return prediction, *self.twist.added(total, memory, twist)

    def _twist(self, x: Tensor, n: int, prediction: Tensor) -> Float[Tensor, " R"]:
        assert self.twist is not None
        if self.twist.value is not None:
            self.chain.calls.posterior += len(x)
            value = self.twist.value(x, n, prediction, self.chain.condition, self.beta)
            return value.double()
        return self._reward(self.chain.clean(prediction, x, n))

    def _reward(self, x: Tensor) -> Float[Tensor, " R"]:
        self.reward_calls += len(x)
        return self.beta * self.log_reward(x, self.chain.condition).double()

    def _floored(self, twist: Float[Tensor, " R"], floor: float) -> Float[Tensor, " R"]:
        by_system = twist.unflatten(0, (-1, self.group or len(twist)))
        best = by_system.amax(1, keepdim=True)
        # Where no particle looks worth anything, all look the same.
        kept = torch.where(best == -math.inf, 0.0, torch.maximum(by_system, best - floor))
        return kept.flatten()
