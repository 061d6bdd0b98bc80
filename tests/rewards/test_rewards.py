"""The wrappers' algebra against closed forms and torch.distributions, and loading by name."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal

from difftilt.errors import InputError, RewardError
from difftilt.rewards.contract import as_reward, reward_bound
from difftilt.rewards.wrappers import (
    Bounded,
    ClassifierReward,
    Floored,
    GaussianLikelihood,
    Summed,
    Tempered,
)

X = torch.tensor([[0.5, 1.0], [-2.0, 0.25], [3.0, -1.5]])
nats = st.floats(-50.0, 50.0)
batches = st.lists(nats, min_size=1, max_size=6).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64)[:, None]
)


def first(x_0):
    return x_0[:, 0]


def square(x_0):
    return -x_0.square().sum(1)


def by_condition(x_0, condition):
    return x_0[:, 0] * condition


def impossible(x_0):
    return torch.full((len(x_0),), -math.inf)


@given(batches, st.floats(0.1, 10.0))
def test_tempered_divides(x_0, temperature):
    log_r = Tempered(first, temperature)(x_0)
    torch.testing.assert_close(log_r, x_0[:, 0] / temperature)


@given(batches, st.floats(0.1, 10.0), st.floats(0.1, 10.0))
def test_temperatures_multiply(x_0, one, other):
    torch.testing.assert_close(
        Tempered(Tempered(first, one), other)(x_0), Tempered(first, one * other)(x_0)
    )


@given(batches, st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
def test_summed_is_the_weighted_sum(x_0, one, other):
    weights = [one, other, 1.0]
    log_r = Summed([first, square, first], weights)(x_0)
    expected = (one + 1.0) * x_0[:, 0] - other * x_0[:, 0].square()
    torch.testing.assert_close(log_r, expected, rtol=1e-9, atol=1e-9)


@given(batches)
def test_summed_by_default_multiplies_rewards(x_0):
    torch.testing.assert_close(Summed([first, square])(x_0), first(x_0) + square(x_0))


@given(batches, nats)
def test_floored_is_the_maximum(x_0, floor):
    log_r = Floored(first, floor)(x_0)
    assert log_r.tolist() == [max(value, floor) for value in x_0[:, 0].tolist()]


def test_floored_lifts_a_zero_reward():
    assert Floored(impossible, -7.0)(X).tolist() == [-7.0] * 3


def test_the_cost_of_a_floor_is_within_its_stated_bound(generator):
    # A discrete prior: total variation by summation, for a hundred rewards and floors.
    for _ in range(100):
        p = torch.rand(20, generator=generator, dtype=torch.float64).softmax(0)
        log_r = 3.0 * torch.randn(20, generator=generator, dtype=torch.float64)
        floor = 2.0 * torch.randn((), generator=generator).item()
        wanted = p * log_r.exp()
        lifted = p * Floored(first, floor)(log_r[:, None]).exp()
        distance = 0.5 * (wanted / wanted.sum() - lifted / lifted.sum()).abs().sum()
        assert distance <= p[log_r < floor].sum() * math.exp(floor) / wanted.sum() + 1e-12


def test_a_weight_of_zero_leaves_a_reward_out():
    reward = as_reward(impossible)
    assert Summed([first, reward], [1.0, 0.0])(X).tolist() == X[:, 0].tolist()
    assert reward.calls == 0


def test_a_negative_weight_on_a_zero_reward_is_an_error():
    with pytest.raises(RewardError, match=r"^reward 'Summed' returned \+inf on 3 of 3 samples, "):
        as_reward(Summed([first, impossible], [1.0, -1.0]))(X)


def test_rewards_with_and_without_condition_mix():
    condition = torch.tensor([2.0, 3.0, 4.0])
    log_r = as_reward(Summed([Tempered(by_condition, 0.5), first]))(X, condition)
    assert log_r.tolist() == [0.5 * 5, -2.0 * 7, 3.0 * 9]


def test_sums_of_mixed_precision_are_wide():
    mixed = Summed([lambda x: x[:, 0].half(), lambda x: x[:, 0].tolist()])
    assert as_reward(mixed)(X).dtype == torch.float64


def test_the_graph_survives_wrapping():
    x_0 = X.clone().requires_grad_()
    reward = Summed([Tempered(Bounded(square, 0.0), 2.0), Floored(first, 0.0)], [1.0, 5.0])
    (gradient,) = torch.autograd.grad(reward(x_0).sum(), x_0)
    assert torch.equal(gradient, -X + 5.0 * torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))


def test_an_inner_reward_answers_by_its_own_name():
    with pytest.raises(RewardError, match=r"^reward 'broken' returned NaN on 3 of 3 samples, "):
        as_reward(Summed([first, Tempered(broken, 2.0)]))(X)


def broken(x_0):
    return x_0[:, 0] * math.nan


def test_bounded_declares_and_holds():
    assert reward_bound(Bounded(first, 3.0)) == 3.0
    assert Bounded(first, 3.0)(X).tolist() == X[:, 0].tolist()
    with pytest.raises(
        RewardError,
        match=r"^reward 'first' returned log r above its bound of 0\.25 nats \(up to 3\) on 2 of 3 "
        r"samples, first in row 0; declare a higher bound$",
    ):
        Bounded(first, 0.25)(X)


def test_bounded_forgives_rounding_and_no_more():
    assert len(Bounded(first, 3.0 - 2e-5)(X)) == 3
    with pytest.raises(RewardError, match=r"above its bound of 2\.9999 nats"):
        Bounded(first, 3.0 - 1e-4)(X)


def test_bounds_follow_the_algebra():
    two, six = Bounded(first, 2.0), Bounded(square, 6.0)
    assert reward_bound(Tempered(six, 4.0)) == 1.5
    assert reward_bound(Floored(two, 3.0)) == 3.0
    assert reward_bound(Floored(two, -3.0)) == 2.0
    assert reward_bound(Summed([two, six])) == 8.0
    assert reward_bound(Summed([two, six], [0.5, 2.0])) == 13.0
    assert reward_bound(Summed([two, first], [1.0, 0.0])) == 2.0


def test_a_bound_is_unknown_where_a_part_is():
    two = Bounded(first, 2.0)
    assert reward_bound(Tempered(first, 2.0)) is None
    assert reward_bound(Floored(first, 3.0)) is None
    assert reward_bound(Summed([two, first])) is None
    assert reward_bound(Summed([two, two], [1.0, -1.0])) is None


def identity(x_0):
    return x_0


@given(
    st.lists(st.lists(nats, min_size=4, max_size=4), min_size=1, max_size=5),
    st.sets(st.integers(0, 3), min_size=1),
)
def test_several_classes_add_their_probabilities(rows, classes):
    logits = torch.tensor(rows, dtype=torch.float64)
    log_r = ClassifierReward(identity, sorted(classes))(logits)
    probability = logits.softmax(1)[:, sorted(classes)].sum(1)
    torch.testing.assert_close(log_r.exp(), probability, rtol=1e-12, atol=1e-300)
    assert (log_r <= 0.0).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_labels_as_condition_choose_one_class_each(labels):
    logits = torch.linspace(-3.0, 4.0, 4 * len(labels)).reshape(-1, 4).sin()
    log_r = as_reward(ClassifierReward(identity))(logits, torch.tensor(labels))
    for row, label in enumerate(labels):
        assert log_r[row] == ClassifierReward(identity, label)(logits)[row]


def test_a_classifier_of_half_precision_scores_in_float32():
    logits = torch.tensor([[20.0, 0.0]])
    log_r = ClassifierReward(lambda x: x.half(), 0)(logits)
    assert log_r.dtype == torch.float32
    assert log_r.item() == pytest.approx(-math.exp(-20.0), rel=0.05, abs=1e-7)


def test_a_classifier_is_bounded_by_zero_and_put_in_eval_mode():
    classifier = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    reward = ClassifierReward(classifier, [0, 2])
    assert reward.bound == 0.0
    assert not classifier.training
    assert as_reward(reward).probe(X).is_deterministic


def test_a_classifier_is_differentiable_when_asked():
    x_0 = X.clone().requires_grad_()
    reward = as_reward(ClassifierReward(nn.Linear(2, 3), 1))
    assert not reward(x_0).requires_grad
    log_r = reward.differentiable(x_0)
    assert torch.autograd.grad(log_r.sum(), x_0)[0].abs().sum() > 0.0


def test_classes_are_held_against_the_logits():
    with pytest.raises(
        InputError, match=r"^there is no class 2: the classifier has 2, counted from 0 to 1$"
    ):
        as_reward(ClassifierReward(identity, [0, 2]))(X)
    with pytest.raises(InputError, match=r"^there is no class -1: the classifier has 2, "):
        as_reward(ClassifierReward(identity))(X, torch.tensor([0, 1, -1]))


@pytest.mark.parametrize("classes", [-1, [], [0, -2]])
def test_impossible_classes_are_refused_at_once(classes):
    with pytest.raises(InputError, match=r"^classes=.*; give at least one class, counted from 0$"):
        ClassifierReward(identity, classes)


def test_labels_must_be_one_integer_each():
    reward = ClassifierReward(identity)
    for condition in (torch.zeros(3), torch.zeros(3).bool(), torch.zeros(3, 1).long()):
        with pytest.raises(
            InputError,
            match=r"^the classifier reward got a condition of \w+ and shape \(3,( 1)?\); "
            r"give one integer label per sample, \(3,\)$",
        ):
            reward(X, condition)
    with pytest.raises(InputError, match=r"has neither classes nor a condition; give one$"):
        as_reward(reward)(X)


@pytest.mark.parametrize(
    ("output", "what"), [(torch.zeros(3), r"shape \(3,\)"), ({"logits": X}, "a dict")]
)
def test_a_classifier_must_return_logits(output, what):
    with pytest.raises(
        RewardError,
        match=rf"^the classifier returned {what} for a batch of 3; "
        r"it must return logits of shape \(B, number of classes\)$",
    ):
        as_reward(ClassifierReward(lambda x: output, 0))(X)


@given(batches, st.lists(nats, min_size=1, max_size=4), st.floats(0.01, 10.0))
def test_gaussian_likelihood_is_torchs(x_0, observation, std):
    y = torch.tensor(observation, dtype=torch.float64)
    likelihood = GaussianLikelihood(y, lambda x: x * torch.ones_like(y), std)
    expected = Normal(x_0 * torch.ones_like(y), std).log_prob(y).sum(1)
    torch.testing.assert_close(likelihood(x_0), expected, rtol=1e-9, atol=1e-9)
    assert likelihood.bound is not None
    assert (likelihood(x_0) <= likelihood.bound).all()


def test_a_likelihood_reaches_its_bound_at_a_perfect_fit():
    image = torch.randn(3, 4, 4)
    likelihood = GaussianLikelihood(image, identity, 0.05)
    assert as_reward(likelihood)(image[None]).item() == pytest.approx(likelihood.bound)


def test_a_likelihood_of_half_precision_adds_up_in_float32():
    y = torch.full((4096,), 1.0)
    log_r = GaussianLikelihood(y, lambda x: x.half(), 1.0)(torch.zeros(2, 4096))
    assert log_r.dtype == torch.float32
    assert log_r.tolist() == pytest.approx([-2048.0 * (1.0 + math.log(2.0 * math.pi))] * 2)


def test_an_operator_may_not_broadcast():
    likelihood = GaussianLikelihood(torch.zeros(2), lambda x: x[:, :1], 1.0)
    with pytest.raises(
        RewardError,
        match=r"^the forward operator returned shape \(3, 1\) for a batch of 3; "
        r"the observation asks for \(3, 2\)$",
    ):
        as_reward(likelihood)(X)


def test_an_observation_must_be_finite():
    with pytest.raises(InputError, match=r"^the observation holds NaN or infinite values; "):
        GaussianLikelihood(torch.tensor([0.0, math.nan]), identity, 1.0)
