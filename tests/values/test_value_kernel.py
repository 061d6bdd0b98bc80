"""A prior guided by a value: its gradient, its start, and what it keeps to itself."""

import math

import pytest
import torch
from torch import Tensor

from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.forms import ValueGuided
from difftilt.noise import GeneratorNoise
from difftilt.training.snapshot import sampling_tensors, trained
from difftilt.training.state import trainable
from difftilt.values.functions import RunningLogMean, Value, VectorValue
from difftilt.values.kernel import ValueKernel
from gaussian_values import ExactValue, exact_values
from small_chains import CONDITION, moved, prior
from toys import Likelihood, gaussian_chain


def noise(seed: int = 0) -> GeneratorNoise:
    return GeneratorNoise(torch.Generator().manual_seed(seed))


def guided(scale: float = 1.0, largest_beta: float | None = None) -> ValueKernel:
    kernel = ValueGuided(scale, largest_beta, width=16, depth=2, frequencies=1).kernel(prior())
    assert isinstance(kernel, ValueKernel)
    return kernel


class OfPrediction(Value):
    """Half the squared norm of the prior's prediction: it depends on x through that alone."""

    def forward(self, x: Tensor, n, prediction: Tensor, condition=None, beta=1.0) -> Tensor:
        return 0.5 * prediction.square().sum(1)


def test_an_untrained_value_leaves_the_prior_to_the_bit():
    chain = prior().tilted(guided()).given(CONDITION)
    path = rollout(chain, len(CONDITION), noise())
    assert path.log_ratio is not None
    assert path.log_ratio.tolist() == [0.0] * len(CONDITION)
    assert torch.equal(path.states, rollout(chain.prior, len(CONDITION), noise()).states)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_tilt_is_the_gradient_of_log_h_in_closed_form(scale: float, per_sample: bool):
    chain, likelihood = gaussian_chain(2, 4), Likelihood()
    kernel = ValueKernel(ExactValue(chain, likelihood), chain.denoiser, chain.diffusion, scale)
    x = 2 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = [1, 2, 3, 4] if per_sample else [3] * 4
    n = torch.tensor(steps) if per_sample else 3
    values = exact_values(chain, likelihood)
    slopes = torch.stack([values[k].slope(row) for k, row in zip(steps, x, strict=True)])
    std = torch.tensor([float(chain.diffusion.tables.std[k]) for k in steps]).double()
    with torch.no_grad():
        tilt = kernel(x, n, chain.predict(x, n), None)
    assert torch.allclose(tilt.delta, scale * std[:, None] * slopes, rtol=1e-6)


def test_the_gradient_goes_through_the_priors_prediction():
    """``∇ |D(x)|²/2 = D'(x)ᵀ D(x)``, with the gain of the closed-form denoiser as D'."""
    chain = gaussian_chain(2, 4)
    kernel = ValueKernel(OfPrediction(), chain.denoiser, chain.diffusion)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own, shifted = chain.predict(x, 3), chain.predict(x + 1, 3)
    assert torch.allclose(kernel.gradient(x, 3).detach(), (shifted - own) * own)


def test_the_tilt_is_detached_unless_a_gradient_is_wanted():
    kernel, x = guided(), torch.randn(5, 2).double()
    moved(kernel.value)
    with torch.no_grad():
        assert not kernel(x, 2, x, CONDITION).delta.requires_grad
    delta = kernel(x, 2, x, CONDITION).delta
    parameter = kernel.value.network.last.weight  # pyright: ignore[reportAttributeAccessIssue]
    (slope,) = torch.autograd.grad(delta.sum(), parameter)
    step = torch.zeros_like(parameter)
    step[0, 3] = 1e-6
    with torch.no_grad():
        before = kernel(x, 2, x, CONDITION).delta.sum()
        parameter += step
        after = kernel(x, 2, x, CONDITION).delta.sum()
    assert float(slope[0, 3]) == pytest.approx(float(after - before) / 1e-6, rel=1e-3)


def test_it_keeps_the_value_and_not_the_prior():
    chain = prior().tilted(guided())
    assert all(name.startswith("kernel.value.") for name in trained(chain))
    own = {id(p) for p in chain.denoiser.parameters()}
    assert own and not own & {id(p) for p in trainable(chain)}
    saved = sampling_tensors(chain, [p.detach() for p in trained(chain).values()])
    assert {"kernel.value.anchor.evidence.value"} <= set(saved)
    assert all(name.startswith("kernel.value.") for name in saved)


def test_another_beta_shares_the_value():
    kernel = guided(largest_beta=3.0)
    moved(kernel.value)
    other, x = kernel.at(1.0), torch.randn(5, 2).double()
    assert other.value is kernel.value
    assert (other.beta, kernel.beta) == (1.0, 3.0)
    assert not torch.allclose(other.gradient(x, 2, CONDITION), kernel.gradient(x, 2, CONDITION))
    for beta in (0.0, 3.5):
        with pytest.raises(InputError, match=rf"knows β in \(0, 3.0\], got beta={beta}"):
            kernel.at(beta)


def test_a_running_mean_is_plain_and_then_exponential():
    running = RunningLogMean(decay=0.75)
    numbers = [1.0, 3.0, 5.0, 7.0, 20.0]
    assert not running.started
    for k, number in enumerate(numbers):
        # Two numbers with this mean.
        running.update(torch.tensor([[0.5 * number, 1.5 * number]]).log())
        expected = sum(numbers[: k + 1]) / (k + 1) if k < 4 else 0.75 * 4 + 0.25 * 20
        assert float(running.value.exp()) == pytest.approx(expected, rel=1e-5)


def test_a_running_mean_of_zeros_is_no_scale_until_something_is_seen():
    running = RunningLogMean()
    nothing = torch.full((1, 4), -math.inf)
    running.update(nothing)
    running.update(nothing)
    assert float(running.value) == -math.inf
    assert float(running.finite) == 0.0
    running.update(torch.zeros(1, 4))
    assert float(running.value.exp()) == pytest.approx(1 / 3, rel=1e-5)


def test_the_anchors_table_is_the_log_mean_of_powers():
    anchor = VectorValue((1,), 3, largest_beta=2.0).anchor
    log_r = torch.tensor([-1.0, 0.5, -math.inf, 2.0])
    anchor.see_ends(log_r, 1.0)
    for beta in (0.0, 0.5, 2.0):
        mean = math.log(sum(math.exp(beta * r) if beta else 1.0 for r in log_r.tolist()) / 4)
        assert float(anchor.scale(beta)) == pytest.approx(mean, abs=1e-5)
    each = torch.tensor([0.5, 2.0])
    assert anchor.scale(each).tolist() == pytest.approx(
        [float(anchor.scale(b)) for b in each.tolist()]
    )
    between = 0.5 * float(anchor.scale(0.5) + anchor.scale(0.5625))
    assert float(anchor.scale(0.53125)) == pytest.approx(between, abs=1e-5)


def test_the_anchor_makes_the_means_of_labels_and_values_equal():
    anchor = VectorValue((1,), 3).anchor
    log_labels, f = torch.randn(50) - 3, torch.randn(50) + 2
    assert float(anchor(1.0)) == 0.0
    anchor.see_ends(torch.full((4,), -1.5), 2.0)
    anchor.see_rows(log_labels, f)
    assert float(anchor.scale(1.0)) == pytest.approx(-3.0)
    gap = torch.logsumexp(log_labels, 0) - torch.logsumexp(f, 0)
    assert float(anchor(1.0)) == pytest.approx(-3.0 + float(gap), abs=1e-5)
