"""The recipe of offline control on a real environment: one small run from data to evaluation."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from difftilt.adapters.foreign_policies import LAYOUTS
from difftilt.adapters.policies import DiffusionPolicy, load_policy, new_policy
from difftilt.adapters.policy_config import PolicyConfig
from difftilt.cli import main
from difftilt.errors import CheckpointError, InputError
from difftilt.models.residual import ResidualSize
from difftilt.recipes.control.bench import ControlBench, control_row
from difftilt.recipes.control.methods import control_plan
from difftilt.recipes.control.parts import Parts, build_setting
from difftilt.recipes.control.recipe import Control, first_reset
from difftilt.recipes.run import load_run, run
from difftilt.tasks.control.acting import acting
from difftilt.tasks.control.behaviour import fit_behaviour
from difftilt.tasks.control.critics import CriticOptions
from difftilt.tasks.control.data import OfflineData, load_data
from difftilt.tasks.control.episodes import Episode
from difftilt.tasks.control.evaluation import evaluate
from difftilt.tasks.control.fitting import Fit
from difftilt.tasks.control.stored import load_critic, place, save_critic
from difftilt.values.kernel import ValueKernel

gymnasium = pytest.importorskip("gymnasium")
for package in ("minari", "mujoco", "diffusers"):
    pytest.importorskip(package)
pytestmark = pytest.mark.usefixtures("unchecked")

ENVIRONMENT = "InvertedPendulum-v5"
PARTS = Parts(
    steps=4,
    size=ResidualSize(width=16, blocks=1, expansion=2, embedding=8),
    cloning=Fit(40, 64, 3e-3),
    critic_options=CriticOptions(width=16, fit=Fit(40, 64, 3e-3)),
    nats=0.5,
    support=4,
    support_states=40,
    held_out=0.25,
    draws=3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve episodes of uniform actions, in Minari's format."""
    from difftilt.tasks.control.minari_files import Stored, write_episodes

    place = tmp_path_factory.mktemp("data") / "pendulum" / "data"
    episodes = [random_episode(seed) for seed in range(12)]
    write_episodes(place, "test/pendulum-v0", Stored(ENVIRONMENT, episodes))
    return place.parent


def random_episode(seed: int) -> Episode:
    game, generator = gymnasium.make(ENVIRONMENT), torch.Generator().manual_seed(seed)
    seen, actions, rewards, over = [game.reset(seed=seed)[0]], [], [], False
    while not over:
        action = 2 * torch.rand(1, generator=generator).numpy() - 1
        state, reward, over, _, _ = game.step(action * game.action_space.high)
        seen.append(state)
        actions.append(action)
        rewards.append(reward)
    return Episode(numpy.stack(seen), numpy.stack(actions), numpy.array(rewards), True)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("DIFFTILT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recipe(folder: Path) -> Control:
    plan = replace(control_plan(3), batch=16, paths_per_condition=4)
    return Control(
        data=str(folder),
        parts=PARTS,
        episodes=2,
        contexts=2,
        samples=4,
        certificate_paths=256,
        training=plan,
    )


def test_a_run_goes_from_data_to_returns(folder: Path, cache: Path, tmp_path: Path):
    out, said = tmp_path / "run", []
    assert run("control", recipe(folder), out, talk=said.append)
    table = json.loads((out / "evaluation.json").read_text())
    rows = {row["name"]: row for row in table["rows"]}
    for name in ("return", "mean log r"):
        assert all(isinstance(rows[name][k], float) for k in ("prior", "posterior"))
    assert rows["return"]["prior"] >= 1
    assert "2 episodes" in rows["return"]["note"]
    certificate = json.loads((out / "certificate.json").read_text())
    assert len(certificate["each"]) == 2 if "each" in certificate else certificate["text"]
    kept = {f.name: f.stat().st_mtime_ns for f in (cache / "control").glob("*/*")}
    again, job = load_run(out)
    assert again == recipe(folder)
    assert {f.name: f.stat().st_mtime_ns for f in (cache / "control").glob("*/*")} == kept
    action = job.posterior.given(load_data(folder).observations[:4]).sample(4)
    assert action.shape == (4, 1) and float(action.abs().max()) <= 1


def test_a_guided_run_for_every_beta_is_played_at_two(folder: Path, cache: Path, tmp_path: Path):
    parts, out = replace(PARTS, beta=0.5), tmp_path / "run"
    guided = replace(recipe(folder), method="qgpo", parts=parts, guidance_scale=1.5)
    said: list[str] = []
    run("control", replace(guided, largest_beta=2.0), out, talk=said.append)
    rows = {row["name"]: row for row in json.loads((out / "evaluation.json").read_text())["rows"]}
    for beta in ("0.5", "2"):
        assert 0 < rows[f"ESS at β = {beta}"]["posterior"] <= 1
        assert rows[f"return at β = {beta}"]["posterior"] >= 1
    assert rows["return"]["posterior"] == rows["return at β = 0.5"]["posterior"]
    _, job = load_run(out)
    kernel = job.posterior.chain.kernel
    assert isinstance(kernel, ValueKernel)
    assert (kernel.scale, kernel.beta, kernel.value.largest_beta) == (1.5, 0.5, 2.0)
    with pytest.raises(InputError, match=r"knows β in \(0, 0\.1"):
        replace(guided, largest_beta=0.1).job()
    for option in ({"guidance_scale": 2.0}, {"largest_beta": 2.0}):
        with pytest.raises(InputError, match="are of the guided method, qgpo, and not of rtb"):
            replace(recipe(folder), **option).job()


@pytest.mark.parametrize("method", ["rtb", "qgpo", "idql"])
def test_a_row_of_the_bench(folder: Path, cache: Path, method: str):
    bench = ControlBench([str(folder)], [method], [1], 2, 2, PARTS)
    row = control_row(bench, str(folder), method, 1)
    assert row["seed"] == 1 and row["method"] == method
    assert row["return"] >= 1 and row["action_ms"] > 0 and row["seconds"] >= 0
    assert (row["ess"] is None) == (method == "idql")


@pytest.mark.parametrize("episodes", [1, 10])
def test_no_two_seeds_play_an_episode_in_common(episodes: int):
    resets = [first_reset(seed, episodes) + i for seed in range(5) for i in range(episodes)]
    assert len(set(resets)) == len(resets) == 5 * episodes


def test_a_row_plays_the_episodes_of_its_seed(folder: Path, cache: Path):
    """The behaviour's return is that of a plain evaluation from the seed's first reset."""
    bench = ControlBench([str(folder)], ["bc"], [2], 2, 3, PARTS)
    row = control_row(bench, str(folder), "bc", 2)
    setting = build_setting(load_data(folder), replace(PARTS, seed=2))
    policy = acting(setting.target.prior.chain, setting.policy.decode, draws=3)
    assert row["return"] == evaluate(ENVIRONMENT, policy, 3, first_reset(2, 3)).mean


def test_parts_are_made_again_for_another_seed_and_found_for_the_same(folder, cache):
    data = load_data(folder)
    said: list[str] = []
    first = build_setting(data, PARTS, said.append)
    assert sum("cloning" in s or "learning" in s for s in said) == 2
    again = build_setting(data, PARTS, said.append)
    assert sum("cloning" in s or "learning" in s for s in said) == 2
    assert again.policy.fingerprint == first.policy.fingerprint
    assert again.target.beta == first.target.beta
    assert torch.equal(again.sources.data, first.sources.data)
    other = build_setting(data, replace(PARTS, seed=4), said.append)
    assert sum("cloning" in s or "learning" in s for s in said) == 4
    assert other.policy.fingerprint != first.policy.fingerprint
    weights = (each.critic.modules().state_dict() for each in (first, other))
    assert not torch.equal(*(state["value.layers.0.weight"] for state in weights))
    held, seen = first.held_out, first.data
    assert len(held) + len(seen) == len(data)
    states = {tuple(row) for row in seen.observations.tolist()}
    assert not any(tuple(row) in states for row in first.held_out_states(20).tolist())


def test_the_in_support_critic_has_its_own_place(folder, cache):
    data = load_data(folder)
    iql = build_setting(data, PARTS)
    own = build_setting(data, replace(PARTS, critic="in_support"))
    states, actions = data.observations[:5], data.actions[:5]
    assert not torch.equal(iql.critic.q(states, actions), own.critic.q(states, actions))
    assert len(list((cache / "control").glob("critic-*"))) == 2


def test_a_critic_on_disk_is_the_same_and_a_broken_one_is_named(folder, cache, tmp_path):
    data = load_data(folder)
    critic = build_setting(data, PARTS).critic
    save_critic(critic, tmp_path / "critic")
    again = load_critic(tmp_path / "critic")
    states, actions = data.observations[:5], data.actions[:5]
    assert torch.equal(again.advantage(states, actions), critic.advantage(states, actions))
    assert again.reward_scale == critic.reward_scale
    (tmp_path / "critic" / "critic.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no readable critic"):
        load_critic(tmp_path / "critic")
    assert place("critic", {"a": 1}) != place("critic", {"a": 2})


def test_scores_need_references_and_returns_do_not(folder, cache):
    """The pendulum has none: a row of plain returns alone."""
    bench = ControlBench([str(folder)], ["bc"], [0], 2, 2, PARTS)
    assert control_row(bench, str(folder), "bc", 0)["score"] is None
    assert isinstance(load_data(folder), OfflineData)


def renamed(folder: Path, place: Path, environment: str) -> Path:
    """A copy of a data set that says it is of another environment."""
    shutil.copytree(folder, place)
    file = place / "data" / "metadata.json"
    file.write_text(file.read_text().replace(ENVIRONMENT, environment))
    return place


@pytest.mark.parametrize(
    ("environment", "remark"),
    [
        ("Nowhere-v0", "gymnasium cannot make 'Nowhere-v0'"),
        ("Hopper-v5", "observations of 4 numbers and actions of 1, but Hopper-v5 has"),
    ],
)
def test_an_environment_that_does_not_fit_is_named_before_anything_is_fitted(
    folder: Path, cache: Path, tmp_path: Path, environment: str, remark: str
):
    place = renamed(folder, tmp_path / "renamed", environment)
    with pytest.raises(InputError, match=remark):
        recipe(place).job()
    bench = ControlBench([str(place)], ["bc"], [0], 2, 2, PARTS)
    with pytest.raises(InputError, match=remark):
        control_row(bench, str(place), "bc", 0)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("changed", "remark"),
    [
        ({"steps": 0}, "steps=0 of the parts must be 1 to 1000"),
        ({"bound": "tahn"}, "bound='tahn' of the parts is unknown; choose clip or tanh"),
        ({"critic": "another"}, "critic='another' of the parts is unknown"),
        ({"expectile": 2.0}, "expectile=2.0"),
        ({"trace": 2.0}, "trace=2.0"),
        ({"draws": 0}, "draws=0 of the parts must be at least 1"),
        ({"backup_beta": 0.0}, "backup_beta=0.0"),
        ({"nats": 5.0}, r"nats=5.0 must lie in \(0, 2.08\]"),
        ({"beta": 0.0}, "beta=0.0 of the parts must be positive"),
        ({"support": 1}, "support=1 of the parts must be at least 2"),
        ({"support_states": 0}, "support_states=0"),
        ({"held_out": 1.0}, "held_out=1.0"),
    ],
)
def test_parts_out_of_range_are_refused_where_they_are_made(changed: dict, remark: str):
    with pytest.raises(InputError, match=remark):
        replace(PARTS, **changed)
    assert replace(PARTS, beta=2.0, nats=5.0).beta == 2.0


def test_a_ready_policy_takes_the_clones_place(folder, cache, tmp_path):
    """As a folder and as another library's weights, measured on the data; the rest is as ever."""
    data = load_data(folder)
    seen, _ = data.split(PARTS.held_out, 0)
    made = fit_behaviour(seen, PolicyConfig(4, 1, PARTS.size, bound="tanh"), Fit(150, 128, 5e-3))
    kept = str(replace(made, error=None).save(tmp_path / "policy"))
    setting = build_setting(data, replace(PARTS, policy=kept))
    assert setting.policy.fingerprint == made.fingerprint
    assert setting.policy.config.bound == "tanh"
    assert not list((cache / "control").glob("policy-*"))
    assert made.error is not None and setting.policy.error is not None
    assert torch.allclose(setting.policy.error, made.error, atol=0.1)
    stds = [p.chain(4).gaussian.tables.std[1:] for p in (setting.policy, load_policy(kept))]
    assert bool((stds[0] > stds[1]).all())
    support = setting.policy.decode(setting.sources.data)
    assert float(support.abs().max()) <= 1
    weights = tmp_path / "weights.pt"
    torch.save(as_cleandiffuser(made), weights)
    bench = ControlBench([str(folder)], ["bc"], [0], 2, 2, replace(PARTS, policy=str(weights)))
    assert control_row(bench, str(folder), "bc", 0)["return"] >= 1


def as_cleandiffuser(policy: DiffusionPolicy) -> dict[str, torch.Tensor]:
    """The weights of a policy as that library names them, standardisation in the first layer."""
    state = dict(policy.network.state_dict())
    spread, centre = state.pop("spread"), state.pop("centre")
    first = state["first.weight"].clone()
    first[:, -len(spread) :] /= spread
    state["first.bias"] = state["first.bias"] - first[:, -len(spread) :] @ centre
    state["first.weight"] = first
    names = [
        (ours.replace("{k}", "0"), theirs) for ours, theirs in LAYOUTS["cleandiffuser"].items()
    ]
    return {
        f"{theirs.replace('{k}', '0')}.{part}": state[f"{ours}.{part}"]
        for ours, theirs in names
        for part in ("weight", "bias")
    }


def test_a_ready_policy_that_does_not_fit_is_one_sentence(folder, cache, tmp_path, capsys):
    data = load_data(folder)
    narrow = new_policy(PolicyConfig(3, 1, PARTS.size)).save(tmp_path / "narrow")
    untrained = new_policy(PolicyConfig(4, 1, PARTS.size)).save(tmp_path / "untrained")
    for source, remark in (
        (narrow, "reads states of 3 numbers and makes actions of 1, and the data has 4 and 1"),
        (untrained, "mistakes pure noise by"),
        (tmp_path / "nowhere", "there is no policy at"),
    ):
        with pytest.raises(InputError, match=remark):
            build_setting(data, replace(PARTS, policy=str(source)))
        words = ["train", "control", "--data", str(folder), "--parts.policy", str(source)]
        with pytest.raises(SystemExit) as end:
            main([*words, "--out", str(tmp_path / "run")])
        error = capsys.readouterr().err
        assert end.value.code == 2 and remark in error and "Traceback" not in error


def test_wrong_words_are_one_sentence(capsys):
    for words, remark in (
        (["bench", "control"], "name at least one data set"),
        (["bench", "control", "--data", "x", "--method", "magic"], "unknown method 'magic'"),
        (["bench", "control", "--data", "x", "--updates", "0"], "updates=0 must be at least 1"),
        (["bench", "control", "--data", "x", "--episodes", "0"], "episodes=0 must be at least 1"),
        (["bench", "control", "--data", "x", "--parts.support", "1"], "support=1"),
        (["train", "control", "--episodes", "0"], "episodes=0 must be at least 1"),
        (["train", "control", "--contexts", "0"], "contexts=0 must be at least 1"),
        (["train", "control", "--parts.size.embedding", "7"], "embedding=7 of the time"),
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert remark in error and "Traceback" not in error
