"""Playing many episodes at once is playing each alone; scores are 0 and 100 at the references."""

import math
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch

from difftilt.errors import InputError, MissingPackage
from difftilt.tasks.control import environments, evaluation
from difftilt.tasks.control.agents import MAZE, Uniform, agents
from difftilt.tasks.control.environments import Scale, flat_observations, make_environment
from difftilt.tasks.control.episodes import copies, play
from difftilt.tasks.control.evaluation import Returns, evaluate, normalised, rendered_episode
from difftilt.tasks.control.references import references


def still(observations: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Hopper's joints left alone: it falls within a hundred steps."""
    return 0.3 * torch.tanh(observations[:, :3])


def test_evaluate_is_a_plain_loop_over_single_environments() -> None:
    found = evaluate("Hopper-v5", still, episodes=4, seed=7)
    returns, lengths = [], []
    for seed in (7, 8, 9, 10):
        environment = gymnasium.make("Hopper-v5")
        observation, _ = environment.reset(seed=seed)
        total, steps, over = 0.0, 0, False
        while not over:
            action = 0.3 * np.tanh(observation[:3].astype(np.float32))
            observation, reward, terminated, truncated, _ = environment.step(action)
            total, steps, over = total + float(reward), steps + 1, terminated or truncated
        returns.append(total)
        lengths.append(steps)
    assert found.lengths.tolist() == lengths
    assert len(set(lengths)) > 1  # the episodes do end at different times
    np.testing.assert_allclose(found.returns.numpy(), returns, rtol=1e-4)


def test_the_number_of_copies_changes_no_episode_of_a_deterministic_policy() -> None:
    generator = torch.Generator().manual_seed(0)
    alone, together = (
        play(copies("Hopper-v5", count), still, range(3), generator) for count in (1, 3)
    )
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.rewards, other.rewards)
        np.testing.assert_array_equal(one.observations, other.observations)


def test_a_seed_repeats_a_policy_that_draws() -> None:
    noisy = agents("Hopper-v5")[0]
    first, again, other = (evaluate("Hopper-v5", noisy, 2, seed) for seed in (0, 0, 1))
    assert first.returns.equal(again.returns) and not first.returns.equal(other.returns)


@pytest.mark.parametrize("name", sorted(references()))
def test_scores_are_0_at_random_and_100_at_the_expert(name: str) -> None:
    known = references()[name]
    ends = torch.tensor([known.random, known.expert, (known.random + known.expert) / 2])
    torch.testing.assert_close(normalised(name, ends), torch.tensor([0.0, 100.0, 50.0]))
    assert known.expert - known.random > 10 * math.hypot(known.expert_error, known.random_error)


def test_the_table_is_what_its_random_agent_returns() -> None:
    # 5 standard errors of the difference: a false alarm in less than 1 of 10,000 such tests.
    known = references()["Hopper-v5"]
    found = evaluate("Hopper-v5", agents("Hopper-v5")[0], episodes=40, seed=500)
    gap = 5 * math.hypot(found.standard_error, known.random_error)
    assert abs(found.mean - known.random) < gap


def test_errors_of_the_mean() -> None:
    name = sorted(references())[0]
    some = Returns(name, torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.ones(4, dtype=torch.long))
    assert some.mean == 3.0
    assert some.standard_error == pytest.approx(math.sqrt(14 / 3 / 4))
    scale = 100 / (references()[name].expert - references()[name].random)
    assert some.score_standard_error == pytest.approx(scale * some.standard_error, rel=1e-4)
    assert math.isnan(Returns(name, torch.ones(1), torch.ones(1, dtype=torch.long)).standard_error)


def test_actions_are_mapped_to_the_bounds_and_back() -> None:
    scale = Scale(np.array([-0.4, 0.0]), np.array([0.4, 3.0]))
    actions = np.array([[-1.0, 1.0], [0.0, 0.0], [0.5, -0.5]])
    inside = scale.from_unit(actions)
    np.testing.assert_allclose(inside, [[-0.4, 3.0], [0.0, 1.5], [0.2, 0.75]])
    np.testing.assert_allclose(scale.to_unit(inside), actions, atol=1e-12)
    np.testing.assert_allclose(scale.from_unit(np.array([[9.0, -9.0]])), [[0.4, 0.0]])


def test_goal_observations_are_flat_in_gymnasium_order() -> None:
    environments.require("gymnasium_robotics", "control")
    plain = gymnasium.make(MAZE)
    rows = [plain.reset(seed=seed)[0] for seed in range(3)]
    stacked = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    flat = flat_observations(plain.observation_space, stacked)
    wanted = [gymnasium.spaces.flatten(plain.observation_space, row) for row in rows]
    np.testing.assert_array_equal(flat, wanted)
    np.testing.assert_array_equal(make_environment(MAZE).reset(seed=0)[0], flat[0])


@pytest.mark.parametrize("name", ["Hoper-v5", "Hopper-v99", "nowhere/Hopper-v5", "not an id"])
def test_a_missing_environment_is_named(name: str) -> None:
    with pytest.raises(InputError, match="gymnasium cannot make"):
        evaluate(name, still)


def test_actions_must_be_a_bounded_box() -> None:
    with pytest.raises(InputError, match=r"CartPole-v1 are Discrete\(2\)"):
        make_environment("CartPole-v1")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gymnasium", None)
    with pytest.raises(MissingPackage, match=r"pip install 'difftilt\[control\]'"):
        evaluate("Hopper-v5", still)


def test_a_dependency_that_the_environment_lacks_is_named() -> None:
    with (
        pytest.warns(DeprecationWarning, match="out of date"),
        pytest.raises(MissingPackage, match="Hopper-v2 cannot be made here"),
    ):
        evaluate("Hopper-v2", still)


def test_actions_of_a_wrong_shape_or_not_finite_are_refused() -> None:
    for width, value in ((2, 0.0), (3, math.nan)):
        with pytest.raises(InputError, match=r"give finite \(1, 3\)"):
            evaluate("Hopper-v5", lambda o, g, w=width, v=value: torch.full((len(o), w), v), 1)
    with pytest.raises(InputError, match="episodes=0"):
        evaluate("Hopper-v5", still, episodes=0)


def test_scores_of_an_unknown_environment_are_refused() -> None:
    with pytest.raises(InputError, match="no reference returns are known for 'Ant-v5'"):
        normalised("Ant-v5", torch.ones(2))


class Told(gymnasium.Env):
    """Says and shows, as a shade of grey, what was done last; later resets end sooner."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 25}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.last, self.left = np.zeros(1, np.float32), 8 - (seed or 0)
        return self.last, {}

    def step(self, action: np.ndarray):
        self.last, self.left = action.astype(np.float32), self.left - 1
        return self.last, 0.0, self.left <= 0, False, {}

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), round(127 * (1 + float(self.last[0]))), np.uint8)


@pytest.mark.parametrize("episodes", [1, 3])
def test_what_is_drawn_is_the_first_episode_of_the_evaluation(episodes: int) -> None:
    """Of a policy that draws, some episodes of which end before the first."""
    imageio = evaluation.require("imageio", "control")
    gymnasium.register("Told-v0", Told)
    policy = Uniform(1)
    try:
        generator = torch.Generator().manual_seed(0)
        first = play(copies("Told-v0", episodes), policy, range(episodes), generator)[0]
        frames = imageio.mimread(rendered_episode("Told-v0", policy, episodes=episodes))
    finally:
        del gymnasium.registry["Told-v0"]
    wanted = [round(127 * (1 + float(seen))) for seen in first.observations[:-1:2, 0]]
    assert [int(frame[0, 0, 0]) for frame in frames] == wanted


# What draws frees a context that it failed to make, where nothing can draw.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_gif_shows_the_first_steps_or_says_why_not() -> None:
    """With a library that draws without a screen there are frames; without, one sentence."""
    try:
        content = rendered_episode("Hopper-v5", still, steps=4, side=120)
    except MissingPackage as error:
        assert "set MUJOCO_GL to egl or osmesa" in str(error)
        return
    imageio = evaluation.require("imageio", "control")
    frames = imageio.mimread(content)
    assert len(frames) == 2 and frames[0].shape[:2] == (120, 120)
