"""Reverse kernels against the conditioning of jointly Gaussian variables, in float64."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from difftilt.diffusions.gaussian import (
    GaussianDiffusion,
    ReverseTables,
    ancestral_tables,
    implicit_tables,
    posterior_variance,
)
from difftilt.errors import InputError
from difftilt.schedules import (
    NoiseLevels,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    levels_from_log_snr,
    quantile_log_snr,
)

LEVELS = {
    "preserving": VariancePreserving().levels(12),
    "exploding": VarianceExploding(sigma_max=20.0).levels(12),
    "flow": RectifiedFlow().levels(12),
    "quantiles": levels_from_log_snr(quantile_log_snr(12)),
    "pure noise": NoiseLevels(*(RectifiedFlow(t_max=1.0).levels(12).__dict__.values())),
}
TABLES = {
    "ancestral": lambda levels: ancestral_tables(levels),
    "implicit": lambda levels: implicit_tables(levels, 1.0),
    "half implicit": lambda levels: implicit_tables(levels, 0.5),
    "map": lambda levels: implicit_tables(levels, 0.0),
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(params=LEVELS)
def levels(request: pytest.FixtureRequest) -> NoiseLevels:
    return LEVELS[request.param]


def conditioned(levels: NoiseLevels, n: int) -> tuple[float, float, float]:
    """``x_{n-1} | x_n, x_0``: coefficients of x_0 and x_n, and the variance, by the joint law."""
    (a_s, a_t), (s_s, s_t) = levels.alpha[n - 1 : n + 1], levels.sigma[n - 1 : n + 1]
    covariance = a_t / a_s * s_s**2  # of x_s and x_t given x_0: x_t = (a_t / a_s) x_s + noise
    gain = covariance / s_t**2
    return float(a_s - gain * a_t), float(gain), float(s_s**2 - gain * covariance)


def test_ancestral_kernels_are_the_conditional_law(levels: NoiseLevels):
    tables = ancestral_tables(levels)
    for n in range(1, levels.steps + 1):
        clean, state, variance = conditioned(levels, n)
        assert float(tables.clipped[n]) == pytest.approx(clean, rel=1e-9, abs=1e-12)
        assert float(tables.state[n]) == pytest.approx(state, rel=1e-9, abs=1e-12)
        assert float(tables.std[n]) ** 2 == pytest.approx(variance, rel=1e-9, abs=1e-12)
        assert float(posterior_variance(levels)[n]) == pytest.approx(variance, rel=1e-9, abs=1e-12)


def test_fully_stochastic_implicit_kernels_are_the_ancestral_ones(levels: NoiseLevels):
    """DDIM at eta = 1 is DDPM where nothing is clipped (Song et al. 2020, section 4.1)."""
    implicit, ancestral = implicit_tables(levels, 1.0), ancestral_tables(levels)
    settings = {"rtol": 1e-9, "atol": 1e-12}
    assert torch.allclose(implicit.clipped + implicit.clean, ancestral.clipped, **settings)
    assert torch.allclose(implicit.state, ancestral.state, **settings)
    assert torch.allclose(implicit.std, ancestral.std, **settings)


@pytest.mark.parametrize("tables", TABLES)
def test_every_kernel_keeps_the_marginals(levels: NoiseLevels, tables: str):
    """From ``x_n ~ N(alpha_n x_0, sigma_n²)`` and the true x_0 to the marginal of n - 1."""
    own = TABLES[tables](levels)
    mean = (own.clipped + own.clean + own.state * levels.alpha)[1:]
    variance = ((own.state * levels.sigma) ** 2 + own.std**2)[1:]
    assert torch.allclose(mean, levels.alpha[:-1], rtol=0, atol=1e-12)
    assert torch.allclose(variance, levels.sigma[:-1] ** 2, rtol=1e-10, atol=1e-12)


def test_the_forward_steps_compose_to_the_marginals(levels: NoiseLevels):
    diffusion = GaussianDiffusion(levels)
    mean, variance = randn(2, 3), torch.zeros(()).double()
    x_0 = mean
    for n in range(1, levels.steps + 1):
        law = diffusion.forward_step(mean, n)
        ratio = float(levels.alpha[n] / levels.alpha[n - 1])
        mean, variance = law.mean, ratio**2 * variance + law.std**2
        assert torch.allclose(mean, levels.alpha[n] * x_0, rtol=1e-12)
        assert float(variance) == pytest.approx(float(levels.sigma[n]) ** 2, rel=1e-10)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_is_a_share(eta: float):
    with pytest.raises(InputError, match=r"eta must lie in \[0, 1\], got"):
        implicit_tables(LEVELS["flow"], eta)


def test_steps_without_noise_have_no_density():
    levels = LEVELS["preserving"]
    assert not GaussianDiffusion(levels).has_density(1)
    assert all(GaussianDiffusion(levels).has_density(n) for n in range(2, 13))
    mapped = GaussianDiffusion(levels, implicit_tables(levels, 0.0))
    assert not any(mapped.has_density(n) for n in range(1, 13))


def test_a_last_step_can_be_made_a_law():
    diffusion = GaussianDiffusion(LEVELS["preserving"], clip=1.0, base_std=1.5)
    noisy = diffusion.with_std(1, 0.01)
    assert noisy.has_density(1) and not diffusion.has_density(1)
    assert (noisy.clip, noisy.base_std) == (1.0, 1.5)
    x, prediction = randn(2, 3), randn(2, 3, seed=1)
    assert torch.equal(
        noisy.reverse(prediction, x, 1).mean, diffusion.reverse(prediction, x, 1).mean
    )
    assert float(noisy.reverse(prediction, x, 1).std) == pytest.approx(0.01)


def test_the_base_is_the_marginal_of_unit_variance_data():
    assert GaussianDiffusion(LEVELS["preserving"]).base_std == pytest.approx(1.0)
    exploding = GaussianDiffusion(LEVELS["exploding"])
    assert exploding.base_std == pytest.approx((1 + 20.0**2) ** 0.5)
    base = exploding.base(torch.zeros(2, 3))
    assert torch.equal(base.mean, torch.zeros(2, 3))
    assert float(base.std) == pytest.approx(exploding.base_std)


def diffusions() -> dict[str, tuple[GaussianDiffusion, int]]:
    """Diffusions with every kind of kernel, and the channels of their predictions."""
    levels = LEVELS["preserving"]
    low = torch.linspace(-3, -2, 13, dtype=torch.float64)
    std = torch.full((13,), 0.2, dtype=torch.float64)
    return {
        "ancestral": (GaussianDiffusion(levels), 3),
        "clipped": (GaussianDiffusion(levels, clip=0.7), 3),
        "clipped implicit": (GaussianDiffusion(levels, implicit_tables(levels, 0.6), 0.7), 3),
        "learned range": (
            GaussianDiffusion(
                levels, ancestral_tables(levels, std), 0.7, learned_range=(low, low + 1.5)
            ),
            6,
        ),
    }


@pytest.mark.parametrize("kind", diffusions())
def test_a_step_per_sample_is_the_step_of_each(kind: str):
    diffusion, channels = diffusions()[kind]
    n = torch.tensor([12, 5, 2, 7])
    x, prediction = randn(4, 3, 2), randn(4, channels, 2, seed=1)
    law, level = diffusion.reverse(prediction, x, n), diffusion.level(n, x)
    for i in range(4):
        alone = diffusion.reverse(prediction[i : i + 1], x[i : i + 1], int(n[i]))
        assert torch.allclose(law.mean[i : i + 1], alone.mean, rtol=1e-12)
        assert torch.allclose(law.std.expand_as(x)[i], alone.std.expand_as(x[:1])[0], rtol=1e-12)
        own = diffusion.level(int(n[i]), x)
        for name in ("time", "alpha", "sigma"):
            assert float(getattr(level, name)[i]) == pytest.approx(getattr(own, name))
    assert torch.is_tensor(level.alpha) and level.alpha.shape == (4, 1, 1)


@pytest.mark.parametrize("kind", diffusions())
@pytest.mark.parametrize("n", [2, 6, 12])
def test_tilt_between_is_the_ratio_of_the_two_kernels(kind: str, n: int):
    """``log N(x'; mean_q, std_q) - log N(x'; mean_p, std_p)`` by torch.distributions."""
    diffusion, channels = diffusions()[kind]
    x, landed = randn(4, 3, 2), randn(4, 3, 2, seed=1)
    own, other = randn(4, channels, 2, seed=2), randn(4, channels, 2, seed=3)
    p, q = diffusion.reverse(own, x, n), diffusion.reverse(other, x, n)
    expected = Normal(q.mean, q.std).log_prob(landed) - Normal(p.mean, p.std).log_prob(landed)
    tilt = diffusion.tilt_between(other, own, x, n)
    ratio = tilt.log_ratio(p.standardise(landed))
    assert torch.allclose(ratio, expected.sum((1, 2)), rtol=1e-9, atol=1e-9)
    rows = diffusion.tilt_between(other, own, x, torch.full((4,), n))
    assert torch.allclose(rows.log_ratio(p.standardise(landed)), ratio, rtol=1e-12)


@pytest.mark.parametrize("kind", diffusions())
def test_equal_predictions_are_no_tilt(kind: str):
    diffusion, channels = diffusions()[kind]
    x, prediction = randn(4, 3, 2).float(), randn(4, channels, 2, seed=1).float()
    tilt = diffusion.tilt_between(prediction, prediction.clone(), x, 6)
    assert torch.equal(tilt.log_ratio(x), torch.zeros(4))


def test_a_learned_range_interpolates_log_variances():
    diffusion, _ = diffusions()["learned range"]
    assert diffusion.learned_range is not None
    low, high = (float(bound[6]) for bound in diffusion.learned_range)
    x, fraction = randn(1, 3, 2), torch.tensor([-1.0, 0.0, 1.0]).double().expand(1, 2, 3).mT
    law = diffusion.reverse(torch.cat([randn(1, 3, 2, seed=1), fraction], 1), x, 6)
    expected = torch.tensor([low, (low + high) / 2, high]).double()
    assert torch.allclose(2 * law.std[0, :, 0].log(), expected)


def test_dtype_follows_the_state():
    diffusion = GaussianDiffusion(LEVELS["flow"])
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(2, 3, dtype=dtype)
        for n in (4, torch.tensor([4, 5])):
            law = diffusion.reverse(x, x, n)
            assert law.mean.dtype == law.std.dtype == dtype


def test_reverse_tables_may_be_ones_own():
    levels = LEVELS["preserving"]
    one = torch.ones(13, dtype=torch.float64)
    diffusion = GaussianDiffusion(levels, ReverseTables(0.5 * one, 0.25 * one, 2 * one, one), 1.0)
    law = diffusion.reverse(torch.tensor([[8.0]]), torch.tensor([[3.0]]), 4)
    assert float(law.mean) == 0.5 * 1.0 + 0.25 * 8.0 + 2 * 3.0
