"""Behaviour cloning: the policies that the data was made by, as priors.

* ``fit_behaviour``: a diffusion policy, by the standard noise-prediction loss of diffusers'
  schedule, ``E |ε - ε(α_t u + σ_t ε, t, s)|²`` with u the state of the chain whose action was
  logged (``adapters.actions``);
* ``fit_gaussian``: one Gaussian per state, the classical baseline.

``OfflineData.best`` keeps the episodes of filtered cloning.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difftilt.adapters.actions import unbounded
from difftilt.adapters.policies import DiffusionPolicy, new_policy
from difftilt.adapters.policy_config import PolicyConfig
from difftilt.tasks.control.critics import Standardised, standardised
from difftilt.tasks.control.data import OfflineData
from difftilt.tasks.control.fitting import Fit, minimised

AVERAGE = 0.995
STATES_AT_ONCE = 4096


def fit_behaviour(data: OfflineData, config: PolicyConfig, fit: Fit) -> DiffusionPolicy:
    """A diffusion policy of logged actions; the moving average of its weights.

    Arguments:
        data: logged transitions.
        config: of the policy; its widths are those of the data.
        fit: updates, batch, learning rate, seed.

    Raises:
        InputError: an action outside [-1, 1].
        TrainingError: the loss is not finite.
    """
    states, actions = data.observations, unbounded(data.actions, config.bound)
    policy = new_policy(config, fit.seed)
    network = policy.network.standardised_by(states).requires_grad_(True)
    scheduler = config.scheduler()
    generator = torch.Generator().manual_seed(fit.seed + 1)

    def loss(chosen: Tensor) -> Tensor:
        x_0 = actions[chosen]
        noise = torch.randn(x_0.shape, generator=generator)
        time = torch.randint(config.training_steps, (len(x_0),), generator=generator)
        noised = scheduler.add_noise(x_0, noise, time)
        told = (time + 1) / config.training_steps if config.unit_time else time
        return nn.functional.mse_loss(network(noised, told.to(x_0), states[chosen]), noise)

    parameters = list(network.parameters())
    average = [p.detach().clone() for p in parameters]
    for update, _ in enumerate(minimised(loss, parameters, len(actions), fit)):
        _towards(average, parameters, min(AVERAGE, (1 + update) / (10 + update)))
    with torch.no_grad():
        for parameter, kept in zip(parameters, average, strict=True):
            parameter.copy_(kept)
    network.eval().requires_grad_(False)
    return policy.measured(states, actions, generator)


@torch.no_grad()
def _towards(average: list[Tensor], parameters: list[nn.Parameter], decay: float) -> None:
    present = [p.detach() for p in parameters]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        average, present, 1 - decay
    )


def support_of(
    policy: DiffusionPolicy,
    states: Float[Tensor, "B O"],
    count: int = 16,
    seed: int = 0,
    steps: int = 10,
) -> Float[Tensor, "B K A"]:
    """K states x_0 of the chain for each observed state, drawn in parts of a few thousand.

    Arguments:
        policy: the behaviour.
        states: (B, O).
        count: K.
        seed: of the draws.
        steps: network calls per draw.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = states.split(max(1, STATES_AT_ONCE // count))
    return torch.cat([policy.support(part, count, generator, steps) for part in parts])


@dataclass(frozen=True)
class GaussianPolicy:
    """``N(m(s), diag std(s)²)``, clipped to [-1, 1].

    Arguments:
        network: gives mean and log of the standard deviation.
    """

    network: Standardised

    def moments(self, states: Float[Tensor, "B O"]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (B, A) each."""
        mean, log_std = self.network(states).chunk(2, 1)
        return mean, log_std.clamp(math.log(1e-2), 0.0).exp()

    @torch.no_grad()
    def __call__(
        self, states: Float[Tensor, "B O"], generator: torch.Generator
    ) -> Float[Tensor, "B A"]:
        """One action for each state."""
        mean, std = self.moments(states)
        drawn = torch.randn(mean.shape, generator=generator).to(mean)
        return (mean + std * drawn).clamp(-1.0, 1.0)


def fit_gaussian(
    data: OfflineData,
    fit: Fit,
    width: int = 256,
    weight: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> GaussianPolicy:
    """Gaussian behaviour cloning by (weighted) maximum likelihood.

    With ``weight = exp(β (Q - V))`` it is advantage-weighted regression, IQL's way to a policy.

    Arguments:
        data: logged transitions.
        fit: updates, batch, learning rate, seed.
        width: of two hidden layers.
        weight: ``(states, actions) -> (B,)``; None: 1.

    Raises:
        TrainingError: the loss is not finite.

    Source of the weights: Peng et al. 2019, AWR, eq. 12 (arXiv 1910.00177).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        network = standardised(data, 0, width, outputs=2 * data.action_width)
    policy = GaussianPolicy(network)

    def loss(rows: Tensor) -> Tensor:
        states, actions = data.observations[rows], data.actions[rows]
        mean, std = policy.moments(states)
        surprise = (((actions - mean) / std).square().mul(0.5) + std.log()).sum(1)
        return surprise.mean() if weight is None else (weight(states, actions) * surprise).mean()

    for _ in minimised(loss, list(network.parameters()), len(data), fit):
        pass
    network.eval().requires_grad_(False)
    return policy
