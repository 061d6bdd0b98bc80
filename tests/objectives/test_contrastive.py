"""Contrastive energy prediction at its population optimum, by enumeration, and by its gradient."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.contrastive import CEP, contrastive
from difftilt.objectives.ends import EndScores, weights
from difftilt.tasks.exact.two_cells import TwoCells


def scores_of(
    log_r: Tensor, log_h: Tensor | None = None, group: Tensor | None = None, scale: float = 0.0
) -> EndScores:
    group = torch.zeros(len(log_r), dtype=torch.long) if group is None else group
    return EndScores(log_r, log_r, torch.full_like(log_r, scale), group, log_h)


def randn(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_enumeration_is_complete():
    problem = TwoCells(3.0, 0.5, 0.05, 6)
    per_set = problem.probability[::6]
    assert float(per_set.sum()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("count", [2, 5, 16])
@pytest.mark.parametrize("beta, a, b", [(3.0, 0.5, 0.05), (10.0, 0.05, 0.005)])
def test_unnormalised_labels_are_exact_for_every_count(count: int, beta: float, a: float, b: float):
    problem = TwoCells(beta, a, b, count)
    assert problem.optimum(False) == pytest.approx(problem.exact, abs=1e-6)


@pytest.mark.parametrize(
    "beta, a, b, count, gap",
    [
        (3.0, 0.5, 0.05, 2, 0.865),
        (3.0, 0.5, 0.05, 16, 1.661),
        (10.0, 0.05, 0.005, 2, 0.090),
        (10.0, 0.05, 0.005, 16, 0.611),
    ],
)
def test_self_normalised_labels_are_biased(beta: float, a: float, b: float, count: int, gap: float):
    """No amount of data helps: it is the optimum itself that is elsewhere."""
    problem = TwoCells(beta, a, b, count)
    assert abs(problem.optimum(True)) == pytest.approx(gap, abs=2e-3)
    assert abs(problem.optimum(True)) < abs(problem.exact) - 0.02


def test_what_is_learned_from_draws_is_the_optimum():
    """Rare rewards, K = 16: within a twentieth of the truth, and a quarter of it by the paper's."""
    problem = TwoCells(10.0, 0.05, 0.005, 16)
    assert problem.learned(False) == pytest.approx(problem.exact, rel=0.05)
    assert problem.learned(True) == pytest.approx(problem.optimum(True), rel=0.05)


@given(seed=st.integers(0, 2**31))
def test_by_hand_and_by_its_gradient(seed: int):
    """In each set ``d loss / d f_i = softmax_i Σ_j w_j - w_i``."""
    group = torch.tensor([0, 1, 0, 1, 1, 0, 1])
    log_r, log_h = randn(7, seed), randn(7, seed + 1).requires_grad_()
    scores = scores_of(log_r, log_h, group, 0.3)
    losses = contrastive(scores)
    expected, slope = torch.zeros(7).double(), torch.zeros(7).double()
    for label in (0, 1):
        own = group == label
        w, share = (log_r[own] - 0.3).exp(), torch.softmax(log_h[own].detach(), 0)
        expected[own], slope[own] = -w * share.log(), share * w.sum() - w
    assert torch.allclose(losses, expected, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), log_h)
    assert torch.allclose(gradient, slope, rtol=1e-9, atol=1e-10)


def test_no_row_far_below_its_set_overflows():
    log_h = torch.tensor([800.0, 0.0, -800.0]).double().requires_grad_()
    losses = contrastive(scores_of(torch.zeros(3).double(), log_h))
    assert losses.tolist() == [0.0, 800.0, 1600.0]
    (gradient,) = torch.autograd.grad(losses.sum(), log_h)
    assert gradient.tolist() == [2.0, -1.0, -1.0]


def test_a_scale_that_depends_on_the_row_is_taken_off_both_sides():
    """With β drawn per row, f is log h less a scale of its own β."""
    log_r, log_h, scale = randn(6, 0), randn(6, 1), randn(6, 2)
    group = torch.zeros(6, dtype=torch.long)
    own = EndScores(log_r, log_r, scale, group, log_h)
    assert torch.allclose(contrastive(own), contrastive(scores_of(log_r - scale, log_h - scale)))


@pytest.mark.parametrize("self_normalised", [False, True])
def test_ends_of_zero_reward_have_no_label(self_normalised: bool):
    log_r = torch.tensor([0.5, -math.inf, -math.inf, -math.inf]).double()
    group = torch.tensor([0, 0, 1, 1])
    log_h = randn(4, 0).requires_grad_()
    losses = contrastive(scores_of(log_r, log_h, group), self_normalised)
    assert losses.tolist()[1:] == [0.0, 0.0, 0.0]
    assert float(losses[0].detach()) > 0
    (gradient,) = torch.autograd.grad(losses.sum(), log_h)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient[1]) > 0
    assert gradient[2:].tolist() == [0.0, 0.0]


def test_self_normalised_weights_sum_to_the_size_of_their_set():
    group = torch.tensor([0, 1, 1, 1, 0])
    found = weights(scores_of(randn(5, 0), group=group), self_normalised=True)
    assert float(found[group == 0].sum()) == pytest.approx(2)
    assert float(found[group == 1].sum()) == pytest.approx(3)


def test_options_decide_what_the_door_does():
    assert CEP().behaviours == {"prior", "data", "on_policy"}
    assert CEP(states="forward").behaviours == {"prior", "data"}
    assert CEP(contrast=16).paths_per_group == 16
    assert CEP(per_sample_time=False).shared_time
    assert CEP().guides
    assert not CEP().starts_warm
    scores = scores_of(randn(4, 0), randn(4, 1))
    assert torch.equal(CEP().losses(scores), contrastive(scores))
    biased = CEP(labels="self_normalised").losses(scores)
    assert torch.equal(biased, contrastive(scores, self_normalised=True))


def test_what_is_missing_is_said():
    log_r = torch.zeros(2)
    with pytest.raises(InputError, match="needs a learned log h"):
        contrastive(scores_of(log_r))
    with pytest.raises(InputError, match="got a set of one; raise batch"):
        contrastive(scores_of(log_r, log_r, torch.tensor([0, 1])))


@pytest.mark.usefixtures("unchecked")
def test_unknown_options_are_said():
    with pytest.raises(InputError, match="at least 2 rows, got contrast=1"):
        CEP(contrast=1)
    with pytest.raises(InputError, match="labels='soft' is unknown"):
        CEP(labels="soft")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="states='noisy' is unknown"):
        CEP(states="noisy")  # pyright: ignore[reportArgumentType]
