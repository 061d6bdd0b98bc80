"""The drift of every method against a closed form, in float64."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import small_chains
from difftilt.chains.chain import Chain, Kernel
from difftilt.denoisers import Denoiser, Level
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.guidance.base import Guidance
from difftilt.guidance.learned import ClassifierGuidance, OracleGuidance, ValueGuidance
from difftilt.guidance.pseudoinverse import PiGDM
from difftilt.guidance.reconstruction import DPS, LGDMC
from difftilt.rewards.wrappers import Bounded, GaussianLikelihood
from difftilt.tasks.exact.denoisers import MixtureDenoiser, ProductMixtureDenoiser
from difftilt.tasks.exact.linear_gaussian import (
    NOISE,
    LinearModel,
    anisotropic_model,
    isotropic_model,
)
from difftilt.tasks.exact.vectors import vector_chain
from difftilt.transitions.gaussian import GaussianTilt
from difftilt.values.functions import Value

STEPS = 6
ISOTROPIC_STD = math.sqrt(1.5)


def states(dimension: int, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 1.5 * torch.randn(count, dimension, generator=generator, dtype=torch.float64)


def shift(kernel: Kernel, chain: Chain, x: Tensor, n: int | Tensor, condition=None) -> Tensor:
    bound = chain.given(condition)
    tilt = kernel(x, n, bound.predict(x, n), condition)
    assert isinstance(tilt, GaussianTilt)
    assert tilt.log_scale is None
    return tilt.delta


def level_of(chain: Chain, n: int) -> tuple[float, float, float]:
    diffusion = chain.diffusion
    return float(diffusion.levels.alpha[n]), float(diffusion.levels.sigma[n]), std_of(chain, n)


def std_of(chain: Chain, n: int) -> float:
    return float(chain.diffusion.tables.std[n])


def likelihood(model: LinearModel) -> GaussianLikelihood:
    return GaussianLikelihood(model.y, lambda x: x @ model.matrix.T.to(x), NOISE)


def exact_gradient(
    model: LinearModel, chain: Chain, x: Tensor, n: int, variance: float = NOISE**2
) -> Tensor:
    """``∇ log p(y given x_n)`` from the joint precision of ``(x_n, y)`` minus that of ``x_n``."""
    alpha, sigma, _ = level_of(chain, n)
    d, m, cross = len(model.mean), len(model.y), alpha * model.covariance @ model.matrix.T
    noisy = alpha**2 * model.covariance + sigma**2 * torch.eye(d).double()
    spread = model.matrix @ model.covariance @ model.matrix.T + variance * torch.eye(m).double()
    joint = torch.cat([torch.cat([noisy, cross], 1), torch.cat([cross.T, spread], 1)])
    away = x - alpha * model.mean
    both = torch.cat([away, (model.y - model.matrix @ model.mean).expand(len(x), m)], 1)
    return away @ torch.linalg.inv(noisy) - (both @ torch.linalg.inv(joint))[:, :d]


@pytest.mark.parametrize("n", [1, 3, STEPS])
@pytest.mark.parametrize("normalised", [False, True])
def test_dps_is_its_closed_form(n: int, normalised: bool):
    """``scale β std Kᵀ Aᵀ (y - A x̂_0) / noise²``; published: ``-ζ ∇|residual|² / |residual|``."""
    model, beta, zeta = anisotropic_model(4), 1.5 if not normalised else 1.0, 0.3
    chain, x = model.chain(STEPS, torch.float64), states(4)
    alpha, sigma, std = level_of(chain, n)
    noisy = alpha**2 * model.covariance + sigma**2 * torch.eye(4).double()
    gain = alpha * model.covariance @ torch.linalg.inv(noisy)
    clean = model.mean + (x - alpha * model.mean) @ gain.T
    residual = model.y - clean @ model.matrix.T
    pulled = residual @ model.matrix @ gain
    if normalised:
        method = DPS(math.sqrt(2) * NOISE * zeta, normalised=True)
        expected = zeta * 2 * pulled / residual.norm(dim=1, keepdim=True) / std
    else:
        method, expected = DPS(0.7), 0.7 * beta * std * pulled / NOISE**2
    kernel = method.kernel(chain, Bounded(model.log_reward, model.log_bound), beta)
    torch.testing.assert_close(shift(kernel, chain, x, n), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [1, 3, STEPS])
@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_pseudoinverse_guidance_is_exact_for_isotropic_data(n: int, beta: float):
    """r^β is a likelihood of noise variance noise² / β, but for a constant."""
    model = isotropic_model(4)
    chain, x = model.chain(STEPS, torch.float64), states(4)
    kernel = PiGDM(likelihood(model), 0.8, ISOTROPIC_STD).kernel(chain, model.log_reward, beta)
    exact = exact_gradient(model, chain, x, n, NOISE**2 / beta)
    expected = 0.8 * std_of(chain, n) * exact
    torch.testing.assert_close(shift(kernel, chain, x, n), expected, rtol=1e-9, atol=1e-12)


def test_pseudoinverse_guidance_takes_an_affine_operator_of_any_shape():
    """``y = flip(x) + 1``, an image: as good as the identity with y moved back."""
    model = isotropic_model(4)
    chain, x = model.chain(STEPS, torch.float64), states(4)
    y = torch.arange(4.0).double()
    plain = GaussianLikelihood(y, lambda x: x, NOISE)
    moved = GaussianLikelihood(
        (y.flip(0) + 1).reshape(2, 2), lambda x: x.flip(1).reshape(-1, 2, 2) + 1, NOISE
    )
    shifts = [shift(PiGDM(each).kernel(chain, each), chain, x, 2) for each in (plain, moved)]
    torch.testing.assert_close(*shifts)


@pytest.mark.parametrize("n", [2, STEPS])
def test_many_monte_carlo_samples_reach_pseudoinverse_guidance(n: int):
    model = isotropic_model(2)
    chain, x = model.chain(STEPS, torch.float64), states(2)
    method = LGDMC(40_000, data_std=ISOTROPIC_STD)
    found = shift(method.kernel(chain, model.log_reward), chain, x, n)
    expected = std_of(chain, n) * exact_gradient(model, chain, x, n)
    assert (found - expected).norm() < 0.05 * expected.norm()
    few = shift(LGDMC(2, data_std=ISOTROPIC_STD).kernel(chain, model.log_reward), chain, x, n)
    assert (few - expected).norm() > 2 * (found - expected).norm()


def test_without_spread_monte_carlo_is_dps():
    model = anisotropic_model(4)
    chain, x = model.chain(STEPS, torch.float64), states(4)
    spread = LGDMC(4, data_std=1e-6).kernel(chain, model.log_reward, 0.5)
    point = DPS().kernel(chain, model.log_reward, 0.5)
    torch.testing.assert_close(
        shift(spread, chain, x, 3), shift(point, chain, x, 3), rtol=1e-6, atol=1e-8
    )


class Evidence(Value):
    """``log N(y; A x̂_0, s_n² A Aᵀ + noise²)``: the exact value of an isotropic model."""

    def __init__(self, model: LinearModel, chain: Chain) -> None:
        super().__init__()
        self.model, self.chain = model, chain

    def forward(self, x, n, prediction, condition=None, beta=1.0) -> Tensor:
        alpha, sigma, _ = level_of(self.chain, n)
        spread = 1.5 * sigma**2 / (alpha**2 * 1.5 + sigma**2)
        gram = spread * self.model.matrix @ self.model.matrix.T
        law = torch.distributions.MultivariateNormal(
            prediction @ self.model.matrix.T, gram + NOISE**2 * torch.eye(len(gram)).double()
        )
        return law.log_prob(self.model.y)


class Bowl(Evidence):
    """The same and ``β |x|² / 2``, which reads the state itself."""

    def forward(self, x, n, prediction, condition=None, beta=1.0) -> Tensor:
        return super().forward(x, n, prediction) + 0.5 * beta * x.square().sum(1)


@pytest.mark.parametrize("n", [1, 3, STEPS])
def test_a_value_guides_by_its_total_gradient(n: int):
    """Through the prediction and through the state, each of them exact."""
    model = isotropic_model(4)
    chain, x = model.chain(STEPS, torch.float64), states(4)
    exact, std = exact_gradient(model, chain, x, n), std_of(chain, n)
    through = ValueGuidance(Evidence(model, chain), 0.5).kernel(chain, model.log_reward)
    torch.testing.assert_close(shift(through, chain, x, n), 0.5 * std * exact)
    both = ValueGuidance(Bowl(model, chain)).kernel(chain, model.log_reward, 3.0)
    torch.testing.assert_close(shift(both, chain, x, n), std * (exact + 3 * x))


def test_an_oracle_guides_by_its_formula():
    model = isotropic_model(4)
    chain, x = model.chain(STEPS, torch.float64), states(4)
    kernel = OracleGuidance(lambda x, n: -(x**3).sum(1) * n, 2.0).kernel(chain, model.log_reward)
    torch.testing.assert_close(shift(kernel, chain, x, 4), -2 * std_of(chain, 4) * 12 * x**2)


MEANS = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [0.5, -1.2]]).double()
WEIGHTS = torch.tensor([0.2, 0.5, 0.3]).double()
VARIANCE = 0.1


def mixture_chain(kept: list[int]) -> Chain:
    denoiser = MixtureDenoiser(MEANS[kept], WEIGHTS[kept], VARIANCE).double()
    return vector_chain(denoiser, torch.linspace(3, -4, STEPS).double(), 2, torch.float64)


def bayes(chain: Chain) -> Callable[[Tensor, Tensor], Tensor]:
    """The classifier of components from noisy states; time, as the chain tells it, finds n."""

    def logits(x: Tensor, time: Tensor) -> Tensor:
        assert time.shape == (len(x),)
        levels = chain.diffusion.levels
        n = (levels.time[None] - time[:, None]).abs().argmin(1)
        alpha, variance = levels.alpha[n], levels.alpha[n] ** 2 * VARIANCE + levels.sigma[n] ** 2
        away = x[:, None] - alpha[:, None, None] * MEANS
        return WEIGHTS.log() - 0.5 * away.square().sum(2) / variance[:, None]

    return logits


@pytest.mark.parametrize("n", [1, 3, STEPS])
@pytest.mark.parametrize("classes", [1, (0, 2)])
def test_the_bayes_classifier_of_a_mixture_is_exact(n: int, classes):
    """By Tweedie ``∇ log h_n = alpha / sigma² (E[x_0 | x_n, class] - E[x_0 | x_n])``."""
    chain, x = mixture_chain([0, 1, 2]), states(2)
    kept = mixture_chain([classes] if isinstance(classes, int) else list(classes))
    kernel = ClassifierGuidance(bayes(chain), classes).kernel(chain, lambda x: x[:, 0])
    alpha, sigma, std = level_of(chain, n)
    expected = std * alpha / sigma**2 * (kept.predict(x, n) - chain.predict(x, n))
    torch.testing.assert_close(shift(kernel, chain, x, n), expected, rtol=1e-8, atol=1e-10)


def test_the_class_of_each_sample_may_come_from_the_condition():
    chain, x, n = mixture_chain([0, 1, 2]), states(2), 3
    labels = torch.tensor([0, 2, 1, 1, 0])
    kernel = ClassifierGuidance(bayes(chain), scale=0.5).kernel(chain, lambda x: x[:, 0], 2.0)
    found = shift(kernel, chain, x, n, labels)
    alpha, sigma, std = level_of(chain, n)
    own = torch.cat([mixture_chain([int(k)]).predict(x[i, None], n) for i, k in enumerate(labels)])
    torch.testing.assert_close(found, std * alpha / sigma**2 * (own - chain.predict(x, n)))


class WithVariance(Denoiser):
    """A denoiser and as many channels that say where in its range the log-variance is."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_t: Tensor, level: Level) -> Tensor:
        return torch.cat([self.denoiser(x_t, level), torch.tanh(x_t)], 1)


def central_difference(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    steps = 1e-5 * torch.eye(x.shape[1]).double()
    return torch.stack([(function(x + s) - function(x - s)) / 2e-5 for s in steps], 1)


def test_clip_and_learned_variance_are_the_chains():
    """The drift has the step's learned std, and no gradient through a clipped coordinate."""
    plain, x, n = small_chains.prior(), 3 * states(2), 3
    own, clip = plain.diffusion, 0.6
    log_low, log_high = torch.full((6,), -3.0).double(), torch.full((6,), -1.0).double()
    diffusion = GaussianDiffusion(own.levels, own.tables, clip, learned_range=(log_low, log_high))
    chain = replace(plain, denoiser=WithVariance(plain.denoiser), diffusion=diffusion)
    clipped = plain.predict(x, n).abs() > clip
    assert clipped.any()
    assert not clipped.all()

    def log_reward(x_0: Tensor) -> Tensor:
        return -(x_0 - 1).square().sum(1)

    slope = central_difference(lambda x: log_reward(plain.predict(x, n).clamp(-clip, clip)), x)
    std = torch.exp(0.5 * (-2 + torch.tanh(x)))
    found = shift(DPS().kernel(chain, log_reward), chain, x, n)
    torch.testing.assert_close(found, std * slope, rtol=1e-6, atol=1e-7)


def test_a_sample_without_reward_is_left_to_the_prior():
    """``log r = -inf`` has no slope to follow: half of these states get the prior's own step."""
    chain, x = mixture_chain([0, 1, 2]), states(2)

    def log_reward(x_0: Tensor) -> Tensor:
        return (x_0[:, 0] * (x_0[:, 0] > 0)).log()  # its gradient at r = 0 is NaN

    lost = chain.predict(x, 1)[:, 0] <= 0
    assert 0 < int(lost.sum()) < len(x)
    for method in (DPS(), LGDMC(4, data_std=1e-6)):
        found = shift(method.kernel(chain, log_reward), chain, x, 1)
        assert torch.equal((found == 0).all(1), lost)


@pytest.mark.parametrize("denoiser", ["mixture", "product"])
def test_mixture_denoisers_have_their_gradient(denoiser: str):
    mixture: Denoiser = MixtureDenoiser(MEANS, WEIGHTS, VARIANCE)
    if denoiser == "product":
        mixture = ProductMixtureDenoiser(MEANS[:, 0], WEIGHTS, VARIANCE)
    level, x = Level(0.5, 0.8, 0.6), states(2)
    state = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(mixture(state, level).sum(), state)
    expected = central_difference(lambda x: mixture(x, level).sum(1), x)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-7)


def conditional_reward(x_0: Tensor, condition: Tensor | None) -> Tensor:
    wanted = 0.0 if condition is None else condition
    return -(x_0 - wanted).square().sum(1)


METHODS: dict[str, Guidance] = {
    "dps": DPS(),
    "lgdmc": LGDMC(4),
    "pigdm": PiGDM(GaussianLikelihood(torch.ones(1).double(), lambda x: x[:, :1], 0.7)),
    "classifier": ClassifierGuidance(lambda x, time: x * time[:, None], 1),
    "oracle": OracleGuidance(lambda x, n: torch.sin(x).sum(1) * torch.as_tensor(n)),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_row_depends_on_itself_alone(name: str):
    """Steps and conditions per row, in a batch of five: as each row by itself."""
    chain, x = small_chains.prior(), states(2)
    kernel = METHODS[name].kernel(chain, conditional_reward, 1.3)
    n = torch.tensor([1, 5, 3, 2, 3])
    together = shift(kernel, chain, x, n, small_chains.CONDITION)
    for i in range(5):
        own = shift(kernel, chain, x[i, None], int(n[i]), small_chains.CONDITION[i, None])
        torch.testing.assert_close(together[i, None], own)
