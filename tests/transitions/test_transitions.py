"""Laws of a step against torch.distributions, in float64 and by their draws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from difftilt.noise import GeneratorNoise
from difftilt.transitions.base import rows_of
from difftilt.transitions.gaussian import Gaussian, GaussianTilt, MixtureTilt, zero_tilt

STANDARD = Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
DRAWS = 40_000
SHARES = torch.tensor([0.15, 0.25, 0.6]).double()


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def standard_log_prob(eps: Tensor) -> Tensor:
    return STANDARD.log_prob(eps).flatten(1).sum(1)


@pytest.mark.parametrize("std", [torch.tensor(0.3).double(), randn(3, 4, seed=9).exp()])
def test_gaussian_log_prob(std: Tensor):
    mean, x = randn(5, 3, 4, seed=1), randn(5, 3, 4, seed=2)
    expected = Normal(mean, std.expand_as(mean)).log_prob(x).sum((1, 2))
    law = Gaussian(mean, std)
    assert torch.allclose(law.log_prob(x), expected, rtol=1e-12)
    assert torch.allclose(law.at(law.standardise(x)), x, rtol=1e-12)


@given(seed=st.integers(0, 2**31), scaled=st.booleans())
def test_gaussian_tilt_log_ratio(seed: int, scaled: bool):
    delta, eps = randn(4, 3, 2, seed=seed), 2 * randn(4, 3, 2, seed=seed + 1)
    log_scale = 0.5 * randn(4, 3, 2, seed=seed + 2) if scaled else None
    scale = torch.ones_like(delta) if log_scale is None else log_scale.exp()
    expected = Normal(delta, scale).log_prob(eps).sum((1, 2)) - standard_log_prob(eps)
    ratio = GaussianTilt(delta, log_scale).log_ratio(eps)
    assert torch.allclose(ratio, expected, rtol=1e-12, atol=1e-11)


def mixture_tilt(delta: Tensor, log_scale: Tensor, logits: Tensor) -> MixtureTilt:
    """Of parts whose batch comes first."""
    return MixtureTilt(torch.stack([delta, log_scale], 2).movedim(0, -1), logits.T)


@given(seed=st.integers(0, 2**31), components=st.integers(1, 5))
def test_mixture_tilt_log_ratio(seed: int, components: int):
    delta = randn(4, components, 3, 2, seed=seed)
    log_scale = 0.5 * randn(4, components, 3, 2, seed=seed + 1)
    logits, eps = randn(4, components, seed=seed + 2), 2 * randn(4, 3, 2, seed=seed + 3)
    mixture = MixtureSameFamily(
        Categorical(logits=logits), Independent(Normal(delta, log_scale.exp()), 2)
    )
    expected = mixture.log_prob(eps) - standard_log_prob(eps)
    ratio = mixture_tilt(delta, log_scale, logits).log_ratio(eps)
    assert torch.allclose(ratio, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("event", [(2,), (2, 3)])
def test_mixture_tilt_log_ratio_has_its_own_derivatives(components: int, event: tuple[int, ...]):
    def value(eps: Tensor, delta: Tensor, log_scale: Tensor, logits: Tensor) -> Tensor:
        return mixture_tilt(delta, log_scale, logits).log_ratio(eps)

    parts = [
        randn(4, *event, seed=1),
        randn(4, components, *event, seed=2),
        0.5 * randn(4, components, *event, seed=3),
        randn(4, components, seed=4),
    ]
    assert torch.autograd.gradcheck(value, [part.requires_grad_() for part in parts])
    # The posterior's parameters alone, as in a training.
    parts[0] = parts[0].detach()
    assert torch.autograd.gradcheck(value, parts)


@pytest.mark.parametrize("components", [1, 2, 3, 4, 7])
def test_zero_tilts_have_ratio_exactly_zero(components: int):
    eps = torch.randn(6, 5)
    zero = torch.zeros(6, components, 5)
    assert torch.equal(zero_tilt(eps).log_ratio(eps), torch.zeros(6))
    assert torch.equal(
        GaussianTilt(torch.zeros(6, 5), torch.zeros(6, 5)).log_ratio(eps), torch.zeros(6)
    )
    mixture = mixture_tilt(zero, zero, torch.zeros(6, components)).log_ratio(eps)
    assert torch.allclose(mixture, torch.zeros(6), rtol=0, atol=5e-7)


def test_log_ratio_keeps_its_digits_in_high_dimension():
    """16,384 dimensions in float32: a difference of log-densities loses what the formula keeps."""
    eps, delta = randn(8, 16_384, seed=1), 1e-4 * randn(8, 16_384, seed=2)
    log_scale = 1e-5 * randn(8, 16_384, seed=3)
    exact = GaussianTilt(delta, log_scale).log_ratio(eps)
    ours = GaussianTilt(delta.float(), log_scale.float()).log_ratio(eps.float())
    q, p = (
        Gaussian(delta.float(), log_scale.float().exp()),
        Gaussian(0 * delta.float(), log_scale.new_ones(()).float()),
    )
    naive = q.log_prob(eps.float()) - p.log_prob(eps.float())
    error, naive_error = (ours - exact).abs().max(), (naive - exact).abs().max()
    assert float(error) < 1e-6
    assert float(naive_error) > 20 * float(error)


def within_five_errors(values: Tensor, expected: Tensor | float) -> bool:
    """Whether column means agree with what they estimate."""
    error = values.std(0) / len(values) ** 0.5
    return bool(((values.mean(0) - expected).abs() < 5 * error).all())


@pytest.mark.parametrize("widen", [1.0, 1.7])
@pytest.mark.parametrize("scaled", [False, True])
def test_gaussian_tilt_draws_its_law(generator: torch.Generator, widen: float, scaled: bool):
    """Means and second moments of 4 coordinates (false alarm rate below 5e-6)."""
    delta = torch.tensor([0.0, 1.5, -2.0, 0.3]).double()
    log_scale = torch.tensor([0.0, -1.0, 0.7, 0.2]).double() if scaled else None
    std = widen * (torch.ones(4).double() if log_scale is None else log_scale.exp())
    eps = GaussianTilt(delta.expand(DRAWS, 4), log_scale).draw(GeneratorNoise(generator), widen)
    assert within_five_errors(eps, delta)
    assert within_five_errors((eps - delta) ** 2, std**2)
    assert within_five_errors((eps - delta)[:, :1] * (eps - delta)[:, 1:], 0.0)


@pytest.mark.parametrize("widen", [1.0, 1.5])
def test_mixture_tilt_draws_its_law(generator: torch.Generator, widen: float):
    """Shares, means and spreads of well-separated components (false alarm rate below 2e-5)."""
    centres = torch.tensor([[-30.0, 0.0], [0.0, 30.0], [30.0, -30.0]]).double()
    log_scale = torch.tensor([[0.0, 0.5], [-0.5, 0.3], [0.2, -1.0]]).double()
    shape = (DRAWS, 3, 2)
    tilt = mixture_tilt(
        centres.expand(shape), log_scale.expand(shape), SHARES.log().expand(DRAWS, 3)
    )
    eps = tilt.draw(GeneratorNoise(generator), widen)
    nearest = torch.cdist(eps, centres).argmin(1)
    assert within_five_errors(torch.nn.functional.one_hot(nearest, 3).double(), SHARES)
    for k in range(3):
        own = eps[nearest == k] - centres[k]
        assert within_five_errors(own, 0.0)
        assert within_five_errors(own**2, (widen * log_scale[k].exp()) ** 2)


def test_mixture_components_differ_by_sample(generator: torch.Generator):
    """Each sample draws from its own logits: here one that has a single component each."""
    delta = torch.tensor([[[-50.0], [50.0]]]).expand(1000, 2, 1)
    logits = torch.where(torch.arange(1000)[:, None] % 2 == torch.arange(2), 0.0, -torch.inf)
    eps = mixture_tilt(delta, torch.zeros_like(delta), logits).draw(GeneratorNoise(generator))
    assert torch.equal(eps[:, 0] > 0, torch.arange(1000) % 2 == 1)


@pytest.mark.parametrize("kind", ["shift", "scale", "mixture"])
def test_ratios_weigh_draws_back_to_the_prior(generator: torch.Generator, kind: str):
    """``E_q[p/q] = 1`` and ``E_q[(p/q) eps] = 0``: draws and ratio are of one law.

    Within 5 standard errors: false alarm rate below 4e-6.
    """
    delta = 0.4 * randn(1, 3, 2, seed=1).expand(DRAWS, 3, 2)
    log_scale = 0.1 * randn(1, 3, 2, seed=2).abs().expand(DRAWS, 3, 2)
    tilts = {
        "shift": GaussianTilt(delta[:, 0]),
        "scale": GaussianTilt(delta[:, 0], log_scale[:, 0]),
        "mixture": mixture_tilt(delta, log_scale, SHARES.log().expand(DRAWS, 3)),
    }
    eps = tilts[kind].draw(GeneratorNoise(generator))
    weight = (-tilts[kind].log_ratio(eps)).exp()
    assert within_five_errors(weight, 1.0)
    assert within_five_errors(weight[:, None] * eps, 0.0)
    assert not within_five_errors(eps, 0.0)


def test_half_precision_ratios_are_summed_in_float32():
    delta = torch.full((2, 4096), 0.01, dtype=torch.bfloat16)
    ratio = GaussianTilt(delta).log_ratio(torch.ones_like(delta))
    assert ratio.dtype == torch.float32


def test_rows_of_a_table():
    table, x = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(2, 4, 5)
    assert rows_of(table, 1, x) == 2.0
    assert rows_of(table, torch.tensor([2, 0]), x).shape == (2, 1, 1)
    assert rows_of(table, torch.tensor([2, 0]), x).flatten().tolist() == [3.0, 1.0]
