"""The paper's text-to-image recipe at smoke size, on a tiny Stable Diffusion saved to disk."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import tiny_image_text
import tiny_pipelines
from difftilt.adapters.image_rewards import JpegSize
from difftilt.chains.rollouts import rollout
from difftilt.cli import main
from difftilt.errors import InputError
from difftilt.objectives.balance import RTB
from difftilt.recipes import run as runs
from difftilt.recipes.base import from_config, to_config
from difftilt.recipes.catalogue import RECIPES
from difftilt.recipes.text_to_image.stable_diffusion import StableDiffusion, paper_training
from difftilt.report.page import write_report
from difftilt.training.checkpoint import load_checkpoint, save_checkpoint
from difftilt.training.plan import Optimisation, Replaying
from difftilt.training.state import TrainingState
from difftilt.training.steps import training_step
from plain_diffusers import PROMPTS as PLAIN_PROMPTS
from plain_diffusers import noise_of, plain

PROMPTS = ("a green rabbit", "a red car")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(6)
    place = tmp_path_factory.mktemp("pipelines") / "sd"
    tiny_pipelines.stable_diffusion().save_pretrained(place)
    return place


def small(folder: Path, **fields) -> StableDiffusion:
    plan = replace(paper_training(), steps=2, batch=6, subset=2)
    plain = {"reward": ("0.5*jpeg",), "steps": 4, "samples": 4, "certificate_paths": 16}
    return StableDiffusion(prior=str(folder), **{"training": plan, **plain, **fields})


def test_the_defaults_are_the_papers():
    recipe = StableDiffusion()
    plan = recipe.training
    assert (recipe.steps, recipe.eta, recipe.guidance_scale, recipe.beta) == (50, 1.0, 7.5, 1.0)
    assert (recipe.form.kind, recipe.form.rank, recipe.form.targets) == ("lora", 4, "attention")
    assert (plan.optimisation.learning_rate, plan.optimisation.gradient_clip) == (1e-5, 0.1)
    assert (plan.batch, plan.subset, plan.objective) == (12, 8, RTB("learned"))
    assert plan.behaviour.on_policy / 12 == pytest.approx(2 / 12) and plan.behaviour.replay == 10
    assert RECIPES["sd"] is StableDiffusion and recipe._prompts() == ["A green colored rabbit."]
    config = json.loads(json.dumps(to_config(recipe)))
    assert from_config(StableDiffusion, config) == recipe


def test_one_prompt_or_a_file_of_them(folder, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# animals\na green rabbit\n\n  a red car  \n")
    many = small(folder, prompts=str(file)).job()
    assert many.names == PROMPTS and many.sources.labels > 1
    assert many.training.paths_per_condition == 4
    one = small(folder, prompt=("a rabbit",)).job()
    assert one.names == ("a rabbit",)
    assert one.training.paths_per_condition == one.training.batch
    # log Z has a number for each prompt, and another prompt's does not move.
    state = many.target.state(many.posterior, many.training, many.sources)
    rows = torch.as_tensor(many.contexts)
    (state.log_z(1, rows[:1]).sum()).backward()
    assert int((state.log_z.value.grad != 0).sum()) == 1


def test_the_reward_sees_pictures_of_its_own_prompt(folder, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "def log_reward(images, prompts):\n"
        "    assert images.shape[1:] == (3, 16, 16) and 0 <= images.min() and images.max() <= 1\n"
        "    return [float(len(p)) for p in prompts]\n"
    )
    monkeypatch.chdir(tmp_path)
    job = small(folder, reward=("own.py:log_reward", "jpeg"), prompt=PROMPTS).job()
    drawn = job.draw(job.posterior, 4, seed=0)
    lengths = torch.tensor([float(len(p)) for p in PROMPTS * 2])
    wanted = lengths + JpegSize()(job.target.prior.decoded(drawn.x_0))
    assert torch.allclose(drawn.log_r.float(), wanted.float(), atol=1e-4)


def test_a_run_from_prompts_to_report(folder, tmp_path):
    said = []
    recipe = small(folder, prompt=PROMPTS)
    assert runs.run("sd", recipe, tmp_path / "run", talk=said.append)
    page = write_report(tmp_path / "run").read_text()
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    names = [row["name"] for row in evaluation["rows"]]
    assert names[:2] == ["mean log r", "diversity"]
    assert "log Z of 'a green rabbit'" in names and "log Z of 'a red car'" in names
    means = [row["prior"] for row in evaluation["rows"] if row["name"].startswith("log r of")]
    assert evaluation["rows"][0]["prior"] == pytest.approx(sum(means) / 2, rel=1e-5)
    assert (tmp_path / "run" / "pictures" / "01.png").stat().st_size > 1000
    assert "Pictures of the prompts" in page and "a green rabbit" in page
    first = runs.RunFolder(tmp_path / "run").metrics()[0]
    assert first["kl"] == 0.0 and said[0].startswith("reward on 32 prior samples")
    # The run comes back with the trained adapters.
    again, job = runs.load_run(tmp_path / "run")
    assert again == recipe
    moved = [p for n, p in job.posterior.chain.kernel.named_parameters() if "lora_B" in n]
    assert moved and all(bool((p != 0).any()) for p in moved)


PATHWISE = ("AlignProp", "DRaFT", "AdjointMatching")
REDNESS = "def log_r(images, prompts):\n    return 9 * (images[:, 0] - images[:, 2]).mean((1, 2))\n"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["DDPO", "DPOK", "FlowGRPO", *PATHWISE, "NegativeAware"])
def test_every_baseline_is_a_word_of_the_command_line(folder, name, tmp_path, capsys):
    (tmp_path / "red.py").write_text(REDNESS)
    words = ["--objective", name, "--prior", folder, "--steps", 10, "--training.chunk", 120]
    words += ["--prompt", *PROMPTS, "--reward", f"{tmp_path / 'red.py'}:log_r", "--dry-run"]
    main(["train", "sd", *map(str, words)])
    recipe = from_config(StableDiffusion, json.loads(capsys.readouterr().out)["config"])
    subset = None if name in PATHWISE else 8
    assert recipe.training.batch == 12 and recipe.training.subset == subset
    job = recipe.job()
    state = job.target.state(job.posterior, job.training, job.sources)
    rows = [training_step(state) for _ in range(2)]
    assert all(math.isfinite(row.loss) and 0 < row.gradient_norm < math.inf for row in rows)
    moved = [p for n, p in job.posterior.chain.kernel.named_parameters() if "lora_B" in n]
    assert moved and all(bool((p != 0).any()) for p in moved)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_training_in_sixteen_bits_resumes_bit_for_bit(folder, tmp_path, precision: str):
    def state() -> TrainingState:
        torch.manual_seed(1)
        job = small(folder, prompt=("a rabbit",), precision=precision, device="cpu").job()
        return job.target.state(job.posterior, job.training, job.sources)

    through = state()
    training_step(through)
    save_checkpoint(through, tmp_path, {})
    norm = training_step(through).gradient_norm
    again = state()
    assert load_checkpoint(again, tmp_path, {}) == 1
    assert training_step(again).gradient_norm == norm and 0 < norm < 1e4
    for ours, theirs in zip(again.parameters, through.parameters, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


@pytest.fixture(scope="module")
def rabbits(folder, tmp_path_factory) -> Path:
    """Three updates of the paper's recipe by the command line, with ImageReward's stand-in."""
    place = tmp_path_factory.mktemp("paper")
    words = ["train", "sd", "--prior", folder, "--python", sys.executable, "--steps", 9]
    words += ["--reward", f"imagereward:{tiny_image_text.image_reward_folder(place / 'model')}"]
    words += ["--prompt", "cat", "dog", "--training.steps", 3, "--samples", 4]
    words += ["--training.optimisation.learning-rate", 0.02, "--training.chunk", 24]
    words += ["--certificate-paths", 16, "--out", place / "run"]
    with pytest.MonkeyPatch.context() as patch:
        package = tiny_image_text.image_reward_package(place / "packages")
        patch.setenv("PYTHONPATH", str(package))
        main([str(word) for word in words])
        main(["export", str(place / "run"), str(place / "lora")])
    return place


def test_the_paper_s_recipe_with_image_reward_in_its_own_process(rabbits):
    run = runs.RunFolder(rabbits / "run")
    training = run.config["config"]["training"]
    assert (training["batch"], training["subset"], training["behaviour"]["replay"]) == (12, 8, 10)
    assert run.read("status")["state"] == "finished"
    # 0.5 + green + the three letters of either prompt, at each of the updates.
    assert all(3.5 <= row["log_r"] <= 4.5 for row in run.metrics())
    evaluation = run.read("evaluation")["rows"]
    assert {"log Z of 'cat'", "log Z of 'dog'"} <= {row["name"] for row in evaluation}


def test_its_export_is_a_lora_of_plain_diffusers(rabbits, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(rabbits / "packages"))
    _, job = runs.load_run(rabbits / "run")
    assert job.names == tuple(PLAIN_PROMPTS)
    chain = job.posterior.chain.given(torch.as_tensor(job.contexts))
    ours, before = (
        job.target.prior.decoded(rollout(c, 2, noise_of("sd")).x_0) for c in (chain, chain.prior)
    )
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(rabbits / "lora")
    settings = {"num_inference_steps": 9, "guidance_scale": 7.5, "output_type": "pt"}
    theirs = plain(pipeline, "sd", **settings)
    moved = float((ours - before).abs().max())
    assert moved > 1e-3 and float((ours - theirs).abs().max()) < 0.02 * moved


@pytest.mark.usefixtures("unchecked")
def test_a_warm_start_moves_towards_the_reward(folder, tmp_path):
    """Mean log r of 160 pictures after a warm start alone, by five errors above the prior's."""
    (tmp_path / "red.py").write_text(REDNESS)
    plan = replace(
        paper_training(),
        steps=16,
        warm_start=1.0,
        batch=16,
        chunk=64,
        warm_start_subset=None,
        optimisation=Optimisation(learning_rate=0.01, ema=0.0, decay_from=0.5),
        replaying=Replaying(pool_capacity=512, pool_fresh=32),
    )
    changes = {"reward": (f"400*{tmp_path / 'red.py'}:log_r",), "prompt": PROMPTS, "training": plan}
    job = small(folder, **changes).job()
    state = job.target.state(job.posterior, job.training, job.sources)
    assert {training_step(state).phase for _ in range(16)} == {"warm start"}
    prior = replace(job.posterior, chain=job.target.prior.chain)
    after, before = (job.draw(one, 160, seed=1).log_r for one in (job.posterior, prior))
    # The same noise: the pairs' differences are what varies.
    gain = (after - before).double()
    assert float(gain.mean()) > 5 * float(gain.std()) / math.sqrt(160)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"reward": ()}, "sd needs --reward, such as imagereward:FOLDER"),
        ({"prompt": ("a",), "prompts": "file"}, "takes --prompt or --prompts, not both"),
        ({"prompts": "/no/such/file"}, "there is no file /no/such/file of prompts"),
        ({"prior": "/no/such/folder"}, "no pipeline folder at /no/such/folder"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(folder, fields: dict, sentence: str):
    with pytest.raises(InputError, match=sentence):
        replace(small(folder), **fields).job()


def test_a_file_without_prompts(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n# nothing\n")
    with pytest.raises(InputError, match="holds no prompt; write one a line"):
        small(folder, prompts=str(tmp_path / "prompts.txt")).job()
