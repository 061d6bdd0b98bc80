"""Policies that act: from observed states to actions in [-1, 1].

| actor | an action costs |
|---|---|
| ``ChainActor`` of a prior or of a trained copy | N calls of one network, no gradient |
| ``ChainActor`` of a guided policy | N calls of the prior, and of the value with its gradient |
| ``BestActor`` | n actions of a chain, and n calls of the critic |
| ``MeanActor`` | one call of a Gaussian's network |

The last step is taken without its noise: that noise is what makes the step a law (training,
certificate), and an actor is better off with its mean. A Gaussian policy has no other step, so it
plays its mean, as IQL's authors play theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains import Chain
from difftilt.kernels import DenoiserKernel, untilted
from difftilt.noise import GeneratorNoise
from difftilt.rollouts import rollout
from difftilt.tasks.control.behaviour import GaussianPolicy
from difftilt.tasks.control.critics import Critic

Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChainActor:
    """Acts by one pass of a chain.

    Arguments:
        chain: a policy's, with or without a tilt; see ``acting``.
        decode: from x_0 to actions.
    """

    chain: Chain
    decode: Decode

    def __call__(
        self, states: Float[Tensor, "B O"], generator: torch.Generator
    ) -> Float[Tensor, "B A"]:
        """One action for each state."""
        bound, noise = self.chain.given(states), GeneratorNoise(generator)
        path = rollout(bound, len(states), noise, record=False, ratio=False)
        return self.decode(path.x_0)


def acting(chain: Chain, decode: Decode, quiet: bool = True) -> ChainActor:
    """The actor of a prior, or of a posterior in its cheapest form.

    Arguments:
        chain: of a prior, a trained copy (which becomes a chain of its own), or a guided one.
        decode: from x_0 to actions.
        quiet: take the last step without noise.
    """
    own = untilted(chain) if isinstance(chain.kernel, DenoiserKernel) else chain
    if quiet:
        own = replace(own, diffusion=own.gaussian.with_std(1, 0.0))
    return ChainActor(own, decode)


@dataclass(frozen=True)
class BestActor:
    """The best of n actions of another actor, by a critic (IDQL).

    Arguments:
        actor: draws the candidates.
        critic: judges them.
        candidates: n.

    Source: Hansen-Estruch et al. 2023 (arXiv 2304.10573).
    """

    actor: ChainActor
    critic: Critic
    candidates: int = 32

    @torch.no_grad()
    def __call__(
        self, states: Float[Tensor, "B O"], generator: torch.Generator
    ) -> Float[Tensor, "B A"]:
        """One action for each state."""
        drawn = self.actor(states.repeat_interleave(self.candidates, 0), generator)
        offered = drawn.unflatten(0, (len(states), self.candidates))
        best = self.critic.q_of_support(states, offered).argmax(1)
        return offered[torch.arange(len(states)), best]


@dataclass(frozen=True)
class MeanActor:
    """The mean of a Gaussian policy, clipped to [-1, 1]; it draws nothing.

    Arguments:
        policy: a cloned or weighted Gaussian.

    Source: Kostrikov et al. 2021, IQL, whose evaluation plays at temperature 0 (arXiv 2110.06169).
    """

    policy: GaussianPolicy

    @torch.no_grad()
    def __call__(
        self, states: Float[Tensor, "B O"], generator: torch.Generator
    ) -> Float[Tensor, "B A"]:
        """One action for each state."""
        return self.policy.moments(states)[0].clamp(-1.0, 1.0)
