"""Classifier-free guidance as a prior's denoiser and as a kernel."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import small_chains
from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.denoisers import Denoiser, Level
from difftilt.diagnostics.evidence import effective_sample_size
from difftilt.errors import InputError
from difftilt.guidance.classifier_free import ClassifierFreeGuidance, ClassifierFreeKernel
from difftilt.kernels.networks import DenoiserKernel, VectorKernel
from difftilt.models.labels import Labels
from difftilt.transitions.gaussian import GaussianTilt
from gaussian_values import LIKELIHOOD, exact_table, exact_values, linear
from small_chains import CONDITION
from toys import LinearKernel, end_law


def setting() -> tuple[Denoiser, Tensor, Level]:
    chain = small_chains.prior()
    x = torch.randn(5, 2, dtype=torch.float64)
    return chain.denoiser, x, chain.diffusion.level(3, x)


def test_scale_one_is_conditional_and_zero_unconditional_to_the_bit():
    denoiser, x, level = setting()
    one, zero = (ClassifierFreeGuidance(denoiser, s).given(CONDITION)(x, level) for s in (1.0, 0.0))
    assert torch.equal(one, denoiser.given(CONDITION)(x, level))
    assert torch.equal(zero, denoiser(x, level))
    assert not torch.allclose(one, zero)


def test_the_scale_extrapolates():
    denoiser, x, level = setting()
    conditional, plain = denoiser.given(CONDITION)(x, level), denoiser(x, level)
    for scale in (-0.5, 0.3, 4.0):
        found = ClassifierFreeGuidance(denoiser, scale).given(CONDITION)(x, level)
        torch.testing.assert_close(found, plain + scale * (conditional - plain))


def test_the_null_condition_is_an_argument():
    denoiser, x, level = setting()
    null = torch.tensor([0.7])
    guided = ClassifierFreeGuidance(denoiser, 0.0, null).given(CONDITION)
    expected = denoiser.given(torch.full((5, 1), 0.7).double())(x, level)
    torch.testing.assert_close(guided(x, level), expected, rtol=0, atol=1e-7)
    assert not torch.allclose(expected, denoiser(x, level))


class WithVariance(Denoiser):
    """Twice the channels: the second half says where in its range the log-variance is."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def given(self, condition: Tensor | None) -> "WithVariance":
        return WithVariance(self.denoiser.given(condition))

    def forward(self, x_t: Tensor, level: Level) -> Tensor:
        clean = self.denoiser(x_t, level)
        return torch.cat([clean, clean.tanh()], 1)


def test_the_learned_variance_is_the_conditional_one():
    denoiser, x, level = setting()
    wide = WithVariance(denoiser)
    found = ClassifierFreeGuidance(wide, 3.0).given(CONDITION)(x, level)
    assert torch.equal(found[:, 2:], wide.given(CONDITION)(x, level)[:, 2:])
    narrow = ClassifierFreeGuidance(denoiser, 3.0).given(CONDITION)(x, level)
    assert torch.equal(found[:, :2], narrow)


def test_as_a_prior_it_is_the_guided_sampler():
    chain = small_chains.prior()
    guided = replace(chain, denoiser=ClassifierFreeGuidance(chain.denoiser, 2.0))
    drawn = rollout(guided.given(CONDITION), 5, small_chains.noise())
    other = rollout(chain.given(CONDITION), 5, small_chains.noise())
    assert not torch.allclose(drawn.x_0, other.x_0)
    plain = replace(chain, denoiser=ClassifierFreeGuidance(chain.denoiser, 1.0))
    assert torch.equal(rollout(plain.given(CONDITION), 5, small_chains.noise()).x_0, other.x_0)


def test_as_a_kernel_it_is_a_tilt_of_the_conditional_prior():
    """``δ = a (scale - 1) (conditional - unconditional) / std``, with a density like any other."""
    chain, x, n = small_chains.prior().given(CONDITION), torch.randn(5, 2).double(), 3
    kernel = DenoiserKernel(ClassifierFreeGuidance(chain.denoiser, 2.5), chain.diffusion)
    own, plain = chain.predict(x, n), chain.given(None).predict(x, n)
    tilt = kernel(x, n, own, CONDITION)
    assert isinstance(tilt, GaussianTilt)
    tables = chain.diffusion.tables
    factor = float((tables.clipped[n] + tables.clean[n]) / tables.std[n])
    torch.testing.assert_close(tilt.delta, 1.5 * factor * (own - plain))
    posterior = chain.tilted(kernel)
    path = rollout(posterior, 5, small_chains.noise())
    assert path.log_ratio is not None
    torch.testing.assert_close(log_ratio(posterior, path).detach(), path.log_ratio)


def labelled_pair() -> Chain:
    """Label 0 is the prior, label 1 the exact posterior of a Gaussian likelihood."""
    chain = linear(labels=2)
    assert isinstance(chain.kernel, LinearKernel)
    table = exact_table(chain.prior, exact_values(chain.prior, LIKELIHOOD))
    with torch.no_grad():
        chain.kernel.table[:, 1, 1:, 0] = table
    return chain


def weights_of(scale: float) -> tuple[Tensor, Tensor]:
    """Ends and log-weights of 20,000 paths guided by the exact conditional kernel."""
    pair = labelled_pair()
    assert pair.kernel is not None
    guided = pair.prior.tilted(ClassifierFreeKernel(pair.kernel, 1, 0, scale))
    path = rollout(guided, 20_000, small_chains.noise())
    assert path.log_ratio is not None
    return path.x_0, LIKELIHOOD(path.x_0) - path.log_ratio


def test_a_kernels_scale_is_exact_at_one_and_the_prior_at_zero():
    """At 1 only the law of x_N, which no step moves, is left in the weights."""
    pair = labelled_pair()
    assert pair.kernel is not None
    values = exact_values(pair.prior, LIKELIHOOD)
    path = rollout(pair.prior, 50, small_chains.noise())
    x, prediction = path.states[2], pair.predict(path.states[2], 2)
    zero, one = (
        ClassifierFreeKernel(pair.kernel, 1, 0, s)(x, 2, prediction, None) for s in (0.0, 1.0)
    )
    assert isinstance(zero, GaussianTilt) and not bool(zero.delta.any())
    assert isinstance(one, GaussianTilt)
    own = pair.kernel(x, 2, prediction, torch.ones(50, dtype=torch.long))
    assert torch.equal(one.delta, own.delta)
    log_w = weights_of(1.0)[1]
    assert abs(float(log_w.mean()) - float(values[-1](torch.zeros(1, 1)))) < 0.05
    assert effective_sample_size(log_w) > 0.99


def test_another_scale_is_biased_and_its_weights_say_so():
    """w = 2 misses the mean of r, and of r², by more than 20 standard errors; weighted, neither."""
    chain = labelled_pair().prior
    mean, variance = end_law(chain)
    for power in (1.0, 2.0):
        precision = power / LIKELIHOOD.sigma**2
        exact = (mean / variance + precision * LIKELIHOOD.y[0]) / (1 / variance + precision)
        x_0, log_w = weights_of(2.0)
        log_w = log_w + (power - 1) * LIKELIHOOD(x_0)
        error = float(x_0.std()) / len(x_0) ** 0.5
        assert abs(float(x_0.mean()) - exact) > 20 * error
        w = torch.softmax(log_w, 0)[:, None]
        weighted = float((w * x_0).sum())
        error = float((w * (x_0 - weighted)).square().sum().sqrt())
        assert abs(weighted - exact) < 5 * error


def test_a_mixture_is_refused():
    chain = small_chains.prior()
    kernel = VectorKernel((2,), chain.steps, 3, reads=Labels((2,))).double()
    guided = chain.tilted(ClassifierFreeKernel(kernel, 1, 0))
    with pytest.raises(InputError, match="this kernel has several; use components=1"):
        rollout(guided, 2, small_chains.noise())
    with pytest.raises(InputError, match="a finite number"):
        ClassifierFreeKernel(kernel, 1, 0, float("nan"))
