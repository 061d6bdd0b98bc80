"""Objectives of ends on token chains, by hand: weights, residuals, advantages, likelihoods."""

import math

import pytest
import torch
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.ddpp import DDPP, posterior_prediction
from difftilt.objectives.ends import EndScores
from difftilt.objectives.forward import advantage
from difftilt.objectives.group_policy import GroupPolicyGradient, scaled
from difftilt.objectives.supervised import Supervised, supervised
from difftilt.objectives.wake import Wake, effective_share


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores_of(log_r: Tensor, group: Tensor | None = None, **named) -> EndScores:
    group = torch.zeros(len(log_r), dtype=torch.long) if group is None else group
    log_w = named.pop("log_w", log_r)
    return EndScores(log_r, log_w, torch.full_like(log_r, 0.7), group, **named)


def test_wake_weighs_each_condition_by_itself():
    log_w, ratio, group = randn(6), randn(1, 6, seed=1), torch.tensor([0, 0, 0, 1, 1, 1])
    losses = Wake(least_ess=0.0).losses(
        scores_of(randn(6, seed=2), group, log_w=log_w, log_ratio=ratio)
    )
    shares = torch.cat([log_w[:3].softmax(0), log_w[3:].softmax(0)])
    torch.testing.assert_close(losses, -3 * shares * ratio[0])


def test_wake_leaves_out_conditions_that_rest_on_few_ends():
    log_w = torch.tensor([0.0, 0.1, -0.1, 0.0, 30.0, 0.0, 0.0, 0.0]).double()
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    scores = scores_of(log_w, group, log_ratio=randn(1, 8))
    w = log_w.exp()
    by_hand = [float(w[i].sum() ** 2 / (4 * (w[i] ** 2).sum())) for i in (group == 0, group == 1)]
    shares = effective_share(scores)
    assert shares.tolist() == pytest.approx([by_hand[0]] * 4 + [by_hand[1]] * 4)
    losses = Wake(least_ess=0.3).losses(scores)
    assert bool((losses[:4] != 0).all())
    assert losses[4:].tolist() == [0.0] * 4


def test_wake_learns_nothing_where_every_weight_is_zero():
    scores = scores_of(torch.full((3,), -math.inf).double(), log_ratio=randn(1, 3))
    assert effective_share(scores).tolist() == [0.0] * 3
    assert Wake().losses(scores).tolist() == [0.0] * 3


def test_posterior_prediction_by_hand():
    log_r, log_h, ratio = randn(4), randn(4, seed=1), randn(1, 4, seed=2)
    scores = scores_of(log_r, log_h=log_h, log_ratio=ratio)
    residual = log_h + ratio[0] - log_r
    torch.testing.assert_close(DDPP().losses(scores), residual**2)
    clipped = DDPP(residual_clip=0.5).losses(scores)
    far = residual.abs() > 0.5
    assert bool(far.any())
    torch.testing.assert_close(clipped[far], (residual.abs() - 0.25)[far])


def test_posterior_prediction_skips_ends_of_zero_reward():
    log_h = randn(2).requires_grad_()
    scores = scores_of(
        torch.tensor([0.3, -math.inf]).double(), log_h=log_h, log_ratio=randn(1, 2, seed=1)
    )
    losses = posterior_prediction(scores)
    losses.sum().backward()
    assert losses[1] == 0 and log_h.grad is not None
    assert log_h.grad[1] == 0 and log_h.grad[0] != 0


def test_group_advantages_have_unit_size_in_each_condition():
    log_r, group = 10 * randn(6), torch.tensor([0, 0, 0, 1, 1, 1])
    scores = scores_of(log_r, group, log_ratio=randn(1, 6, seed=1), divergence=randn(6, seed=2))
    gains = scaled(advantage(scores), group)
    assert [float(gains[group == g].square().mean()) for g in (0, 1)] == pytest.approx([1.0, 1.0])
    assert scores.log_ratio is not None and scores.divergence is not None
    expected = -gains * scores.log_ratio[0] + 0.5 * scores.divergence
    torch.testing.assert_close(
        GroupPolicyGradient(penalty=0.5, normalised=True).losses(scores), expected
    )
    raw = -advantage(scores) * scores.log_ratio[0] + 0.5 * scores.divergence
    torch.testing.assert_close(GroupPolicyGradient(penalty=0.5).losses(scores), raw)


def test_the_likelihood_of_data_reads_no_reward():
    ratio = randn(1, 3)
    for log_r in (randn(3), torch.full((3,), -math.inf).double()):
        torch.testing.assert_close(
            Supervised().losses(scores_of(log_r, log_ratio=ratio)), -ratio[0]
        )


def test_what_is_missing_or_out_of_range_is_said():
    empty = scores_of(randn(2))
    with pytest.raises(InputError, match=r"log_ratio"):
        supervised(empty)
    with pytest.raises(InputError, match=r"log_h"):
        posterior_prediction(empty)
    with pytest.raises(InputError, match=r"least_ess"):
        Wake(least_ess=1.0)
    with pytest.raises(InputError, match=r"penalty"):
        GroupPolicyGradient(penalty=-1.0)
