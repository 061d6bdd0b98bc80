"""The settings of a diffusion policy: widths, noise levels, solvers, how actions are bounded."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from difftilt.adapters.actions import Bound
from difftilt.errors import InputError, require
from difftilt.models.residual import ResidualSize
from difftilt.schedules import NoiseLevels, quantile_log_snr

Schedule = Literal["linear", "squaredcos_cap_v2", "vp_linear"]
LARGEST_TERMINAL_SNR = 1e-3
CLEANEST = 6.0
"""log-SNR of a chain's last but one level: noise of 0.05, where hardly any action is undecided."""


@dataclass(frozen=True)
class PolicyConfig:
    """What a diffusion policy is besides its weights.

    Arguments:
        observations: O, numbers in a state.
        actions: A, numbers in an action.
        size: of the network.
        schedule: of beta: "linear" from 1e-4 to 0.02 or "squaredcos_cap_v2", as diffusers' own; or
            "vp_linear", the continuous ``beta(t) = 0.1 + 19.9 t`` on the same number of times.
        training_steps: T, times that the network knows.
        unit_time: tell the network ``(k + 1) / T`` instead of the time k = 0 ... T - 1.
        final_std: least standard deviation of the step to x_0, above 0.
        bound: how actions are bounded.

    Raises:
        InputError: a number out of range, an unknown schedule or bound, or a schedule whose last
            level is not noise.
    """

    observations: int
    actions: int
    size: ResidualSize = field(default_factory=ResidualSize)
    schedule: Schedule = "linear"
    training_steps: int = 1000
    unit_time: bool = False
    final_std: float = 0.05
    bound: Bound = "clip"

    def __post_init__(self) -> None:
        for name in ("observations", "actions", "training_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"a policy needs {name} >= 1, got {getattr(self, name)}")
        for name, known in (("schedule", get_args(Schedule)), ("bound", get_args(Bound))):
            if getattr(self, name) not in known:
                raise InputError(
                    f"unknown {name} {getattr(self, name)!r} of a policy; choose one of "
                    f"{', '.join(known)}"
                )
        if not self.final_std > 0:
            raise InputError(f"final_std={self.final_std}; the last step needs a positive one")
        left = float(self.scheduler().alphas_cumprod[-1])
        ratio = left / (1 - left)
        if ratio > LARGEST_TERMINAL_SNR:
            raise InputError(
                f"the schedule {self.schedule!r} over {self.training_steps} steps ends at a "
                f"signal-to-noise ratio of {ratio:.2g}, but a chain starts from pure noise "
                f"({LARGEST_TERMINAL_SNR:g} at most); take more training steps"
            )

    def scheduler(self) -> Any:
        """The diffusers scheduler whose levels the network was trained on.

        Raises:
            MissingPackage: diffusers is not installed.
        """
        require("diffusers", "diffusers")
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        return DDPMScheduler(clip_sample=False, **self._betas())

    def levels(self, steps: int) -> NoiseLevels:
        """N of the network's times, spread over the log-SNR; the last one is noise.

        Raises:
            InputError: more steps than times.
        """
        if not 1 <= steps <= self.training_steps:
            raise InputError(
                f"a chain of this policy has 1 to {self.training_steps} steps, got steps={steps}"
            )
        squared = self.scheduler().alphas_cumprod.double()
        log_snr = (squared / (1 - squared)).log()
        wanted = quantile_log_snr(steps, clean=CLEANEST, noisy=float(log_snr[-1]))
        times = torch.searchsorted(-log_snr, -wanted).clamp(max=self.training_steps - 1)
        # Two steps at one time: the later one moves on, at the end of the range the earlier back.
        step = torch.arange(steps)
        times = (times - step).cummax(0).values + step
        times = torch.minimum(times, self.training_steps - steps + step)
        first = torch.zeros(1, dtype=torch.float64)
        return NoiseLevels(
            torch.cat([first, times.double()]),
            torch.cat([first + 1, squared[times].sqrt()]),
            torch.cat([first, (1 - squared[times]).sqrt()]),
        )

    def fast_scheduler(self) -> Any:
        """DPM-Solver++ of second order on the same levels, even in log-SNR."""
        require("diffusers", "diffusers")
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++",
            timestep_spacing="trailing",
            use_lu_lambdas=True,
            **self._betas(),
        )

    def _betas(self) -> dict[str, Any]:
        steps = self.training_steps
        if self.schedule != "vp_linear":
            return {"num_train_timesteps": steps, "beta_schedule": self.schedule}
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        # log alpha² = -∫ beta, so that beta_k = 1 - alpha²_k / alpha²_{k-1} is exact at each time.
        log_squared = -0.1 * t - 9.95 * t**2
        betas = -torch.expm1(log_squared.diff())
        return {"num_train_timesteps": steps, "trained_betas": betas.tolist()}
