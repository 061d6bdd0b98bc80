"""The ROCStories recipe through the command line, on tiny models of the published classes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from commands import told
from difftilt.diffusions.masked import GENERATED, SUFFIX
from difftilt.recipes.text.rocstories import RocStories
from difftilt.tasks.stories.rocstories import read_stories
from difftilt.tasks.stories.tiny_models import write_tiny_task
from difftilt.training.plan import Training


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_task(folder, 140, seed=1)
    return folder


def test_a_run_is_trained_measured_and_sampled_again(tmp_path: Path, unchecked: None):
    run = tmp_path / "run"
    code, out, err = told("train", "rocstories", "--smoke", "--samples", "6", "--out", run)
    assert (code, str(run / "report.html") in out) == (0, True), err
    rows = {r["name"]: r for r in json.loads((run / "evaluation.json").read_text())["rows"]}
    for name in ("BLEU-4", "GLEU-4", "similarity", "mean log r"):
        for sampler in ("prior", "prompted", "posterior"):
            assert isinstance(rows[name][sampler], float)
            assert rows[f"{name} ±"][sampler] >= 0
    assert rows["mean log r"]["prior"] < 0
    config = json.loads((run / "config.json").read_text())
    assert config["config"]["training"]["optimisation"]["warm_up"] == 20
    before = (run / "samples" / "posterior.safetensors").read_bytes()
    assert told("sample", run, "-n", "6", "--seed", "2")[0] == 0
    # The same models are made again: the same seed gives the same fillings.
    assert (run / "samples" / "drawn.safetensors").read_bytes() == before


def test_fillings_have_the_true_length_and_nothing_else_changes(tiny: Path):
    recipe = RocStories(
        csv=str(tiny / "stories.csv"),
        prior=str(tiny / "prior"),
        reader=str(tiny / "reader"),
        contexts=5,
        training=Training(),
    )
    job, task = recipe.job(), recipe.task
    assert job.contexts is not None and len(job.contexts) == 5
    test = read_stories(tiny / "stories.csv", "test")
    drawn = job.draw(job.posterior, 5, 0)
    for line, story in zip(recipe.readable(job, drawn), test, strict=False):
        assert line.startswith(" ".join(story.sentences[:3]) + " [")
        assert line.endswith(f"] {story.sentences[4]}")
    tokenizer = task.model.tokenizer
    for truth, story, x_0 in zip(task.truth, test, drawn.x_0, strict=False):
        tokens, roles = truth
        middle = tokens[roles == GENERATED].tolist()
        assert tokenizer.decode(middle) == f" {story.sentences[3]}"
        assert tokenizer.decode(tokens[roles == SUFFIX].tolist()) == f" {story.sentences[4]}"
        assert tokenizer.eos_token_id not in x_0[roles == GENERATED].tolist()
    trained = task.drawn(200, torch.Generator().manual_seed(0))
    assert not (trained[:, None] == job.contexts).flatten(2).all(2).any()


def test_a_prior_without_a_tokenizer_asks_for_one(tiny: Path, tmp_path: Path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(tiny / "prior" / file, bare)
    given = ["--csv", tiny / "stories.csv", "--prior", bare, "--reader", tiny / "reader"]
    code, out, err = told("train", "rocstories", *given, "--out", tmp_path / "r")
    assert (code, out) == (2, "") and "Traceback" not in err
    assert f"{bare} came without a tokenizer; name the folder" in err.splitlines()[-1]
    named = {"csv": str(given[1]), "prior": str(bare), "reader": str(given[5]), "contexts": 2}
    own = RocStories(**named | {"prior": str(tiny / "prior")}).task.truth
    assert torch.equal(RocStories(**named, tokenizer=str(tiny / "prior")).task.truth, own)


def test_the_reward_is_the_reader_s_word_on_the_ending(tiny: Path):
    from tiny_text import log_likelihood

    recipe = RocStories(
        csv=str(tiny / "stories.csv"),
        prior=str(tiny / "prior"),
        reader=str(tiny / "reader"),
        contexts=2,
    )
    job = recipe.job()
    drawn = job.draw(job.posterior, 2, 0)
    assert drawn.log_r is not None and job.contexts is not None
    reader = recipe.task.reader
    for x_0, context, log_r in zip(drawn.x_0, job.contexts, drawn.log_r, strict=True):
        tokens, roles = context
        real = tokens != recipe.task.model.pad_id
        before = tokens[(roles == 0) & real].tolist()
        decode = recipe.task.model.tokenizer.decode
        middle = decode([*before, *x_0[roles == GENERATED].tolist()])[len(decode(before)) :]
        given = [*before, *reader.tokenizer(middle)["input_ids"]]
        ending = tokens[roles == SUFFIX].tolist()
        assert float(log_r) == pytest.approx(log_likelihood(reader.model, given, ending), abs=1e-3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "rocstories needs --csv"),
        (("--csv", "nowhere.csv"), "nowhere.csv is no file"),
        (("--csv", "CSV"), "louaaron/sedd-small is neither a folder nor a reachable hub id"),
        (("--csv", "CSV", "--prior", "PRIOR", "--reader", "nowhere"), "nowhere is neither"),
        (("--csv", "CSV", "--prior", "PRIOR", "--reader", "READER"), "has 100 different test"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(tiny: Path, tmp_path: Path, words, sentence: str):
    known = {"CSV": tiny / "stories.csv", "PRIOR": tiny / "prior", "READER": tiny / "reader"}
    given = [known.get(word, word) for word in words]
    code, out, err = told("train", "rocstories", *given, "--contexts", 101, "--out", tmp_path / "r")
    assert (code, out) == (2, "")
    assert sentence in err.splitlines()[-1] and "Traceback" not in err
    assert not (tmp_path / "r").exists()
