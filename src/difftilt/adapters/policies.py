"""Diffusion policies: a noise-predicting network of an action, its time and the observed state.

    policy = load_policy(folder)                       # or built by difftilt.tasks.control
    prior = load(folder, steps=15)                     # a Prior; bind states with given(states)
    likely = policy.support(states, count=16)          # fast draws by DPM-Solver

The noise levels are a diffusers scheduler's. **The last of them has to be noise**: a chain starts
from N(0, I), so that the signal left at the last level, ``alpha_N``, is a part of the data that the
sampler never starts from (75 steps of beta from 1e-4 to 0.02 keep 67 % of the signal, and what is
sampled then is no longer what was learned). A schedule of terminal signal-to-noise ratio above
1e-3 is refused.

Few steps are enough for two reasons. They are spread over the log-SNR where actions are decided,
not over the time. And each step has the variance of largest likelihood,

    std_n² = Var[x_{n-1} | x_n, x_0] + (a_n sigma_n / alpha_n)² E|ε - ε̂|² / A,

with a_n the step's coefficient of x_0: exact for Gaussian actions at any N, where DDPM's own
variance narrows them (0.3 becomes 0.21 in 15 even steps). The step to ``x_0`` is then a law like
the others, which a posterior can tilt, and a trained posterior is again an ordinary policy.

Source of the variance: Bao et al. 2022, Analytic-DPM, theorem 1 (arXiv 2201.06503).
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difftilt.adapters.actions import bounded
from difftilt.adapters.folders import OwnFolder
from difftilt.adapters.policy_config import PolicyConfig
from difftilt.chains.chain import Chain
from difftilt.chains.fingerprints import fingerprint
from difftilt.denoisers import Denoiser, Level, to_clean
from difftilt.diffusions.gaussian import (
    GaussianDiffusion,
    ancestral_tables,
    posterior_variance,
)
from difftilt.errors import InputError
from difftilt.models.residual import ResidualMLP, ResidualSize
from difftilt.schedules import NoiseLevels

FOLDER = OwnFolder("difftilt diffusion policy", "policy")
ERROR = "noise_error"
MEASURED, MEASURED_ROWS = 64, 2048


class PolicyDenoiser(Denoiser):
    """A noise-predicting network of (action, time, state) as a denoiser; ``given(states)`` binds.

    Arguments:
        network: called as ``network(x, time, state)``.
        observations: O; a condition may hold more, which the prior does not read.
        further: numbers beyond the state that a posterior reads (``informed``).
        clock: from the scheduler's times to those that the network is told: ``(time + 1) / clock``;
            None for the scheduler's own.
        condition: (B, O) or (B, O + further) bound states, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        observations: int,
        further: int = 0,
        clock: int | None = None,
        condition: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.observations, self.further, self.clock = observations, further, clock
        self.condition = condition

    def forward(self, x_t: Float[Tensor, "B A"], level: Level) -> Float[Tensor, "B A"]:
        if self.condition is None:
            raise InputError("a policy acts in a state; bind states with given(states (B, O))")
        if self.condition.ndim != 2 or self.condition.shape[1] < self.observations:
            raise InputError(
                f"this policy reads states of {self.observations} numbers, (B, "
                f"{self.observations}), and got {tuple(self.condition.shape)}"
            )
        time = level.times(x_t, x_t.dtype)
        time = time if self.clock is None else (time + 1) / self.clock
        output = self.network(x_t, time, self.condition[:, : self.observations])
        return to_clean("epsilon", output, x_t, level)

    def given(self, condition: Tensor | None) -> "PolicyDenoiser":
        return PolicyDenoiser(self.network, self.observations, self.further, self.clock, condition)

    def informed(self) -> "PolicyDenoiser":
        if not self.further:
            return self
        network: Any = self.network
        seen = self.observations + self.further
        return PolicyDenoiser(network.reading(self.further), seen, 0, self.clock, self.condition)


@dataclass(frozen=True)
class DiffusionPolicy:
    """A behaviour ``μ(a | s)`` as a diffusion model.

    Arguments:
        network: predicts noise, ``network(x, time, state)``; frozen.
        config: what it is besides its weights.
        error: (T,) mean squared error of the predicted noise at each time (``measured``), or None:
            the chain then has DDPM's own variances, which are too small.
    """

    network: ResidualMLP
    config: PolicyConfig
    error: Float[Tensor, " times"] | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        return fingerprint(self.network)

    def chain(self, steps: int, further: int = 0) -> Chain:
        """The policy's chain of N steps, every one of which has a density.

        Arguments:
            steps: N.
            further: numbers of a condition, beyond the state, that a posterior will read.
        """
        config, levels = self.config, self.config.levels(steps)
        clock = config.training_steps if config.unit_time else None
        denoiser = PolicyDenoiser(self.network, config.observations, further, clock)
        like = self.network.first.weight.new_zeros(())
        tables = ancestral_tables(levels, self._stds(levels))
        diffusion = GaussianDiffusion(levels, tables, base_std=1.0)
        return Chain(denoiser, diffusion, (config.actions,), like=like)

    def _stds(self, levels: NoiseLevels) -> Float[Tensor, " levels"]:
        """The standard deviation of each step (equation of the module)."""
        variance = posterior_variance(levels)
        if self.error is not None:
            clean = ancestral_tables(levels).clipped
            spread = (clean * levels.sigma / levels.alpha) ** 2
            variance = variance + spread * self.error.double()[levels.time.long()]
        variance[1] = variance[1].clamp(min=self.config.final_std**2)
        return variance.sqrt()

    @torch.no_grad()
    def measured(
        self,
        states: Float[Tensor, "n O"],
        x_0: Float[Tensor, "n A"],
        generator: torch.Generator | None = None,
    ) -> "DiffusionPolicy":
        """This policy with its error, measured on data; between 64 times by interpolation.

        Arguments:
            states: of the data.
            x_0: states of the chain whose actions were logged (``actions.unbounded``): under the
                bound "clip" the actions themselves.
            generator: of the noise and of the rows.
        """
        squared = self.config.scheduler().alphas_cumprod
        count = self.config.training_steps
        times = torch.linspace(0, count - 1, min(MEASURED, count)).round().long()
        found = []
        for time in times.tolist():
            rows = torch.randint(len(x_0), (MEASURED_ROWS,), generator=generator)
            noise = torch.randn(x_0[rows].shape, generator=generator)
            x = squared[time].sqrt() * x_0[rows] + (1 - squared[time]).sqrt() * noise
            said = self.network(x, self._told(time).expand(len(x)), states[rows])
            found.append((said - noise).square().mean())
        place = torch.searchsorted(times, torch.arange(count)).clamp(1, len(times) - 1)
        low, high = times[place - 1], times[place]
        share = (torch.arange(count) - low) / (high - low)
        error = torch.stack(found)
        return replace(self, error=torch.lerp(error[place - 1], error[place], share))

    def _told(self, time: int | Tensor) -> Tensor:
        """The time that the network is told."""
        asked = torch.as_tensor(time, dtype=torch.float32)
        return (asked + 1) / self.config.training_steps if self.config.unit_time else asked

    def decode(self, x: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
        """The actions, in [-1, 1], of states x_0 of the chain."""
        return bounded(x, self.config.bound)

    @torch.no_grad()
    def support(
        self,
        states: Float[Tensor, "B O"],
        count: int = 16,
        generator: torch.Generator | None = None,
        steps: int = 15,
    ) -> Float[Tensor, "B K A"]:
        """K draws of x_0 for each state, by DPM-Solver: fast, and near the policy's law.

        Arguments:
            states: (B, O).
            count: K.
            generator: of the noise.
            steps: network calls per draw.
        """
        solver = self.config.fast_scheduler()
        solver.set_timesteps(steps)
        rows = states.repeat_interleave(count, 0)
        shape = (len(rows), self.config.actions)
        x = torch.randn(shape, generator=generator, dtype=rows.dtype, device=rows.device)
        for time in solver.timesteps:
            output = self.network(x, self._told(time).to(x).expand(len(x)), rows)
            x = solver.step(output, time, x).prev_sample
        return x.unflatten(0, (-1, count))

    def save(self, folder: str | Path) -> Path:
        """Write config (JSON) and weights (safetensors); the folder appears whole or not at all.

        Raises:
            InputError: the folder holds something else.
            CheckpointError: it cannot be written.
        """
        weights = self.network.state_dict()
        if self.error is not None:
            weights = {**weights, ERROR: self.error}
        return FOLDER.write(folder, asdict(self.config), weights)


def new_policy(config: PolicyConfig, seed: int = 0) -> DiffusionPolicy:
    """A policy with untrained weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResidualMLP(config.actions, config.observations, size=config.size)
    return DiffusionPolicy(network.requires_grad_(False), config)


def load_policy(folder: str | Path) -> DiffusionPolicy:
    """A policy that ``save`` wrote.

    Raises:
        CheckpointError: a file is missing, broken or does not fit.
        InputError: the config is out of range.
    """
    config, network, error = FOLDER.read(folder, lambda c: new_policy(_config(c)).network, ERROR)
    return DiffusionPolicy(network, _config(config), error)


def _config(options: dict[str, Any]) -> PolicyConfig:
    # Folders that do not say were written when Mish was the only one.
    size = ResidualSize(**{"activation": "mish", **options["size"]})
    return PolicyConfig(**{**options, "size": size})
