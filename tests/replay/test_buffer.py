import math

import pytest
import torch
from torch import Tensor

from difftilt.errors import InputError
from difftilt.replay.buffer import PRIORITIES, ReplayBuffer


def filled(buffer: ReplayBuffer, log_r: list[float], residual: list[float]) -> ReplayBuffer:
    x_0 = torch.arange(len(log_r)).float()[:, None]
    buffer.add(x_0, torch.tensor(log_r), torch.tensor(residual))
    return buffer


def shares(buffer: ReplayBuffer, generator: torch.Generator, count: int = 60_000) -> Tensor:
    rows = buffer.draw(count, generator)
    return torch.bincount(rows, minlength=len(buffer)).float() / count


@pytest.mark.parametrize(
    ("priority", "order"),
    [("uniform", None), ("reward", [2, 0, 1]), ("residual", [1, 0, 2])],
)
def test_draws_follow_the_rank(priority, order, generator: torch.Generator):
    buffer = filled(ReplayBuffer(10, priority), [0.0, -5.0, 3.0], [-2.0, 7.0, 0.5])
    expected = torch.full((3,), 1 / 3)
    if order is not None:
        weight = torch.empty(3)
        weight[torch.tensor(order)] = torch.tensor([1, 1 / 2, 1 / 3])
        expected = weight / weight.sum()
    error = (expected * (1 - expected) / 60_000).sqrt()
    assert bool(((shares(buffer, generator) - expected).abs() < 5 * error).all())


@pytest.mark.parametrize("priority", PRIORITIES)
def test_duplicates_and_zero_rewards_are_not_kept(priority):
    buffer = ReplayBuffer(10, priority)
    x_0 = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [5.0, 6.0], [7.0, 8.0]])
    log_r = torch.tensor([0.5, -math.inf, 0.5, math.nan, 1.0])
    buffer.add(x_0, log_r, torch.zeros(5))
    buffer.add(x_0[:1], log_r[:1], torch.zeros(1))
    assert buffer.x_0.tolist() == [[1.0, 2.0], [7.0, 8.0]]
    buffer.add(x_0[1:2], torch.zeros(1), torch.zeros(1))  # its reward is above zero this time
    assert len(buffer) == 3


def test_near_ends_are_one_within_the_tolerance():
    buffer = ReplayBuffer(10, tolerance=0.1)
    x_0 = torch.tensor([[1.0], [1.01], [1.3]])
    buffer.add(x_0, torch.zeros(3), torch.zeros(3))
    assert buffer.x_0.flatten().tolist() == pytest.approx([1.0, 1.3])


def test_the_least_liked_leave_first():
    buffer = filled(ReplayBuffer(2, "reward"), [0.0, -5.0, 3.0], [0.0] * 3)
    assert buffer.log_r.tolist() == [0.0, 3.0]


@pytest.mark.parametrize("priority", ["uniform", "residual"])
def test_the_oldest_leave_first(priority):
    buffer = filled(ReplayBuffer(2, priority), [0.0, -5.0, 3.0], [0.0] * 3)
    assert buffer.log_r.tolist() == [-5.0, 3.0]
    buffer.add(torch.zeros(1, 1), torch.tensor([0.0]), torch.zeros(1))  # had left: is new again
    assert buffer.log_r.tolist() == [3.0, 0.0]


def test_residuals_are_absolute_and_stay_where_unknown():
    buffer = filled(ReplayBuffer(5, "residual"), [0.0, 1.0, 2.0], [math.nan, -2.0, 3.0])
    assert buffer.residual.tolist() == [0.0, 2.0, 3.0]
    buffer.update(torch.tensor([0, 1, 2]), torch.tensor([-4.0, math.nan, math.inf]))
    assert buffer.residual.tolist() == [4.0, 2.0, 3.0]


def test_conditions_stay_with_their_ends():
    buffer = ReplayBuffer(2, "reward")
    x_0 = torch.arange(4.0)[:, None]
    log_r = torch.tensor([1.0, -math.inf, 3.0, 2.0])
    buffer.add(x_0, log_r, torch.zeros(4), torch.tensor([10, 11, 12, 13]))
    assert buffer.condition is not None and buffer.condition.tolist() == [12, 13]
    assert buffer.x_0.flatten().tolist() == [2.0, 3.0]


def test_state_comes_back_and_still_knows_duplicates():
    buffer = filled(ReplayBuffer(5), [0.0, 1.0], [0.5, 0.25])
    again = ReplayBuffer(5)
    again.load(buffer.state())
    filled(again, [0.0, 1.0], [0.5, 0.25])
    assert len(again) == 2 and torch.equal(again.residual, buffer.residual)


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="unknown replay priority 'best'"):
        ReplayBuffer(5, "best")
    with pytest.raises(InputError, match="capacity of at least 1, got 0"):
        ReplayBuffer(0)
    with pytest.raises(InputError, match="the replay buffer is empty"):
        ReplayBuffer(5).draw(3)


def test_the_same_end_of_another_condition_is_no_duplicate():
    buffer = ReplayBuffer()
    x_0, condition = torch.tensor([[1, 2], [1, 2], [1, 2]]), torch.tensor([[0], [1], [0]])
    buffer.add(x_0, torch.zeros(3), torch.zeros(3), condition)
    buffer.add(x_0, torch.zeros(3), torch.zeros(3), condition)
    assert buffer.condition is not None
    assert buffer.condition.flatten().tolist() == [0, 1]
    again = ReplayBuffer()
    again.load(buffer.state())
    again.add(x_0, torch.zeros(3), torch.zeros(3), condition)
    assert len(again) == 2
