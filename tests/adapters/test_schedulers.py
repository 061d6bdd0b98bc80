"""Our chain is the scheduler's: every step, from the same state, with the same noise."""

import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn

from difftilt.adapters.schedulers import diffusion_from_scheduler
from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.kernels.networks import full_copy
from difftilt.noise import GeneratorNoise

SHAPE = (3, 4, 4)
BATCH = 3
# Of the largest entry of the state before the step, which is what float32 resolves.
TOLERANCE = 2e-6


class Waves(nn.Module):
    """A smooth bounded function of state and time: chains of every scheduler stay finite."""

    def __init__(self, channels: int = SHAPE[0]) -> None:
        super().__init__()
        self.mix = nn.Conv2d(SHAPE[0], channels, 3, padding=1)
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.told.append(time)
        return 1.3 * torch.sin(self.mix(x) + (time / 300).to(x.dtype)[:, None, None, None])


def assert_same_steps(
    scheduler, steps: int, eta: float | None = None, network: Waves | None = None
) -> None:
    """Each transition of a rollout against ``scheduler.step`` from the same state."""
    network = Waves() if network is None else network
    found = diffusion_from_scheduler(scheduler, steps, 1.0 if eta is None else eta)
    chain = Chain(found.denoiser(network), found.diffusion, SHAPE)
    path = rollout(chain, BATCH, GeneratorNoise(torch.Generator().manual_seed(5)))
    told = [time[0] for time in network.told]

    own, generator = copy.deepcopy(scheduler), torch.Generator().manual_seed(5)
    own.set_timesteps(steps)
    start = torch.randn((BATCH, *SHAPE), generator=generator)
    start = start * getattr(own, "init_noise_sigma", 1.0)
    assert torch.allclose(path.states[-1], start, rtol=1e-6)
    settings = {} if eta is None or "Flow" in type(own).__name__ else {"eta": eta}
    for n, time, ours in zip(range(steps, 0, -1), own.timesteps, told, strict=True):
        assert ours == time and ours.dtype == time.dtype
        x = path.states[n]
        seen = own.scale_model_input(x, time) if hasattr(own, "scale_model_input") else x
        with torch.no_grad():
            output = network(seen, time.expand(BATCH))
        after = own.step(output, time, x, generator=generator, **settings).prev_sample
        tolerance = TOLERANCE * max(1.0, float(x.abs().max()))
        assert torch.allclose(path.states[n - 1], after, rtol=0, atol=tolerance), f"step {n}"


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [None, 1.0, 0.3])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm_step(prediction_type: str, clip: float | None, variance_type: str):
    scheduler = DDPMScheduler(
        prediction_type=prediction_type,
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        variance_type=variance_type,
    )
    assert_same_steps(scheduler, 20)


SPACINGS = [(50, "leading"), (10, "leading"), (50, "trailing"), (7, "trailing"), (7, "linspace")]


@pytest.mark.parametrize(("steps", "spacing"), [*SPACINGS, (1, "trailing")])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_ddpm_step_on_every_spacing(steps: int, spacing: str, schedule: str, variance_type: str):
    scheduler = DDPMScheduler(
        timestep_spacing=spacing, beta_schedule=schedule, variance_type=variance_type
    )
    assert_same_steps(scheduler, steps)


def test_ddpm_step_without_stride():
    assert_same_steps(DDPMScheduler(num_train_timesteps=120), 120)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddpm_step_with_learned_range(offset: int, clip: bool, spacing: str):
    scheduler = DDPMScheduler(
        variance_type="learned_range",
        clip_sample=clip,
        steps_offset=offset,
        timestep_spacing=spacing,
    )
    assert_same_steps(scheduler, 10, network=Waves(2 * SHAPE[0]))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_step(prediction_type: str, clip: float | None, eta: float):
    scheduler = DDIMScheduler(
        prediction_type=prediction_type,
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
    )
    assert_same_steps(scheduler, 20, eta)


@pytest.mark.parametrize(("steps", "spacing"), SPACINGS)
@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
def test_ddim_step_on_every_spacing(steps: int, spacing: str, to_one: bool, offset: int):
    scheduler = DDIMScheduler(
        timestep_spacing=spacing, set_alpha_to_one=to_one, steps_offset=offset
    )
    assert_same_steps(scheduler, steps, 0.7)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_zero_terminal_snr_step(kind, prediction_type: str):
    scheduler = kind(
        rescale_betas_zero_snr=True, prediction_type=prediction_type, timestep_spacing="trailing"
    )
    levels = diffusion_from_scheduler(scheduler, 10).diffusion.levels
    assert float(levels.alpha[-1]) == 0
    assert_same_steps(scheduler, 10, 0.8 if kind is DDIMScheduler else None)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("steps", "spacing"), SPACINGS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_euler_ancestral_step(prediction_type: str, steps: int, spacing: str, zero_snr: bool):
    scheduler = EulerAncestralDiscreteScheduler(
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        rescale_betas_zero_snr=zero_snr,
    )
    assert_same_steps(scheduler, steps)


FLOWS = [
    {},
    {"shift": 3.0},
    {"shift_terminal": 0.1},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
]


@pytest.mark.parametrize("settings", FLOWS)
def test_flow_matching_step_of_the_ode(settings: dict):
    assert_same_steps(FlowMatchEulerDiscreteScheduler(**settings), 12, eta=0.0)


@pytest.mark.parametrize("settings", FLOWS)
def test_flow_matching_step_with_its_own_noise(settings: dict):
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True, **settings)
    assert_same_steps(scheduler, 12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_flow_matching_keeps_the_marginals_for_every_eta(eta: float):
    """With the true x_0 as prediction, x_s has scale alpha_s and noise sigma_s, whatever eta."""
    diffusion = diffusion_from_scheduler(FlowMatchEulerDiscreteScheduler(), 20, eta).diffusion
    levels, tables = diffusion.levels, diffusion.tables
    scale = (tables.clipped + tables.clean + tables.state * levels.alpha)[1:]
    variance = ((tables.state * levels.sigma) ** 2 + tables.std**2)[1:]
    assert torch.allclose(scale, levels.alpha[:-1], rtol=0, atol=1e-12)
    assert torch.allclose(variance, levels.sigma[:-1] ** 2, rtol=0, atol=1e-12)


def test_only_the_last_ddpm_step_is_a_map():
    small = diffusion_from_scheduler(DDPMScheduler(), 10).diffusion
    assert [n for n in range(1, 11) if not small.has_density(n)] == [1]
    # diffusers adds noise at every time above 0: a large variance then ends in a law.
    large = DDPMScheduler(variance_type="fixed_large", timestep_spacing="trailing")
    assert all(diffusion_from_scheduler(large, 10).diffusion.has_density(n) for n in range(1, 11))


def test_a_chain_without_noise_can_be_built_but_not_tilted():
    found = diffusion_from_scheduler(DDIMScheduler(), 10, eta=0.0)
    chain = Chain(found.denoiser(Waves()), found.diffusion, SHAPE)
    assert rollout(chain, 2).x_0.shape == (2, *SHAPE)
    with pytest.raises(InputError, match="no stochastic step"):
        chain.tilted(full_copy(chain))


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(),
        DDIMScheduler(),
        EulerAncestralDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(),
    ],
)
def test_the_scheduler_is_not_changed(scheduler):
    before = copy.deepcopy(vars(scheduler))
    diffusion_from_scheduler(scheduler, 10)
    assert vars(scheduler).keys() == before.keys()
    for name, value in vars(scheduler).items():
        same = torch.equal(value, before[name]) if torch.is_tensor(value) else value == before[name]
        assert same, name


@pytest.mark.parametrize(
    ("scheduler", "steps", "eta", "sentence"),
    [
        (
            EulerDiscreteScheduler(),
            10,
            1.0,
            "unsupported scheduler EulerDiscreteScheduler; use one",
        ),
        (DDPMScheduler(thresholding=True), 10, 1.0, "thresholding=True is not supported"),
        (DDIMScheduler(thresholding=True), 10, 1.0, "thresholding=True is not supported"),
        (DDPMScheduler(variance_type="learned"), 10, 1.0, "'learned' is not supported"),
        (DDPMScheduler(variance_type="fixed_large_log"), 10, 1.0, "use one of fixed_small"),
        (DDPMScheduler(), 10, 0.5, "eta=0.5 is a setting of DDIM"),
        (DDIMScheduler(), 10, 1.5, r"eta must lie in \[0, 1\]"),
        (DDPMScheduler(), 0, 1.0, "at least 1"),
        (DDPMScheduler(), 1001, 1.0, "refuses steps=1001"),
        (DDPMScheduler(steps_offset=1), 1000, 1.0, "outside its 1000 training steps"),
        (
            DDPMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"),
            10,
            1.0,
            "starts from pure noise",
        ),
        (EulerAncestralDiscreteScheduler(prediction_type="sample"), 10, 1.0, "no prediction_type"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 10, 1.0, "use_dynamic"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), 10, 1.0, "invert_sigmas=True"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), 10, 0.0, "its own noise"),
    ],
)
def test_what_is_not_supported_is_said(scheduler, steps, eta: float, sentence: str):
    with pytest.raises(InputError, match=sentence):
        diffusion_from_scheduler(scheduler, steps, eta)
