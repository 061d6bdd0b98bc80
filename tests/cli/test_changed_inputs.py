"""A run knows the prior and the reward that it was trained with."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file, save_file

from commands import told

OPTIONS = "--steps 5 --samples 4 --certificate-paths 16 --training.steps 2 --training.batch 4"


class Workshop(NamedTuple):
    """Prior, reward file and a finished run of the two, with the words of its command."""

    prior: Path
    reward: Path
    run: Path
    words: list[str]


@pytest.fixture(scope="module")
def made(studio: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    prior = Path(shutil.copytree(studio / "prior", folder / "prior"))
    reward = Path(shutil.copy(studio / "reward.py", folder))
    words = ["train", "custom", "--prior", f"{prior}", "--reward", f"{reward}:log_reward"]
    words += [*OPTIONS.split(), "--out", f"{folder / 'run'}"]
    assert told(*words).code == 0
    return Workshop(prior, reward, folder / "run", words)


@pytest.fixture
def workshop(made: Workshop, tmp_path: Path) -> Iterator[Workshop]:
    """The same, put back as it was afterwards."""
    shutil.copytree(made.run.parent, tmp_path / "kept")
    yield made
    shutil.rmtree(made.run.parent)
    shutil.copytree(tmp_path / "kept", made.run.parent)


def other_levels(prior: Path) -> None:
    path = prior / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_end": 0.05}))


def other_prediction(prior: Path) -> None:
    path = prior / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "sample"}))


def other_weights(prior: Path) -> None:
    (path,) = (prior / "unet").glob("*.safetensors")
    save_file(
        {name: 1.5 * tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"}
    )


def other_reward(workshop: Workshop) -> None:
    workshop.reward.write_text(workshop.reward.read_text() + "\n\nMARGIN = 2\n")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (other_levels, "chain.diffusion.levels.alpha.root_mean_square is"),
        (other_prediction, "chain.denoiser.prediction_type is epsilon there and sample here"),
        (other_weights, "prior is"),
    ],
)
def test_another_prior_is_not_resumed(change, complaint, workshop, refused):
    change(workshop.prior)
    sentence = refused(*workshop.words, "--resume")
    assert "belongs to another run" in sentence
    assert complaint in sentence


def test_another_reward_is_not_resumed(workshop, refused):
    other_reward(workshop)
    sentence = refused(*workshop.words, "--resume")
    assert "belongs to another run: reward is" in sentence


def test_a_run_of_an_older_version_is_resumed(workshop):
    """Its record has neither chain nor reward."""
    path = workshop.run / "config.json"
    config = json.loads(path.read_text())
    del config["prior"]["chain"], config["reward"]
    path.write_text(json.dumps(config))
    for document in workshop.run.glob("*/state.json"):
        assert "chain" in json.loads(document.read_text())["identity"]
    shutil.rmtree(workshop.run / "checkpoints")
    ended = told(*workshop.words, "--resume")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("command", ["sample", "certify", "export"])
def test_a_run_is_not_used_on_another_prior(command, workshop, refused, tmp_path):
    other_weights(workshop.prior)
    more = [tmp_path / "out"] if command == "export" else []
    sentence = refused(command, workshop.run, *more)
    assert f"{workshop.run} was trained on another prior or reward: prior is" in sentence


def test_samples_are_not_scored_by_another_reward(workshop, refused, tmp_path):
    other_reward(workshop)
    for command in ("sample", "certify"):
        assert "another prior or reward: reward is" in refused(command, workshop.run)
    assert told("export", workshop.run, tmp_path / "out").code == 0
