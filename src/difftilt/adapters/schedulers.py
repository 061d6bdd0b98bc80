"""A diffusers scheduler as a Gaussian diffusion: the same steps, with a density.

| scheduler | levels | kernel |
|---|---|---|
| DDPMScheduler | alpha² + sigma² = 1 | DDPM's, std by ``variance_type`` |
| DDIMScheduler | alpha² + sigma² = 1 | DDIM at ``eta`` |
| EulerAncestralDiscreteScheduler | alpha = 1 | DDIM at eta = 1, unit-variance input |
| FlowMatchEulerDiscreteScheduler | alpha = 1 - sigma | DDIM at ``eta`` (0: its ODE); with |
| | | ``stochastic_sampling``: fresh noise on the clean prediction |

The tables are computed in the scheduler's own float32 and order: at small times its
``1 - a_t / a_s`` has lost three digits, and the prior is the chain that the scheduler runs.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.denoisers import NetworkDenoiser
from difftilt.diffusions.gaussian import GaussianDiffusion, ReverseTables, implicit_tables
from difftilt.errors import InputError
from difftilt.schedules import NoiseLevels

# diffusers floors a variance here before its logarithm.
VARIANCE_FLOOR = 1e-20
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")


@dataclass(frozen=True)
class SchedulerDiffusion:
    """A diffusion, and how its network is to be called.

    Arguments:
        diffusion: levels and reverse kernels.
        prediction_type: what the network's output means.
        unit_input: whether the network sees states divided by ``sqrt(alpha² + sigma²)``.
        time_dtype: dtype of the times that the network is told.
    """

    diffusion: GaussianDiffusion
    prediction_type: str
    unit_input: bool = False
    time_dtype: torch.dtype = torch.int64

    def denoiser(
        self, network: nn.Module, call: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None
    ) -> NetworkDenoiser:
        """``network`` as the denoiser of this diffusion; ``call`` as in ``NetworkDenoiser``."""
        return NetworkDenoiser(
            network, self.prediction_type, call, self.unit_input, self.time_dtype
        )


def diffusion_from_scheduler(
    scheduler: Any, steps: int, eta: float = 1.0, grid: Mapping[str, Any] | None = None
) -> SchedulerDiffusion:
    """The chain that a diffusers scheduler runs with ``steps`` inference steps.

    Arguments:
        scheduler: one of the four of the module's table; it is copied, not changed.
        steps: number of inference steps N.
        eta: stochasticity in [0, 1] of DDIM and flow matching; the others bring their own noise.
            At 0 the chain is a map: it can be sampled but not tilted.
        grid: what else the pipeline hands to ``set_timesteps`` (``sigmas``, ``mu``), or None.

    Raises:
        InputError: a scheduler or setting whose kernel is not known, or an impossible ``steps``.
    """
    name = type(scheduler).__name__
    if name not in _READERS:
        raise InputError(f"unsupported scheduler {name}; use one of {', '.join(_READERS)}")
    grid = {} if grid is None else grid
    _check_settings(name, scheduler.config, "mu" in grid)
    if eta != 1.0 and (name not in _WITH_ETA or scheduler.config.get("stochastic_sampling")):
        raise InputError(
            f"eta={eta} is a setting of DDIM and flow matching; {name} brings its own noise, so "
            "leave eta = 1"
        )
    found = _READERS[name](_on_steps(scheduler, steps, grid), eta)
    _check_first_level(found, name)
    return found


def _check_settings(name: str, config: Any, shifted: bool) -> None:
    for setting in ("thresholding", "use_dynamic_shifting", "invert_sigmas"):
        if config.get(setting) and not (shifted and setting == "use_dynamic_shifting"):
            raise InputError(f"{name} with {setting}=True is not supported; set it to False")
    variance = config.get("variance_type", "fixed_small")
    if variance not in VARIANCE_TYPES:
        # diffusers takes the root of a log-variance for fixed_large_log: its step is NaN.
        raise InputError(
            f"{name} with variance_type={variance!r} is not supported; "
            f"use one of {', '.join(VARIANCE_TYPES)}"
        )
    if name.startswith("Euler") and config.prediction_type == "sample":
        raise InputError(f"{name} has no prediction_type 'sample'; use a DDPMScheduler")


def _check_first_level(found: SchedulerDiffusion, name: str) -> None:
    if found.prediction_type == "epsilon" and float(found.diffusion.levels.alpha[-1]) == 0:
        raise InputError(
            f"{name} with rescale_betas_zero_snr starts from pure noise, where an epsilon "
            "prediction says nothing of the clean sample; use v_prediction or sample"
        )


def _on_steps(scheduler: Any, steps: int, grid: Mapping[str, Any]) -> Any:
    """A copy of the scheduler, set to its timesteps."""
    if steps < 1:
        raise InputError(f"a chain needs at least 1 step, got steps={steps}")
    own = copy.deepcopy(scheduler)
    try:
        own.set_timesteps(steps, **grid)
    except ValueError as error:
        raise InputError(f"{type(scheduler).__name__} refuses steps={steps}: {error}") from error
    times = own.timesteps
    outside = bool((times < 0).any()) or bool((times > own.config.num_train_timesteps).any())
    if hasattr(own, "alphas_cumprod"):
        outside = outside or bool((times > own.config.num_train_timesteps - 1).any())
    if len(times) != steps or outside:
        raise InputError(
            f"{type(scheduler).__name__} puts steps={steps} on times outside its "
            f"{own.config.num_train_timesteps} training steps; choose other steps or another "
            "timestep_spacing or steps_offset"
        )
    return own


def _rising(value: Tensor, first: float) -> Float[Tensor, " levels"]:
    """A table over n = 0 ... N from diffusers' falling values for n = N ... 1."""
    return torch.cat([torch.tensor([first], dtype=torch.float64), value.flip(0).double()])


def _tables(clipped: Tensor, clean: Tensor, state: Tensor, std: Tensor) -> ReverseTables:
    return ReverseTables(*(_rising(value, 0.0) for value in (clipped, clean, state, std)))


def _unclipped(tables: ReverseTables) -> ReverseTables:
    """Without clipping the two coefficients of the clean prediction are one."""
    clean = torch.zeros_like(tables.clean)
    return replace(tables, clipped=tables.clipped + tables.clean, clean=clean)


def _clip(config: Any) -> float | None:
    return float(config.clip_sample_range) if config.clip_sample else None


def _signal(
    scheduler: Any, previous: Int[Tensor, " N"], final: Tensor
) -> tuple[NoiseLevels, Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Levels, and the squared signal scales (a_t, a_s) of each step's two ends, N ... 1."""
    times, alphas = scheduler.timesteps, scheduler.alphas_cumprod
    a_t = alphas[times]
    a_s = torch.where(previous >= 0, alphas[previous.clamp(min=0)], final)
    levels = NoiseLevels(
        _rising(times, 0.0),
        _rising(a_t.double().sqrt(), 1.0),
        _rising((1 - a_t.double()).sqrt(), 0.0),
    )
    return levels, a_t, a_s


def _ddpm(scheduler: Any, eta: float) -> SchedulerDiffusion:
    """Source: Ho et al. 2020, eq. 7 (arXiv 2006.11239), as ``DDPMScheduler.step`` computes it."""
    times = scheduler.timesteps
    previous = torch.cat([times[1:], times.new_tensor([-1])])
    levels, a_t, a_s = _signal(scheduler, previous, torch.tensor(1.0))
    ratio = a_t / a_s
    beta = 1 - ratio
    small = (1 - a_s) / (1 - a_t) * beta
    variance = small if scheduler.config.variance_type.startswith("fixed_small") else beta
    # No noise is added at time 0, whatever the variance; below the floor a step is a map.
    std = variance.sqrt() * (times > 0)
    tables = _tables(
        a_s.sqrt() * beta / (1 - a_t),
        torch.zeros_like(beta),
        ratio.sqrt() * (1 - a_s) / (1 - a_t),
        std,
    )
    bounds = None
    if scheduler.config.variance_type == "learned_range":
        low, high = small.clamp(min=VARIANCE_FLOOR).log(), beta.log()
        bounds = (_rising(low, 0.0), _rising(high, 0.0))
    diffusion = GaussianDiffusion(levels, tables, _clip(scheduler.config), 1.0, bounds)
    return SchedulerDiffusion(diffusion, scheduler.config.prediction_type)


def _ddim(scheduler: Any, eta: float) -> SchedulerDiffusion:
    """Source: Song et al. 2020, eq. 12 and 16 (arXiv 2010.02502), as in ``DDIMScheduler.step``."""
    if not 0 <= eta <= 1:
        raise InputError(f"eta must lie in [0, 1], got {eta}")
    # The scheduler's own stride: with "linspace" it is not the distance to the next timestep.
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    previous = scheduler.timesteps - stride
    levels, a_t, a_s = _signal(scheduler, previous, scheduler.final_alpha_cumprod)
    std = eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt()
    direction = (1 - a_s - std**2).clamp(min=0).sqrt().double()
    alpha_t, sigma_t = a_t.double().sqrt(), (1 - a_t.double()).sqrt()
    clip = _clip(scheduler.config)
    tables = _tables(a_s.sqrt(), -direction * alpha_t / sigma_t, direction / sigma_t, std)
    tables = _unclipped(tables) if clip is None else tables
    diffusion = GaussianDiffusion(levels, tables, clip, base_std=1.0)
    return SchedulerDiffusion(diffusion, scheduler.config.prediction_type)


def _euler_ancestral(scheduler: Any, eta: float) -> SchedulerDiffusion:
    """Source: k-diffusion's ``sample_euler_ancestral``, as diffusers' own ``step``."""
    here, there = scheduler.sigmas[:-1], scheduler.sigmas[1:]
    up = (there**2 * (here**2 - there**2) / here**2).sqrt()
    kept = (there**2 - up**2).clamp(min=0).sqrt() / here
    levels = NoiseLevels(
        _rising(scheduler.timesteps, 0.0),
        torch.ones(len(here) + 1, dtype=torch.float64),
        _rising(here, 0.0),
    )
    tables = _tables(1 - kept.double(), torch.zeros_like(kept), kept, up)
    diffusion = GaussianDiffusion(levels, tables, base_std=float(scheduler.init_noise_sigma))
    return SchedulerDiffusion(diffusion, scheduler.config.prediction_type, True, torch.float32)


def _flow_matching(scheduler: Any, eta: float) -> SchedulerDiffusion:
    """Source: Liu et al. 2022 (arXiv 2209.03003); eta > 0 adds noise and keeps the marginals."""
    here, there = scheduler.sigmas[:-1].double(), scheduler.sigmas[1:].double()
    sigma = _rising(here, 0.0)
    levels = NoiseLevels(_rising(scheduler.timesteps, 0.0), 1 - sigma, sigma)
    if scheduler.config.stochastic_sampling:
        tables = _tables(1 - there, torch.zeros_like(there), torch.zeros_like(there), there)
    else:
        tables = _unclipped(implicit_tables(levels, eta))
    diffusion = GaussianDiffusion(levels, tables, base_std=1.0)
    return SchedulerDiffusion(diffusion, "flow", time_dtype=torch.float32)


_WITH_ETA = ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler")
_READERS: dict[str, Callable[[Any, float], SchedulerDiffusion]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": _ddim,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "FlowMatchEulerDiscreteScheduler": _flow_matching,
}
