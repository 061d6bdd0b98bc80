"""A problem of offline control whose tilted behaviour is read off its own prior.

States s in [-1, 1]; the behaviour acts near ±1/2 with equal chances; Q(s, a) = s a. What the
behaviour becomes under exp(β Q) is read off weighted draws of the prior itself.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from difftilt.adapters.policy_config import PolicyConfig
from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.models.residual import ResidualSize
from difftilt.noise import GeneratorNoise
from difftilt.posteriors import Prior
from difftilt.recipes.control.methods import (
    control_plan,
)
from difftilt.recipes.control.parts import Advantage, ControlSetting, Parts, support_sources
from difftilt.tasks.control.behaviour import fit_behaviour
from difftilt.tasks.control.critics import Critic
from difftilt.tasks.control.data import OfflineData
from difftilt.tasks.control.fitting import Fit
from difftilt.training.plan import Training

BETA, STEPS, DRAWS = 3.0, 6, 800
SIZE = ResidualSize(width=32, blocks=2, expansion=2, embedding=16)
PARTS = Parts(STEPS, SIZE, support=8, support_states=512, cloning=Fit(350, 256, 4e-3, decays=True))
ENDS = torch.tensor([[-1.0], [1.0]])


class Product(nn.Module):
    """Q(s, a) = s a."""

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        return states * actions


class Zero(nn.Module):
    """V(s) = 0."""

    def forward(self, states: Tensor) -> Tensor:
        return torch.zeros_like(states)


def logged(count: int = 2000) -> OfflineData:
    """One-step episodes of the behaviour."""
    generator = torch.Generator().manual_seed(1)
    states = 2 * torch.rand(count, 1, generator=generator) - 1
    side = torch.randint(2, (count, 1), generator=generator) - 0.5
    actions = (side + 0.15 * torch.randn(count, 1, generator=generator)).clamp(-1, 1)
    ends = torch.ones(count, dtype=torch.bool)
    rewards = (states * actions)[:, 0]
    return OfflineData("a bandit", states, actions, rewards, states, ends, ~ends)


@dataclass(frozen=True)
class Known:
    """What is given, and E[Q] at both ends of the states: of the behaviour, and tilted."""

    setting: ControlSetting
    before: float
    after: float


def build_known() -> Known:
    """Clone the behaviour and read off E[Q]."""
    data = logged()
    policy = fit_behaviour(data, PolicyConfig(1, 1, SIZE), PARTS.cloning)
    critic = Critic(nn.ModuleList([Product(), Product()]), Zero())
    target = Prior(policy.chain(STEPS), policy.decode, "a test").tilt(Advantage(critic), BETA)
    sources = support_sources(data, policy, PARTS)
    setting = ControlSetting(data, data, policy, critic, target, sources, PARTS)
    q = drawn_q(setting, target.prior.chain)
    tilted = (torch.softmax(BETA * q, 1) * q).sum(1)
    return Known(setting, float(q.mean()), float(tilted.mean()))


def drawn_q(setting: ControlSetting, chain: Chain) -> Tensor:
    """Q of actions drawn at both ends of the states, (2, draws)."""
    states = ENDS.repeat_interleave(DRAWS, 0)
    noise = GeneratorNoise(torch.Generator().manual_seed(2))
    x = rollout(chain.given(states), len(states), noise, ratio=False).x_0
    return (states * setting.policy.decode(x)).view(2, DRAWS)


def plan_of(name: str) -> Training:
    """A training of a second."""
    plan = control_plan(60, seed=3)
    # The score's gradient is noisier than the others: at 4e-3 PPO leaves the behaviour's support.
    rate = 2e-3 if name == "ppo_kl" else 4e-3
    fast = replace(plan.optimisation, learning_rate=rate, ema=0.9, decay_from=0.3)
    return replace(plan, batch=64, paths_per_condition=8, optimisation=fast)
