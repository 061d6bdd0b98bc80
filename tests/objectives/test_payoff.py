"""Pay-off likelihoods and advantage-weighted matching: by hand, and at closed-form optima."""

import math

import pytest
import torch
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.ends import EndScores
from difftilt.objectives.forward import AdvantageWeighted, advantage, advantage_weighted
from difftilt.objectives.payoff import RGDM, RewardWeighted, preferred_landings, reward_weighted
from difftilt.transitions.gaussian import GaussianTilt


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores_of(log_r: Tensor, group: Tensor | None = None, **named) -> EndScores:
    group = torch.zeros(len(log_r), dtype=torch.long) if group is None else group
    return EndScores(log_r, log_r, torch.full_like(log_r, 0.7), group, **named)


def test_reward_weighted_by_hand():
    log_r, ratio = randn(5), randn(1, 5, seed=1)
    scores = scores_of(log_r, log_ratio=ratio)
    expected = -(log_r - 0.7).exp() * ratio[0]
    assert torch.allclose(reward_weighted(scores), expected)
    assert torch.allclose(RewardWeighted("unnormalised").losses(scores), expected)
    shared = -5 * torch.softmax(log_r, 0) * ratio[0]
    assert torch.allclose(RewardWeighted().losses(scores), shared)


def test_weights_of_a_set_are_normalised_within_it():
    """So that what a condition adds to all of its rewards changes nothing."""
    log_r, ratio = randn(6), randn(1, 6, seed=1)
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    own = RewardWeighted(contrast=3)
    found = own.losses(scores_of(log_r, group, log_ratio=ratio))
    shares = torch.softmax(log_r.reshape(2, 3), 1).flatten()
    assert torch.allclose(found, -3 * shares * ratio[0])
    moved = own.losses(scores_of(log_r + 40.0 * group, group, log_ratio=ratio))
    assert torch.allclose(found, moved)
    assert (own.contrast_size, own.paths_per_group) == (3, 3)
    with pytest.raises(InputError, match="at least 2 rows"):
        RewardWeighted(contrast=1)


def test_the_likelihood_of_preferred_landings_by_hand():
    preference, ratio = randn(3, 4), randn(3, 4, seed=1)
    scores = scores_of(randn(4), log_ratio=ratio, log_preference=preference)
    for temperature in (1.0, 0.25):
        w = (preference / temperature).exp()
        expected = -(w * ratio).sum(0) / w.sum(0)
        assert torch.allclose(preferred_landings(scores, temperature), expected)
    paid = RGDM("reward", temperature=0.25).losses(scores)
    assert torch.allclose(paid, preferred_landings(scores, 0.25))


def test_a_row_without_any_weight_teaches_nothing():
    preference = torch.full((2, 2), -math.inf).double()
    preference[0, 1] = 0.0
    ratio = randn(2, 2)
    scores = scores_of(randn(2), log_ratio=ratio, log_preference=preference)
    assert preferred_landings(scores).tolist() == [0.0, float(-ratio[0, 1])]


@pytest.mark.parametrize("candidates, bias", [(2, None), (16, 0.06), (256, 0.004)])
def test_landings_preferred_by_log_h_have_the_mean_of_the_tilted_kernel(
    candidates: int, bias: float | None
):
    """``log h = -k x²/2 + b x`` tilts ``N(m, s²)`` to a Gaussian; the loss is least at its δ.

    The loss of J candidates is biased by O(1/J); 5 standard errors are left for its sampling.
    """
    m, s, k, b = 0.3, 0.8, 2.0, 1.5
    rows = 400_000 // candidates
    eps = randn(candidates, rows)
    x = m + s * eps
    delta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    tilt = GaussianTilt(delta.expand(rows, 1))
    ratio = torch.stack([tilt.log_ratio(each[:, None]) for each in eps])
    preference = -0.5 * k * x**2 + b * x
    scores = scores_of(torch.zeros(rows).double(), log_ratio=ratio, log_preference=preference)
    losses = preferred_landings(scores)
    (slope,) = torch.autograd.grad(losses.mean(), delta)
    # At δ = 0 the derivative is minus the mean landing, and the loss is quadratic of curvature 1.
    exact = s * (b - k * m) / (1 + s**2 * k)
    standard_error = float((torch.softmax(preference, 0) * eps).sum(0).std()) / math.sqrt(rows)
    error = abs(-float(slope) - exact)
    if bias is None:
        assert error > 0.1
    else:
        assert error < bias + 5 * standard_error


def test_the_value_form_trains_its_value_by_contrast():
    log_r, log_h = randn(6), randn(6, seed=3).requires_grad_()
    ratio = randn(2, 6, seed=1).requires_grad_()
    scores = scores_of(log_r, log_h=log_h, log_ratio=ratio, log_preference=randn(2, 6, seed=2))
    by_h, by_ratio = torch.autograd.grad(RGDM().losses(scores).sum(), (log_h, ratio))
    w = (log_r - 0.7).exp()
    assert torch.allclose(by_h, torch.softmax(log_h.detach(), 0) * w.sum() - w)
    assert torch.allclose(by_ratio, -torch.softmax(randn(2, 6, seed=2), 0))


def test_the_two_forms_ask_for_different_things():
    assert RGDM().consistent
    assert not RGDM("reward").consistent
    assert RGDM().needs == {"log_ratio", "log_h"}
    assert RGDM("reward").needs == {"log_ratio"}
    assert RGDM("reward").behaviours is None
    assert RGDM().landings.kind == "prior"
    near = RGDM("reward", candidates=4, exploration_radius=0.2).landings
    assert (near.kind, near.count, near.radius) == ("near", 4, 0.2)


def test_an_advantage_is_measured_against_the_others():
    log_r = torch.tensor([1.0, 4.0, 2.0, 6.0, -math.inf, 3.0]).double()
    group = torch.tensor([0, 1, 0, 1, 0, 0])
    # In group 0 the others of 1 are 2 and 3; the end of zero reward is nobody's other.
    assert advantage(scores_of(log_r, group)).tolist() == pytest.approx([-1.5, -2, 0, 2, 0, 1.5])


def test_advantage_weighted_by_hand():
    log_r, ratio, kl = randn(4), randn(1, 4, seed=1), randn(4, seed=2).abs()
    scores = scores_of(log_r, log_ratio=ratio, divergence=kl)
    gain = advantage(scores)
    assert torch.allclose(advantage_weighted(scores, 0.0), -gain * ratio[0])
    assert torch.allclose(AdvantageWeighted(0.5).losses(scores), -gain * ratio[0] + 0.5 * kl)
    assert AdvantageWeighted(0.0).needs == {"log_ratio"}
    assert not AdvantageWeighted().consistent


def test_what_is_missing_is_said():
    empty = scores_of(torch.zeros(2))
    with pytest.raises(InputError, match="weighted likelihood needs landings"):
        reward_weighted(empty)
    with pytest.raises(InputError, match="RGDM needs landings with preferences"):
        preferred_landings(empty)
    with pytest.raises(InputError, match=r"needs scores\.log_ratio and scores\.divergence"):
        advantage_weighted(empty, 1.0)


@pytest.mark.usefixtures("unchecked")
def test_unknown_options_are_said():
    with pytest.raises(InputError, match="normalisation='none' is unknown"):
        RewardWeighted("none")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="states='path' is unknown"):
        RewardWeighted(states="path")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="states='path' is unknown"):
        AdvantageWeighted(states="path")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="penalty must be a finite number >= 0, got -1"):
        AdvantageWeighted(-1.0)
    with pytest.raises(InputError, match="per_step='q' is unknown"):
        RGDM("q")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "option, value",
    [("candidates", 1), ("exploration_radius", 0.0), ("temperature", -1.0), ("contrast", 1)],
)
def test_options_of_rgdm_have_a_range(option: str, value: float):
    with pytest.raises(InputError, match=f"{option}={value} is out of range"):
        RGDM(**{option: value})
