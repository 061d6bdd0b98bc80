"""Whatever a network predicts, the clean sample comes out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from difftilt.denoisers import PREDICTION_TYPES, Level, NetworkDenoiser, to_clean
from difftilt.errors import InputError


def perfect_output(kind: str, x_0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """What a network that knows ``x_0`` says, of each type, from the types' definitions."""
    alpha, sigma = level.alpha, level.sigma
    return {
        "epsilon": eps,
        # On levels off the unit circle the network saw, and was trained for, unit-circle ones.
        "v_prediction": (alpha * eps - sigma * x_0) / (alpha**2 + sigma**2) ** 0.5,
        "sample": x_0,
        "flow": eps - x_0,
        "score": -eps / sigma,
    }[kind]


@given(
    kind=st.sampled_from(PREDICTION_TYPES),
    log_snr=st.floats(-12, 12),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from(["preserving", "exploding"]),
)
def test_the_clean_sample_comes_back(kind: str, log_snr: float, seed: int, scale: str):
    generator = torch.Generator().manual_seed(seed)
    x_0, eps = torch.randn((2, 3, 4), generator=generator, dtype=torch.float64)
    ratio = torch.tensor(-log_snr / 2, dtype=torch.float64).exp()  # sigma / alpha
    alpha = torch.ones(()).double() if scale == "exploding" else (1 + ratio**2) ** -0.5
    if kind == "flow":
        alpha = 1 / (1 + ratio)
    level = Level(0.5, alpha, ratio * alpha)
    x_t = alpha * x_0 + level.sigma * eps
    output = perfect_output(kind, x_0, eps, level)
    assert torch.allclose(to_clean(kind, output, x_t, level), x_0, rtol=0, atol=1e-9)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(InputError, match="unknown prediction type 'velocity'; choose one of eps"):
        to_clean("velocity", torch.zeros(1, 2), torch.zeros(1, 2), Level(0.5, 1.0, 1.0))
    with pytest.raises(InputError, match="unknown prediction type 'velocity'"):
        NetworkDenoiser(nn.Identity(), "velocity")


class Told(nn.Module):
    """Remembers its arguments; returns as many channels as asked for."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.x, self.time = x, time
        return x[:, :1].expand(-1, self.channels, *x.shape[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("time", [7.0, torch.tensor([7.0, 8.0])])
def test_the_network_is_told_one_time_per_sample(dtype: torch.dtype, time):
    network = Told()
    NetworkDenoiser(network, time_dtype=dtype)(torch.ones(2, 3, 4), Level(time, 0.6, 0.8))
    assert network.time.dtype == dtype
    assert network.time.tolist() == ([7, 7] if isinstance(time, float) else [7, 8])


def test_unit_input_has_unit_variance():
    network = Told()
    x = torch.full((2, 3), 10.0)
    denoiser = NetworkDenoiser(network, "sample", unit_input=True)
    denoiser(x, Level(1.0, 1.0, 3.0))
    assert torch.allclose(network.x, x / 10**0.5)
    sigma = torch.tensor([[3.0], [0.0]])
    denoiser(x, Level(1.0, torch.ones(2, 1), sigma))
    assert torch.allclose(network.x, x / torch.tensor([[10**0.5], [1.0]]))


def test_levels_may_differ_by_sample():
    network = Told()
    denoiser = NetworkDenoiser(network)
    x, alpha, sigma = torch.randn(2, 3, 4), torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6])
    shape = (2, 1, 1)
    both = denoiser(x, Level(torch.ones(2), alpha.reshape(shape), sigma.reshape(shape)))
    for i in range(2):
        alone = denoiser(x[i : i + 1], Level(1.0, float(alpha[i]), float(sigma[i])))
        assert torch.allclose(both[i : i + 1], alone, rtol=1e-6)


def test_call_says_how_the_network_is_called():
    denoiser = NetworkDenoiser(Told(), "sample", call=lambda network, x, t: network(x, t) + 1)
    assert torch.equal(denoiser(torch.ones(2, 3), Level(1.0, 0.6, 0.8)), torch.full((2, 3), 2.0))


def test_twice_the_channels_are_a_prediction_and_a_variance():
    x, level = torch.randn(2, 3, 4), Level(1.0, 0.6, 0.8)
    output = NetworkDenoiser(Told(6))(x, level)
    first = x[:, :1].expand(-1, 3, -1)
    assert torch.equal(output[:, :3], to_clean("epsilon", first, x, level))
    assert torch.equal(output[:, 3:], first)


def test_another_shape_is_refused():
    with pytest.raises(InputError, match=r"maps a state of shape \(2, 3, 4\) to \(2, 5, 4\)"):
        NetworkDenoiser(Told(5))(torch.ones(2, 3, 4), Level(1.0, 0.6, 0.8))
