"""A reward is held to its contract: what is accepted, what is refused, and in which words."""

import math

import numpy as np
import pytest
import torch

from difftilt.errors import InputError, RewardError
from difftilt.rewards.contract import as_reward

X = torch.tensor([[0.5, 1.0], [-2.0, 0.25], [3.0, -1.5]])
VALUES = [0.5, -2.0, 3.0]


def giving(value):
    """A reward that returns the same value whatever it is asked."""

    def log_reward(x_0):
        return value

    return log_reward


@pytest.mark.parametrize(
    ("returned", "dtype"),
    [
        (torch.tensor(VALUES), torch.float32),
        (torch.tensor(VALUES, dtype=torch.float64), torch.float64),
        (torch.tensor(VALUES, dtype=torch.float16), torch.float32),
        (torch.tensor(VALUES, dtype=torch.bfloat16), torch.float32),
        (torch.tensor(VALUES)[:, None], torch.float32),
        (np.array(VALUES, dtype=np.float16), torch.float32),
        (np.array(VALUES, dtype=np.float32)[:, None], torch.float32),
        (np.array(VALUES, dtype=">f8"), torch.float64),
        (np.array(VALUES[::-1])[::-1], torch.float64),
        (np.array(VALUES, dtype=np.longdouble), torch.float64),
        (VALUES, torch.float64),
        (tuple(VALUES), torch.float64),
        ([0.5, -2, np.float32(3.0)], torch.float64),
        ([torch.tensor(v, requires_grad=True) for v in VALUES], torch.float64),
        ([torch.tensor([v]) for v in VALUES], torch.float64),
    ],
)
def test_any_container_of_real_numbers_becomes_wide_floats(returned, dtype):
    log_r = as_reward(giving(returned))(X)
    assert log_r.dtype == dtype
    assert log_r.tolist() == VALUES


@pytest.mark.parametrize(
    "returned",
    [torch.tensor([1, -2, 3]), torch.tensor([1, -2, 3], dtype=torch.int8), [1, -2, 3]]
    + [np.array([1, -2, 3], dtype=dtype) for dtype in (np.int16, np.int32, np.int64)]
    + [np.array([1, 254, 3], dtype=np.uint8)],
)
def test_integers_are_converted(returned):
    log_r = as_reward(giving(returned))(X)
    assert log_r.is_floating_point()
    assert log_r.tolist() == [float(v) for v in returned]


def test_a_zero_reward_is_legal_even_for_a_whole_batch():
    log_r = as_reward(giving([-math.inf] * 3))(X)
    assert log_r.tolist() == [-math.inf] * 3


SHAPE = r"return one log r per sample, shape \(3,\)$"
REFUSED = [
    (torch.tensor(1.0), rf"returned shape \(\) for a batch of 3; {SHAPE}"),
    (torch.tensor([1.0]), rf"returned shape \(1,\) for a batch of 3; {SHAPE}"),
    (torch.zeros(4), rf"returned shape \(4,\) for a batch of 3; {SHAPE}"),
    (torch.zeros(3, 3), rf"returned shape \(3, 3\) for a batch of 3; {SHAPE}"),
    (torch.zeros(1, 3), rf"returned shape \(1, 3\) for a batch of 3; {SHAPE}"),
    (torch.zeros(3, 1, 1), rf"returned shape \(3, 1, 1\) for a batch of 3; {SHAPE}"),
    (np.float64(1.0), rf"returned shape \(\) for a batch of 3; {SHAPE}"),
    (np.zeros((3, 3)), rf"returned shape \(3, 3\) for a batch of 3; {SHAPE}"),
    ([1.0, 2.0], rf"returned shape \(2,\) for a batch of 3; {SHAPE}"),
    ([], rf"returned shape \(0,\) for a batch of 3; {SHAPE}"),
    (1.0, rf"returned a float; {SHAPE}"),
    (None, rf"returned None; {SHAPE}"),
    ("high", rf"returned a str; {SHAPE}"),
    ({"reward": VALUES}, rf"returned a dict; {SHAPE}"),
    ([1.0, None, 2.0], rf"returned a list with None in row 1; {SHAPE}"),
    ([1.0, "2", 3.0], rf"returned a list with a str in row 1; {SHAPE}"),
    ([1.0, 2.0, 1j], rf"returned a list with a complex in row 2; {SHAPE}"),
    ([[1.0], 2.0, 3.0], rf"returned a list with a list in row 0; {SHAPE}"),
    ([torch.zeros(2)] * 3, rf"returned a list with a Tensor in row 0; {SHAPE}"),
    (torch.ones(3).bool(), r"returned bool values; return log r as floats, in nats$"),
    (np.ones(3, dtype=bool), r"returned bool values; return log r as floats, in nats$"),
    ([True, False, True], r"returned bool values; return log r as floats, in nats$"),
    (torch.ones(3) + 1j, r"returned complex64 values; return log r as floats, in nats$"),
    (np.ones(3) + 1j, r"returned complex128 values; return log r as floats, in nats$"),
    (np.array(["a", "b", "c"]), r"returned str32 values; return log r as floats, in nats$"),
    (
        torch.tensor([1.0, math.nan, math.nan]),
        r"returned NaN on 2 of 3 samples, first in row 1; "
        r"log r must be a number, or -inf where r = 0$",
    ),
    (
        [0.0, 1.0, math.inf],
        r"returned \+inf on 1 of 3 samples, first in row 2; "
        r"log r must be finite, or -inf where r = 0$",
    ),
    (
        torch.tensor([math.inf, math.nan, -math.inf]),
        r"returned NaN on 1 of 3 samples, first in row 1; .*$",
    ),
]


@pytest.mark.parametrize(("returned", "sentence"), REFUSED)
def test_anything_else_is_refused_in_one_sentence(returned, sentence):
    with pytest.raises(RewardError, match=rf"^reward 'log_reward' {sentence}"):
        as_reward(giving(returned))(X)


def test_for_a_batch_of_one_a_scalar_is_still_no_batch():
    one = X[:1]
    assert as_reward(giving(torch.tensor([2.0])))(one).tolist() == [2.0]
    assert as_reward(giving(torch.tensor([[2.0]])))(one).tolist() == [2.0]
    with pytest.raises(RewardError, match=r"^reward 'log_reward' returned shape \(\) for a batch"):
        as_reward(giving(torch.tensor(2.0)))(one)


def test_an_exception_is_quoted_and_chained():
    def brightness(x_0):
        raise KeyError("no\nsuch   column")

    with pytest.raises(RewardError) as raised:
        as_reward(brightness)(X)
    assert str(raised.value) == (
        r"reward 'brightness' raised KeyError: 'no\nsuch column' on a batch of shape (3, 2)"
    )
    assert isinstance(raised.value.__cause__, KeyError)


def test_an_endless_message_is_cut():
    def chatty(x_0):
        raise ValueError("word " * 1000)

    with pytest.raises(RewardError) as raised:
        as_reward(chatty)(X)
    assert len(str(raised.value)) < 500
    assert "word..." in str(raised.value)


def test_an_interruption_is_not_an_error_of_the_reward():
    def interrupted(x_0):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        as_reward(interrupted)(X)


def test_a_batch_without_samples_is_refused():
    with pytest.raises(InputError, match=r"^x_0 has shape \(0, 2\); give \(B, \*event\) with B >="):
        as_reward(giving([]))(X[:0])
