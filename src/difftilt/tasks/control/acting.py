"""Policies that act: from observed states to actions in [-1, 1].

| actor | an action costs |
|---|---|
| ``ChainActor`` of a prior or of a trained copy | N calls of one network, no gradient |
| ``ChainActor`` of a guided policy | N calls of the prior, and of the value with its gradient |
| ``BestActor`` | n actions of a chain, and n calls of the critic |
| ``MeanActor`` | one call of a Gaussian's network |

The last step is taken without its noise: that noise is what makes the step a law (training,
certificate), and an actor is better off with its mean. A Gaussian policy has no other step, so it
plays its mean, as IQL's authors play theirs. A chain may have modes, between which a mean would
lie: of several draws it plays one in the middle of the largest mode (``densest``).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.kernels.networks import DenoiserKernel, untilted
from difftilt.noise import GeneratorNoise
from difftilt.tasks.control.behaviour import GaussianPolicy
from difftilt.tasks.control.critics import Critic

Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChainActor:
    """Acts by one pass of a chain.

    Arguments:
        chain: a policy's, with or without a tilt; see ``acting``.
        decode: from x_0 to actions.
        draws: of which the one of the ``densest`` place is played; 1: a draw.
    """

    chain: Chain
    decode: Decode
    draws: int = 1

    def __call__(
        self, states: Float[Tensor, "B O"], generator: torch.Generator
    ) -> Float[Tensor, "B A"]:
        """One action for each state."""
        every = states.repeat_interleave(self.draws, 0)
        bound, noise = self.chain.given(every), GeneratorNoise(generator)
        path = rollout(bound, len(every), noise, record=False, ratio=False)
        return densest(self.decode(path.x_0).unflatten(0, (-1, self.draws)))


def densest(actions: Float[Tensor, "B K A"]) -> Float[Tensor, "B A"]:
    """Of K actions in each state the one whose nearer half of all K is nearest.

    One of two modes holds half of the actions or more; their medoid may lie at its inner edge, this
    one lies in its middle.
    """
    count = actions.shape[1]
    nearer = torch.cdist(actions, actions).sort(2).values[:, :, : (count + 1) // 2]
    return actions[torch.arange(len(actions)), nearer.sum(2).argmin(1)]


def acting(chain: Chain, decode: Decode, quiet: bool = True, draws: int = 1) -> ChainActor:
    """The actor of a prior, or of a posterior in its cheapest form.

    Arguments:
        chain: of a prior, a trained copy (which becomes a chain of its own), or a guided one.
        decode: from x_0 to actions.
        quiet: take the last step without noise.
        draws: of which the one of the ``densest`` place is played.
    """
    own = untilted(chain) if isinstance(chain.kernel, DenoiserKernel) else chain
    if quiet:
        own = replace(own, diffusion=own.gaussian.with_std(1, 0.0))
    return ChainActor(own, decode, draws)


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
