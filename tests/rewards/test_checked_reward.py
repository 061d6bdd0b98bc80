"""How a checked reward calls, protects, counts and probes the callable inside."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from difftilt.errors import RewardError
from difftilt.rewards.contract import CheckedReward, as_reward, reward_bound

VALUES = [0.5, -2.0, 3.0]
X = torch.tensor([VALUES, [1.0, 0.25, -1.5]]).T.contiguous()


class Scorer:
    """A callable object."""

    def __call__(self, x_0, condition):
        return condition * x_0[:, 0]


class Network(nn.Module):
    """A torch module, whose own ``__call__`` takes anything."""

    def forward(self, x_0, labels=None):
        return x_0[:, 0] if labels is None else labels * x_0[:, 0]


def required(x_0, c):
    return c * x_0[:, 0]


def optional(x_0, labels=None):
    return x_0[:, 0] if labels is None else labels * x_0[:, 0]


def named(x_0, condition=1.0):
    return condition * x_0[:, 0]


def starred(*arguments):
    return arguments[0][:, 0] * (arguments[1] if len(arguments) > 1 else 1.0)


def with_option(x_0, scale=1.0):
    return scale * x_0[:, 0]


def plain(x_0):
    return x_0[:, 0]


CONDITION = torch.tensor([2.0, 3.0, 4.0])


@pytest.mark.parametrize(
    "log_reward",
    [
        required,
        optional,
        named,
        starred,
        Scorer(),
        Network(),
        partial(lambda s, x, c: s * c * x[:, 0], 1.0),
    ],
)
def test_a_second_parameter_is_the_condition(log_reward):
    assert as_reward(log_reward)(X, CONDITION).tolist() == [1.0, -6.0, 12.0]


@pytest.mark.parametrize(
    "log_reward",
    [
        plain,
        with_option,
        lambda x: x[:, 0],
        partial(required, c=1.0),
        partial(with_option, scale=1),
    ],
)
def test_a_reward_without_condition_is_not_given_one(log_reward):
    assert as_reward(log_reward)(X, CONDITION).tolist() == VALUES


@pytest.mark.parametrize("log_reward", [optional, named, starred, Network()])
def test_an_optional_condition_may_be_left_out(log_reward):
    assert as_reward(log_reward)(X).tolist() == VALUES


def test_a_required_condition_may_not():
    sentence = (
        r"^reward 'required' needs a condition and none was given; "
        r"give one, or make it optional$"
    )
    with pytest.raises(RewardError, match=sentence):
        as_reward(required)(X)


def test_a_builtin_without_signature_takes_samples_alone():
    assert as_reward(torch.ravel)(X[:, :1], CONDITION).tolist() == VALUES


@pytest.mark.parametrize(
    ("log_reward", "parameters"),
    [
        (lambda: 0.0, r"\(\)"),
        (lambda x, c, scale: x, r"\(x, c, scale\)"),
        (lambda x, *, device: x, r"\(x, \*, device\)"),
    ],
)
def test_a_function_of_other_parameters_is_refused_at_once(log_reward, parameters):
    sentence = (
        rf"^reward '<lambda>' has the parameters {parameters}; it must be callable as "
        r"log_reward\(x_0\) or log_reward\(x_0, condition\)$"
    )
    with pytest.raises(RewardError, match=sentence):
        as_reward(log_reward)


def test_what_is_not_callable_is_refused_at_once():
    with pytest.raises(
        RewardError, match=r"^a reward is a function from x_0 to log r, but this is a Tensor$"
    ):
        as_reward(torch.zeros(3))


def test_the_reward_gets_a_copy():
    def in_place(x_0):
        return x_0.mul_(0.5).add_(0.5).sum(1)

    x_0 = X.clone()
    as_reward(in_place)(x_0)
    assert torch.equal(x_0, X)


def test_the_result_does_not_alias_the_buffer_of_the_reward():
    for buffer in (torch.zeros(3), np.zeros(3)):
        log_r = as_reward(lambda x, buffer=buffer: buffer)(X)
        buffer += 1.0
        assert log_r.tolist() == [0.0] * 3


def test_a_call_is_detached_and_differentiable_is_not():
    x_0 = X.clone().requires_grad_()
    reward = as_reward(lambda x: -0.5 * x.square().sum(1, keepdim=True))
    assert not reward(x_0).requires_grad
    (gradient,) = torch.autograd.grad(reward.differentiable(x_0).sum(), x_0)
    assert torch.equal(gradient, -X)


def test_wrapping_twice_is_wrapping_once():
    reward = as_reward(plain, name="first pixel")
    assert as_reward(reward) is reward
    assert reward.name == "first pixel"


def test_samples_scored_are_counted():
    reward = as_reward(plain)
    reward(X)
    reward(X[:1])
    assert reward.calls == 4
    reward.probe(X)
    assert reward.calls == 10


@pytest.mark.parametrize(
    ("log_reward", "name"),
    [(plain, "plain"), (Scorer(), "Scorer"), (partial(named, condition=2.0), "named")],
)
def test_a_reward_is_called_by_its_own_name(log_reward, name):
    assert as_reward(log_reward).name == name


def test_a_bound_is_read_and_held():
    def log_reward(x_0):
        return x_0[:, 0]

    assert reward_bound(log_reward) is None
    log_reward.bound = 1.0
    assert reward_bound(log_reward) == reward_bound(as_reward(log_reward)) == 1.0
    with pytest.raises(
        RewardError,
        match=r"^reward 'log_reward' returned log r above its bound of 1 nats \(up to 3\) on 1 of "
        r"3 samples, first in row 2; declare a higher bound$",
    ):
        as_reward(log_reward)(X)


def test_a_bound_that_says_nothing_is_none():
    for bound in (math.inf, math.nan, "0", lambda: 0.0):
        reward = Scorer()
        reward.bound = bound
        assert reward_bound(reward) is None


def test_a_probe_says_what_came_back():
    probe = as_reward(lambda x: np.array([[-math.inf], [-4.0], [1.0]], dtype=np.float16)).probe(X)
    assert (probe.dtype, probe.shape) == ("float16", (3, 1))
    assert probe.is_deterministic
    assert 0.0 < probe.seconds_per_sample < 1.0
    assert (probe.minimum, probe.maximum, probe.mean) == (-4.0, 1.0, -1.5)
    assert probe.share_zero == pytest.approx(1 / 3)


def test_a_probe_of_lists_and_tensors():
    assert as_reward(lambda x: VALUES).probe(X).dtype == "list"
    assert as_reward(lambda x: VALUES).probe(X).shape == (3,)
    assert as_reward(lambda x: x[:, 0].bfloat16()).probe(X).dtype == "bfloat16"


def test_a_probe_notices_a_reward_that_draws(generator):
    noisy = as_reward(lambda x: torch.randn(len(x), generator=generator))
    assert not noisy.probe(X).is_deterministic


def test_a_probe_passes_the_condition():
    assert as_reward(required).probe(X, CONDITION).maximum == 12.0


def test_a_probe_without_signal_is_an_error_unless_allowed():
    reward = CheckedReward(lambda x: [-math.inf] * 3, name="rare")
    with pytest.raises(
        RewardError,
        match=r"^reward 'rare' is zero \(log r = -inf\) on all 3 samples: no signal; try more "
        r"samples, or give it a floor \(difftilt\.Floored\)$",
    ):
        reward.probe(X)
    probe = reward.probe(X, require_signal=False)
    assert probe.share_zero == 1.0
    assert math.isnan(probe.minimum) and math.isnan(probe.maximum) and math.isnan(probe.mean)


def test_a_probe_raises_what_a_call_raises():
    with pytest.raises(RewardError, match=r"^reward '<lambda>' returned None; "):
        as_reward(lambda x: None).probe(X)
