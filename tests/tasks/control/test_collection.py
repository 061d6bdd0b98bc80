"""Our data sets are made again the same, and survive Minari's format; broken files are named."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from minari.serialization import serialize_space
from safetensors.torch import save_file

from difftilt.errors import CheckpointError, InputError, MissingPackage
from difftilt.tasks.control.agents import MAZE, MazeWalker, Noisy, Uniform, agents, load_linear
from difftilt.tasks.control.collection import (
    DATA_SETS,
    ENVIRONMENTS,
    LOUD,
    Mixture,
    Share,
    collect,
    made,
    mixture,
)
from difftilt.tasks.control.data import from_episodes, load_data
from difftilt.tasks.control.episodes import Episode
from difftilt.tasks.control.evaluation import evaluate
from difftilt.tasks.control.minari_files import Stored, read_episodes, write_episodes

NAME = "hopper-medium-replay"
SMALL = Mixture("Hopper-v5", (Share(0, 0.3, 40), Share(1, 0.05, 40)))


@pytest.fixture(scope="module")
def played() -> list[Episode]:
    return collect(SMALL)


@pytest.fixture
def folder(tmp_path: Path, played: list[Episode]) -> Path:
    place = tmp_path / "difftilt" / "small-v0"
    write_episodes(place / "data", "difftilt/small-v0", Stored("Hopper-v5", played), "a test")
    return place


def test_collection_is_repeated_to_the_bit(played: list[Episode]) -> None:
    for one, other in zip(played, collect(SMALL), strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.actions, other.actions)


def test_another_seed_plays_other_episodes(played: list[Episode]) -> None:
    other = collect(Mixture(SMALL.environment, SMALL.shares, seed=1))
    assert not np.array_equal(played[0].observations[0], other[0].observations[0])


def test_what_minari_reads_is_what_was_played(folder: Path, played: list[Episode]) -> None:
    stored = read_episodes(folder)
    assert stored.environment == "Hopper-v5"
    for one, other in zip(played, stored.episodes, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)  # rounded before it was played
        np.testing.assert_allclose(one.observations, other.observations, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(one.rewards, other.rewards, rtol=1e-6)
        assert one.terminated == other.terminated


def test_minari_finds_the_folder_by_its_id(
    folder: Path, played: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder.parent.parent))
    dataset: Any = minari.load_dataset("difftilt/small-v0")
    assert dataset.total_episodes == len(played)
    assert dataset.spec.env_spec.id == "Hopper-v5"
    assert load_data("difftilt/small-v0").episodes == len(played)


def test_replaying_the_stored_actions_gives_the_stored_rewards(played: list[Episode]) -> None:
    import gymnasium

    environment = gymnasium.make("Hopper-v5")
    environment.reset(seed=0)  # the first seed of the first share
    rewards = [environment.step(action.astype(np.float32))[1] for action in played[0].actions]
    np.testing.assert_allclose(rewards, played[0].rewards, rtol=1e-9)


def test_the_table_keeps_next_observations_and_ends(folder: Path, played: list[Episode]) -> None:
    data = load_data(folder)
    assert data.lengths.tolist() == [len(episode) for episode in played]
    inside = ~data.ends[:-1]
    assert data.next_observations[:-1][inside].equal(data.observations[1:][inside])
    over = [episode.terminated for episode in played]
    assert data.terminations[data.ends].tolist() == over
    assert data.truncations[data.ends].tolist() == [not one for one in over]
    wanted = torch.tensor([episode.rewards.sum() for episode in played]).float()
    torch.testing.assert_close(data.returns, wanted)


def test_a_named_data_set_is_made_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFTILT_CACHE", str(tmp_path))
    place = made(NAME, transitions=60)
    assert tmp_path in place.parents
    written = (place / "data" / "main_data.hdf5").stat().st_mtime_ns
    assert made(NAME, transitions=60) == place
    assert (place / "data" / "main_data.hdf5").stat().st_mtime_ns == written
    assert made(NAME, transitions=70) != place
    with h5py.File(place / "data" / "main_data.hdf5") as file:
        assert file["episode_0/observations"].dtype == np.float16
        assert file["episode_0/actions"].dtype == np.float16


def test_a_relative_cache_keeps_what_was_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFTILT_CACHE", "cache")
    place = made(NAME, transitions=60)
    assert place.resolve().is_relative_to(tmp_path)
    assert read_episodes(place).environment == "Hopper-v5"


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Discrete(4),
        gymnasium.spaces.MultiBinary(3),
        gymnasium.spaces.Dict({"door": gymnasium.spaces.Discrete(4)}),
        gymnasium.spaces.Tuple([gymnasium.spaces.Box(-1, 1, (2,))]),
    ],
)
def test_observations_that_are_no_box_are_named(folder: Path, space: Any) -> None:
    file = folder / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["observation_space"] = serialize_space(space)
    file.write_text(json.dumps(metadata))
    kind = next(iter(space.values())) if isinstance(space, gymnasium.spaces.Dict) else space
    with pytest.raises(InputError, match="observations of Hopper-v5") as refused:
        read_episodes(folder)
    assert str(kind) in str(refused.value)


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_mixtures_are_what_their_names_say(name: str) -> None:
    recipe = mixture(name, transitions=1200)
    last = len(agents(recipe.environment)) - 1
    used = {share.agent for share in recipe.shares}
    wanted = {"medium": {last - 1}, "medium-expert": {last - 1, last}}
    assert used == wanted.get(name.split("-", 1)[1], set(range(last)))
    assert abs(sum(share.transitions for share in recipe.shares) - 1200) <= 2 * last


@pytest.mark.parametrize("environment", sorted(ENVIRONMENTS.values()))
def test_agents_go_from_worst_to_best(environment: str) -> None:
    chain = agents(environment)
    worst, medium, best = (
        evaluate(environment, chain[index], episodes=2, seed=3) for index in (0, -2, -1)
    )
    assert worst.mean < medium.mean < best.mean


def test_noise_has_the_stated_deviation_and_stays_in_range(generator: torch.Generator) -> None:
    still = Noisy(lambda o, g: torch.zeros(len(o), 2), LOUD)
    actions = still(torch.zeros(20_000, 4), generator)
    # The deviation of 40,000 normals has the standard error LOUD / √80,000; 5 of them.
    assert abs(actions.std().item() - LOUD) < 5 * LOUD / 80_000**0.5 + 1e-3
    assert actions.abs().max() <= 1
    assert actions.equal(actions.half().float())
    assert Uniform(2)(torch.zeros(1000, 4), generator).abs().max() <= 1


def test_the_maze_walker_follows_the_shortest_way() -> None:
    walker = MazeWalker(MAZE, 10.0, 2.0)
    ways = walker._ways((1, 1))
    assert ways[(3, 1)] == (3, 2) and ways[(2, 3)] == (1, 3) and ways[(1, 2)] == (1, 1)
    assert not any(walker.maze.maze_map[row][column] == 1 for row, column in ways)


def test_an_unknown_name_is_refused() -> None:
    for name in ("halfcheetah-expert", "nothing"):
        with pytest.raises(InputError, match=f"no data set is called '{name}'; choose one of half"):
            load_data(name)
    with pytest.raises(InputError, match="no data set is called 'ant-medium'"):
        mixture("ant-medium")
    with pytest.raises(InputError, match="transitions=3"):
        mixture(NAME, transitions=3)
    with pytest.raises(InputError, match="no agents are shipped for 'Ant-v5'"):
        agents("Ant-v5")


def test_a_download_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(minari, "load_dataset", no_network)
    with pytest.raises(CheckpointError, match="Minari cannot download D4RL/maze/none-v9"):
        load_data("D4RL/maze/none-v9")


def test_a_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(MissingPackage, match=r"pip install 'difftilt\[control\]'"):
        load_data(folder)


def test_broken_files_are_named(folder: Path, tmp_path: Path) -> None:
    def broken(change: Any) -> Path:
        copy = tmp_path / "broken"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder / "data", copy)
        change(copy)
        return copy

    def shorten(copy: Path) -> None:
        file = copy / "main_data.hdf5"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def without_spaces(copy: Path) -> None:
        metadata = json.loads((copy / "metadata.json").read_text())
        del metadata["action_space"]
        (copy / "metadata.json").write_text(json.dumps(metadata))

    changes = {
        "OSError": shorten,
        "its metadata lack action_space": without_spaces,
        "metadata.json:": lambda copy: (copy / "metadata.json").write_text("{"),
        "it has no metadata.json": lambda copy: (copy / "metadata.json").unlink(),
        "ValueError|FileNotFoundError": lambda copy: (copy / "main_data.hdf5").unlink(),
    }
    for message, change in changes.items():
        with pytest.raises(CheckpointError, match=message):
            load_data(broken(change))


def test_values_out_of_range_in_a_file_are_named(folder: Path) -> None:
    def spoiled(column: str, value: float) -> None:
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            file[f"episode_1/{column}"][2] = value

    spoiled("actions", 1.5)
    with pytest.raises(InputError, match=r"Hopper-v5: an action has the size 1\.5"):
        load_data(folder)
    spoiled("actions", 0.5)
    spoiled("observations", float("nan"))
    with pytest.raises(InputError, match="observations of transition"):
        load_data(folder)


def test_columns_of_different_lengths_are_named(folder: Path) -> None:
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        rewards = file["episode_0/rewards"][:-1]
        del file["episode_0/rewards"]
        file["episode_0/rewards"] = rewards
    with pytest.raises(InputError, match=r"episode 0 has \d+ observations"):
        load_data(folder)


def test_observations_outside_their_own_space_are_named(folder: Path) -> None:
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    space = json.loads(metadata["observation_space"])
    space["low"] = [0.5] * len(space["low"])
    metadata["observation_space"] = json.dumps(space)
    (folder / "data" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="outside the bounds of the stored observation space"):
        load_data(folder)


def test_episodes_of_different_widths_are_refused(played: list[Episode]) -> None:
    other = Episode(np.zeros((2, 4)), np.zeros((1, 3)), np.zeros(1), True)
    with pytest.raises(InputError, match="different widths"):
        from_episodes(Stored("Hopper-v5", [played[0], other]))


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    file = tmp_path / "Hopper-v5.safetensors"
    file.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_linear(file)
    save_file({"matrix": torch.zeros(1, 3, 11)}, file)
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_linear(file)
