"""Feynman-Kac models over a chain: the chain proposes, the reward and the prior weigh.

With proposals ``q`` (the prior itself or a trained posterior) and twists ``U_n(x_n)`` that end in
``U_0 = β log r(x_0)``, a particle's log-weight grows by

    - log q/p  +  U_{n-1}(x_{n-1}) - U_n(x_n),

so that the final weights are exact for ``p r^β`` whatever the twists are. The twist here is the
reward of the prior's clean prediction, ``U_n = β log r(x̂_0(x_n))``, as in FK steering (Singhal et
al. 2025, arXiv 2501.06848) and TDS (Wu et al. 2023, arXiv 2306.17775).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains import Chain
from difftilt.noise import Noise
from difftilt.smc.feynman_kac import FeynmanKac, State


class RewardTwistedChain(FeynmanKac):
    """Particles of a chain, twisted by the reward of the prior's clean prediction.

    Arguments:
        chain: proposals; prior or posterior.
        log_reward: ``x_0 (K, *event) -> log r (K,)``, nats.
        beta: β.
        noise: source of randomness.
        floor: lower end of the intermediate twists in nats below the best particle; a clean
            prediction between modes would otherwise kill a particle too early.
    """

    def __init__(
        self,
        chain: Chain,
        log_reward: Callable[[Tensor], Tensor],
        beta: float,
        noise: Noise,
        floor: float = 4.0,
    ) -> None:
        self.chain = chain
        self.log_reward = log_reward
        self.beta = beta
        self.noise = noise
        self.floor = floor
        self.moves = chain.steps

    def start(self, particles: int) -> tuple[State, Float[Tensor, " K"]]:
        base = self.chain.diffusion.base(self.chain.empty(particles))
        if self.chain.initial is None:
            x, ratio = base.at(self.noise.normal(base.mean)), torch.zeros(particles)
        else:
            tilt = self.chain.initial(particles)
            eps = tilt.draw(self.noise)
            x, ratio = base.at(eps), tilt.log_ratio(eps)
        prediction, twist = self._look(x, self.chain.steps)
        return (x, prediction, twist), twist - ratio

    def move(self, index: int, state: State) -> tuple[State, Float[Tensor, " K"]]:
        x, prediction, twist = state
        n = self.chain.steps - index
        law = self.chain.law(prediction, x, n)
        ratio = torch.zeros(len(x))
        if not self.chain.diffusion.has_density(n):
            landed = law.mean
        else:
            tilt = self.chain.tilt(x, n, prediction)
            eps = self.noise.normal(x) if tilt is None else tilt.draw(self.noise)
            ratio = ratio if tilt is None else tilt.log_ratio(eps)
            landed = law.at(eps)
        prediction, after = self._look(landed, n - 1)
        return (landed, prediction, after), after - twist - ratio

    def _look(self, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The prior's prediction at level n, and the twist there."""
        if n == 0:
            return x, self.beta * self.log_reward(x)
        prediction = self.chain.predict(x, n)
        clean = prediction[:, : x.shape[1]]
        if self.chain.diffusion.clip is not None:
            clean = clean.clamp(-self.chain.diffusion.clip, self.chain.diffusion.clip)
        twist = self.beta * self.log_reward(clean)
        return prediction, twist.clamp(min=float(twist.max()) - self.floor)
