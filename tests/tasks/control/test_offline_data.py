"""`OfflineData` splits by episode, adds up its own columns and refuses what is broken."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftilt.adapters.actions import Bound, unbounded
from difftilt.errors import InputError
from difftilt.tasks.control.data import OfflineData


def table(lengths: list[int], generator: torch.Generator | None = None) -> OfflineData:
    """Episodes of the given lengths, the even ones terminated; rewards are the row numbers."""
    generator = generator or torch.Generator().manual_seed(0)
    rows = sum(lengths)
    ends = torch.cat([torch.arange(1, n + 1) == n for n in lengths])
    even = torch.cat([torch.full((n,), i % 2 == 0) for i, n in enumerate(lengths)])
    states = torch.randn(rows + 1, 3, generator=generator)
    actions = 2 * torch.rand(rows, 2, generator=generator) - 1
    rewards = torch.arange(rows).float()
    return OfflineData(
        "Toy-v0", states[:-1], actions, rewards, states[1:], ends & even, ends & ~even
    )


def columns(data: OfflineData, **changed: object) -> dict[str, object]:
    names = ("observations", "actions", "rewards", "next_observations")
    found = {name: getattr(data, name) for name in (*names, "terminations", "truncations")}
    return {"environment": data.environment, **found, **changed}


@given(st.lists(st.integers(1, 6), min_size=2, max_size=8), st.integers(0, 10))
def test_a_split_shares_the_episodes_out_whole(lengths: list[int], seed: int) -> None:
    data = table(lengths)
    train, heldout = data.split(0.3, seed)
    assert train.episodes + heldout.episodes == data.episodes == len(lengths)
    both = torch.cat([train.rewards, heldout.rewards])
    assert both.sort().values.equal(data.rewards)  # every transition once
    kept = {tuple(part.tolist()) for part in data.rewards.split(lengths)}
    for part in (train, heldout):
        assert {tuple(p.tolist()) for p in part.rewards.split(part.lengths.tolist())} <= kept


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_returns_and_lengths_are_those_of_each_episode(lengths: list[int]) -> None:
    data = table(lengths)
    assert data.lengths.tolist() == lengths
    assert data.returns.tolist() == [part.sum().item() for part in data.rewards.split(lengths)]


def test_the_best_episodes_are_those_with_the_largest_returns() -> None:
    data = table([4, 1, 3, 2])  # returns 6, 4, 18, 17
    assert data.best(0.5).returns.tolist() == [18, 17]
    assert data.best(0.01).returns.tolist() == [18]
    assert len(data.best(1.0)) == len(data)


def test_an_unfinished_last_episode_is_an_episode() -> None:
    data = table([2, 3])
    cut = data.where(torch.arange(5) < 4)
    assert cut.episodes == 2 and not cut.truncations[-1] and cut.ends[-1]


def test_normalised_observations_have_mean_0_and_deviation_1() -> None:
    data = table([40, 60])
    scaled = data.normalised(data.observations)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(3))


def test_a_constant_observation_is_not_divided_by_zero() -> None:
    data = table([5])
    constant = torch.ones(5, 3)
    steady = OfflineData(**columns(data, observations=constant, next_observations=constant))
    assert steady.normalised(constant).equal(torch.zeros(5, 3))


WRONG = {
    "observations of transition 2 are not finite": {"observations": (2, 0, float("nan"))},
    "actions of transition 1 are not finite": {"actions": (1, 1, float("inf"))},
    "an action has the size 1.5": {"actions": (0, 0, -1.5)},
}


@pytest.mark.parametrize("message", WRONG)
def test_values_out_of_range_are_named(message: str) -> None:
    data = table([4])
    [(name, (row, column, value))] = WRONG[message].items()
    broken = getattr(data, name).clone()
    broken[row, column] = value
    with pytest.raises(InputError, match=message):
        OfflineData(**columns(data, **{name: broken}))


@pytest.mark.parametrize("bound", ["clip", "tanh"])
def test_actions_rounded_over_a_bound_are_put_on_it(bound: Bound) -> None:
    data = table([4])
    actions = data.actions.clone()
    actions[0, 0], actions[2, 1] = 1.0009, -1.0009
    found = OfflineData(**columns(data, actions=actions))
    assert found.actions[0, 0] == 1 and found.actions[2, 1] == -1
    inside = actions.abs() <= 1
    assert found.actions[inside].equal(actions[inside])
    assert unbounded(found.actions, bound).isfinite().all()


SHAPES = {
    "rewards": (torch.zeros(0), "rewards are \\(0,\\)"),
    "actions": (torch.zeros(3, 2), "actions are \\(3, 2\\); give \\(4, width\\)"),
    "observations": (torch.zeros(4, 5), "next observations \\(4, 3\\)"),
    "terminations": (torch.zeros(3, dtype=torch.bool), "terminations are \\(3,\\)"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_dimensions_are_named(name: str, unchecked: None) -> None:
    value, message = SHAPES[name]
    with pytest.raises(InputError, match=message):
        OfflineData(**columns(table([4]), **{name: value}))


def test_shares_and_choices_out_of_range_are_refused() -> None:
    data = table([2, 2])
    for share in (0.0, 1.0, -0.5):
        with pytest.raises(InputError, match="share="):
            data.split(share)
    with pytest.raises(InputError, match="share=0 must be"):
        data.best(0)
    with pytest.raises(InputError, match="episodes 0 to 1"):
        data.of_episodes([2])
