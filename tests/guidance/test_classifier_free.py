"""Classifier-free guidance as a prior's denoiser and as a kernel."""

from dataclasses import replace

import torch
from torch import Tensor

import small_chains
from difftilt.denoisers import Denoiser, Level
from difftilt.guidance.classifier_free import ClassifierFreeGuidance
from difftilt.kernels import DenoiserKernel
from difftilt.rollouts import rollout
from difftilt.scoring import log_ratio
from difftilt.transitions import GaussianTilt
from small_chains import CONDITION


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
