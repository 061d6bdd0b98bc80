"""Bad input ends in one sentence on stderr and exit code 2, and leaves no run behind."""

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import difftilt
from tiny_pipelines import tiny

REWARDS = {
    "float": "return float(x_0.mean())",
    "raises": "raise KeyError('no such class')",
    "nan": "return x_0.flatten(1).mean(1) * float('nan')",
    "shape": "return x_0.flatten(2).mean(2).expand(-1, 3)",
    "infinite": "return x_0.flatten(1).mean(1) + float('inf')",
    "above": "return 1 + x_0.flatten(1).mean(1) * 0",
}


@pytest.fixture
def train(pair, tmp_path, refused):
    """Runs ``train custom`` with changed options; returns the refusal and checks the folder."""

    def run(*changes: object) -> str:
        folder = tmp_path / "refused"
        sentence = refused("train", "custom", *pair, "--out", folder, *changes)
        assert not folder.exists()
        return sentence

    return run


@pytest.fixture
def scheduler(studio, tmp_path):
    """A copy of the prior with a scheduler of another class or other settings."""

    def changed(name: str, **settings) -> Path:
        folder = Path(shutil.copytree(studio / "prior", tmp_path / "prior"))
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"][1] = name
        (folder / "model_index.json").write_text(json.dumps(index))
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "_class_name": name, **settings})
        )
        return folder

    return changed


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--beta 0", "beta must be a positive finite number, got 0"),
        ("--beta -1", "beta must be a positive finite number, got -1"),
        ("--beta nan", "beta must be a positive finite number, got nan"),
        ("--training.batch 1", "needs at least 2 paths in a batch, got batch=1"),
        ("--training.seconds 0", "seconds=0.0 is out of range: it must be a finite number above"),
        ("--training.network-calls 0", "network_calls=0 is out of range"),
        ("--training.seed 1180591620717411303424", "seed=1180591620717411303424 is out of range"),
        ("--eta 0", "no stochastic step"),
        ("--steps 0", "at least 1 step"),
        ("--prior /nowhere/prior", "no pipeline folder at /nowhere/prior"),
        ("--reward /nowhere/reward.py:log_reward", "/nowhere/reward.py"),
        ("--reward reward", "reward"),
    ],
)
def test_options_out_of_range(options, complaint, train):
    assert complaint in train(*options.split())


@pytest.mark.parametrize(
    ("table", "option", "sentence"),
    [
        ("exact", "--budget", "budget=0.0 is out of range"),
        ("exact", "--calls", "calls=0 is out of range"),
        ("images", "--calls", "calls=0 is out of range"),
        ("images", "--samples", "samples=0 is out of range"),
    ],
)
def test_a_bench_without_a_budget(table, option, sentence, refused):
    assert sentence in refused("bench", table, option, 0)


def test_a_prior_or_reward_left_out(refused):
    assert "needs --prior" in refused("train", "custom")


@pytest.mark.parametrize(
    ("mark", "sentence"),
    [
        ("config.json", "is a language model; fill in text from Python"),
        ("policy.json", "name it to difftilt train control --parts.policy"),
    ],
)
def test_a_prior_of_another_recipe(mark, sentence, train, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / mark).write_text("{}")
    assert sentence in train("--prior", tmp_path / "other")


def test_a_prior_that_reads_prompts(train, tmp_path):
    tiny("dit").save_pretrained(tmp_path / "other")
    assert "reads prompts; train it with difftilt train sd" in train("--prior", tmp_path / "other")


def test_a_scheduler_that_is_not_known(train, scheduler):
    sentence = train("--prior", scheduler("DPMSolverMultistepScheduler"))
    assert "unsupported scheduler DPMSolverMultistepScheduler; use one of DDPMScheduler" in sentence


def test_a_reward_that_is_not_there(train, studio):
    assert "no_such" in train("--reward", f"{studio / 'reward.py'}:no_such")


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("float", "float"),
        ("raises", "KeyError"),
        ("nan", "NaN"),
        ("shape", "(32, 3)"),
        ("infinite", "inf"),
        ("above", "bound"),
    ],
)
def test_rewards_that_break_the_contract(kind, complaint, train, tmp_path):
    file = tmp_path / f"{kind}.py"
    file.write_text(f"def log_reward(x_0):\n    {REWARDS[kind]}\n")
    sentence = train("--reward", f"{file}:log_reward")
    assert complaint in sentence
    assert "log_reward" in sentence


def test_a_list_of_floats_is_a_fine_reward(pair, tmp_path, difftilt_command):
    file = tmp_path / "listed.py"
    file.write_text("def log_reward(x_0):\n    return [-1.0 for _ in x_0]\n")
    ended = difftilt_command("doctor", "custom", *pair, "--reward", f"{file}:log_reward")
    assert ended.code == 0, ended.out + ended.err


@pytest.mark.parametrize("command", ["sample", "certify", "export"])
def test_a_folder_without_a_run(command, refused, tmp_path):
    more = [tmp_path / "out"] if command == "export" else []
    assert "there is no run in" in refused(command, tmp_path, *more)
    assert not list(tmp_path.iterdir())


def test_nothing_to_resume(pair, refused, tmp_path):
    sentence = refused("train", "custom", *pair, "--out", tmp_path / "new", "--resume")
    assert "there is no run in" in sentence


def test_a_folder_of_another_config(run, trained, refused):
    sentence = refused(*trained.words, "--out", run, "--resume", "--beta", 2)
    assert "config.beta is 1.0 there and 2.0 here" in sentence


def without_objective_name(config: dict) -> dict:
    del config["config"]["training"]["objective"]["name"]
    return config


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda config: [], "holds [] where the record of a run is meant"),
        (lambda config: None, "holds None where the record of a run is meant"),
        (lambda config: {"recipe": "custom"}, "holds None where the fields of Custom are meant"),
        (lambda config: {**config, "recipe": ["x"]}, "unknown recipe ['x']"),
        (without_objective_name, "names the objective None"),
        (lambda config: {**config, "config": {"beta": "x"}}, "holds beta='x', which is of another"),
        (lambda config: {**config, "config": {"training": 5}}, "holds 5 where the fields of Trai"),
        (lambda config: {**config, "config": {"training": {"batch": 0}}}, "batch=0 is out of rang"),
    ],
)
def test_a_damaged_config(damage, complaint, run, trained, refused):
    path = run / "config.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    sentence = refused("sample", run)
    assert complaint in sentence and "config.json" in sentence
    assert "config" in refused(*trained.words, "--out", run, "--resume")


def test_counts_that_would_fail_after_the_training(pair, run, refused, tmp_path):
    def fewer(*words: object) -> str:
        return refused("train", "custom", *pair, "--out", tmp_path / "new", *words)

    assert "leave the sampler fewer than 2" in fewer("--certificate-paths", 2)
    assert "samples must be at least 1 for the report, got 0" in fewer("--samples", 0)
    assert not (tmp_path / "new").exists()
    assert "leave the sampler fewer than 2" in refused("certify", run, "-n", 2)


def cut_off(run: Path, step: int) -> None:
    path = run / "checkpoints" / f"step-{step:08d}" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def test_a_half_written_checkpoint_alone_is_named(run, trained, refused):
    cut_off(run, 8)
    sentence = refused(*trained.words, "--out", run, "--resume")
    assert "no checkpoint" in sentence
    assert "step-00000008/tensors.safetensors differs from its checksum" in sentence


@pytest.mark.filterwarnings("default")
def test_a_half_written_checkpoint_falls_back(run, trained, difftilt_command):
    """A checkpoint of step 8 is copied as a damaged step 9: the one before it is taken."""
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "step-00000008", checkpoints / "step-00000009")
    cut_off(run, 9)
    ended = difftilt_command(*trained.words, "--out", run, "--resume")
    assert ended.code == 0, ended.err
    assert "difftilt: warning: fell back to the checkpoint at update 8" in ended.err
    assert "resuming after update 8" in ended.err


def test_samples_of_a_damaged_posterior(run, refused):
    path = run / "posterior" / "posterior.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "posterior.safetensors differs from its checksum" in refused("sample", run)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file of this process may grow beyond 20 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk(trained, refused, tmp_path, small_disk):
    """The checkpoint needs more than there is."""
    sentence = refused(*trained.words, "--out", tmp_path / "run")
    assert sentence.startswith("cannot write")
    assert "bytes" in sentence
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_more_particles_than_none(run, refused):
    assert "n must be at least 1" in refused("sample", run, "-n", 0)
    assert "effort must be at least 1" in refused("sample", run, "--correct", "smc", "--effort", 0)


@pytest.mark.parametrize(
    ("form", "initial", "complaint"),
    [
        (difftilt.FullCopy(), True, "a learned law of x_N has no place in a diffusers pipeline"),
        (difftilt.FullCopy(learned_variance=True), False, "variance"),
        (difftilt.Perceptron(), False, "export"),
    ],
)
def test_what_plain_diffusers_cannot_hold_is_not_exported(
    form, initial, complaint, studio, tmp_path
):
    target = difftilt.load(studio / "prior", 5).tilt(lambda x_0: -x_0.flatten(1).mean(1))
    with pytest.raises(difftilt.InputError, match=complaint):
        target.posterior(form, initial).export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_torch_is_left_as_it_was(pair, refused):
    """A refusal in this process does not leave gradients off."""
    refused("train", "custom", *pair, "--beta", 0)
    assert torch.is_grad_enabled()
