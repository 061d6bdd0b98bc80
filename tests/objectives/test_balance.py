"""Balance objectives by hand, at their optimum, and by their gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.balance import Scores, log_variance, relative_trajectory_balance, squared
from difftilt.objectives.weighted import weighted_likelihood


def randn(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, generator=generator, dtype=torch.float64)


@given(seed=st.integers(0, 2**31), count=st.integers(1, 8))
def test_relative_trajectory_balance_by_hand(seed: int, count: int):
    ratio, log_r, log_z = (randn(count, seed + k) for k in range(3))
    expected = [(z + a - r) ** 2 for z, a, r in zip(log_z, ratio, log_r, strict=True)]
    losses = relative_trajectory_balance(Scores(ratio, log_r, log_z))
    assert losses.tolist() == pytest.approx([float(e) for e in expected], rel=1e-12)


@given(seed=st.integers(0, 2**31), count=st.integers(2, 8))
def test_log_variance_by_hand(seed: int, count: int):
    ratio, log_r = randn(count, seed), randn(count, seed + 1)
    losses = log_variance(Scores(ratio, log_r))
    assert float(losses.mean()) == pytest.approx(float((ratio - log_r).var(correction=0)))


@given(seed=st.integers(0, 2**31))
def test_both_vanish_at_the_optimum_alone(seed: int):
    """Where ``Λ = β log r - log Z`` on every path; a shift of one path is seen."""
    log_r, log_z = randn(6, seed), randn(1, seed + 1).expand(6)
    ratio = log_r - log_z
    assert float(relative_trajectory_balance(Scores(ratio, log_r, log_z)).sum()) < 1e-25
    assert float(log_variance(Scores(ratio, log_r)).sum()) < 1e-25
    other = ratio + torch.eye(6)[0]
    assert float(relative_trajectory_balance(Scores(other, log_r, log_z)).sum()) == pytest.approx(1)
    assert float(log_variance(Scores(other, log_r)).sum()) == pytest.approx(5 / 6)


def test_log_variance_has_the_gradient_of_balance_at_the_batchs_own_log_z():
    """``∇ Σ (gap - mean)² = Σ 2 (gap - mean) ∇Λ``: the mean's gradient cancels."""
    ratio, log_r = randn(7, 0).requires_grad_(), randn(7, 1)
    (own,) = torch.autograd.grad(log_variance(Scores(ratio, log_r)).sum(), ratio)
    log_z = (log_r - ratio).mean().detach().expand(7)
    balance = relative_trajectory_balance(Scores(ratio, log_r, log_z)).sum()
    (expected,) = torch.autograd.grad(balance, ratio)
    assert torch.allclose(own, expected, rtol=1e-12, atol=1e-12)


def test_groups_have_a_mean_of_their_own():
    group = torch.tensor([2, 0, 2, 0, 0, 2])  # group 1 is absent
    ratio, log_r = randn(6, 0), randn(6, 1)
    losses = log_variance(Scores(ratio, log_r, group=group))
    for label in (0, 2):
        own = group == label
        alone = log_variance(Scores(ratio[own], log_r[own]))
        assert torch.allclose(losses[own], alone, rtol=1e-12)


def test_a_shift_of_one_groups_log_z_is_free():
    group = torch.tensor([0, 0, 1, 1])
    ratio, log_r = randn(4, 0), randn(4, 1)
    shifted = log_variance(Scores(ratio + 5.0 * group, log_r, group=group))
    assert torch.allclose(shifted, log_variance(Scores(ratio, log_r, group=group)), rtol=1e-9)


@given(residual=st.floats(-50, 50), clip=st.floats(0.1, 20))
def test_clipping_is_twice_hubers_loss(residual: float, clip: float):
    value = torch.tensor([residual], dtype=torch.float64, requires_grad=True)
    huber = torch.nn.functional.huber_loss(value, torch.zeros(1).double(), delta=clip)
    loss = squared(value, clip)
    assert loss.item() == pytest.approx(2 * huber.item(), rel=1e-12, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), value)
    assert abs(float(gradient)) <= 2 * clip + 1e-9
    assert squared(value).item() == residual**2


def test_both_clip_their_residual():
    log_r = torch.tensor([10.0, -10.0])
    ratio, log_z = torch.zeros(2), torch.zeros(2)
    expected = squared(log_r, 2.0)
    assert torch.equal(relative_trajectory_balance(Scores(ratio, log_r, log_z), 2.0), expected)
    assert torch.equal(log_variance(Scores(ratio, log_r), 2.0), expected)


def test_log_z_learns_the_mean_gap():
    log_z = torch.zeros((), dtype=torch.float64, requires_grad=True)
    ratio, log_r = randn(5, 0), randn(5, 1)
    loss = relative_trajectory_balance(Scores(ratio, log_r, log_z.expand(5))).sum()
    (gradient,) = torch.autograd.grad(loss, log_z)
    assert float(gradient) == pytest.approx(2 * float((ratio - log_r).sum()))


def test_what_is_missing_is_said():
    ratio = torch.zeros(2)
    with pytest.raises(InputError, match="needs a learned log Z"):
        relative_trajectory_balance(Scores(ratio, ratio))
    with pytest.raises(InputError, match="at least 2 paths per condition in a batch, got 1"):
        log_variance(Scores(ratio[:1], ratio[:1]))
    with pytest.raises(InputError, match="at least 2 paths per condition"):
        log_variance(Scores(torch.zeros(3), torch.zeros(3), group=torch.tensor([0, 0, 1])))


def test_weighted_likelihood_by_hand():
    ratio, weight = randn(4, 0), randn(4, 1).abs()
    assert torch.equal(weighted_likelihood(Scores(ratio, ratio)), -ratio)
    assert torch.equal(weighted_likelihood(Scores(ratio, ratio, weight=weight)), -weight * ratio)
