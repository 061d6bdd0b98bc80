"""Every command as a user types it: what it prints, writes and exits with."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import difftilt
from difftilt.cli import COMMANDS
from difftilt.objectives.pathwise import KLControl
from difftilt.recipes.base import from_config
from difftilt.recipes.exact.recipe import FIGURES, Exact

FILES = [
    "config.json",
    "metrics.jsonl",
    "certificate.json",
    "evaluation.json",
    "status.json",
    "report.html",
    "samples/prior.safetensors",
    "samples/posterior.safetensors",
    "posterior/posterior.safetensors",
    "checkpoints/step-00000008/state.json",
]
BENCH_KEYS = [
    "problem",
    "method",
    "seed",
    "log_z_error",
    "elbo_gap",
    "eubo_gap",
    "ess",
    "k_hat",
    "mode_tv_raw",
    "mode_tv_corrected",
    "moments_z",
    "energy_distance",
    "energy_p",
    "c2st",
    "tv",
    "network_calls",
    "reward_calls",
    "seconds",
    "settings",
]


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "posterior" / "posterior.safetensors")


def log_r(x_0: torch.Tensor) -> torch.Tensor:
    return -((x_0.mean(dim=(1, 2, 3)) - 0.2) ** 2) / (2 * 0.1**2)


def test_the_first_page_needs_nothing_heavy(child):
    """stderr stays empty, and no optional package, parser or plotter is imported for it."""
    seen = "import atexit, sys; atexit.register(lambda: print('modules', *sys.modules))"
    process = child("--help", before=seen)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert not err
    for name, summary in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", out, re.MULTILINE)
    heavy = {"diffusers", "transformers", "peft", "matplotlib", "sklearn", "tyro", "PIL"}
    assert not heavy & set(out.splitlines()[-1].split())


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_without_a_command(words, difftilt_command):
    ended = difftilt_command(*words)
    assert ended.code == 0
    assert "usage: difftilt COMMAND" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 100


def test_version(difftilt_command):
    assert difftilt_command("--version").out == f"{difftilt.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, difftilt_command):
    ended = difftilt_command(command, "--help")
    assert ended.code == 0
    assert ended.out.startswith(f"usage: difftilt {command}")
    assert not ended.err


@pytest.mark.parametrize("words", ["train exact", "train custom", "doctor fashion", "bench exact"])
def test_help_names_every_option_and_its_default(words, difftilt_command):
    ended = difftilt_command(*words.split(), "--help")
    assert ended.code == 0
    options = re.findall(r"^[│ ]+--\w", ended.out, re.MULTILINE)
    described = re.findall(r"\(default:|\(repeatable\)", ended.out)
    assert len(options) == len(described) > 3


LISTS = ("recipes", "tables", "problems", "methods", "objectives")


def test_list_shows_all_and_each(difftilt_command):
    everything = difftilt_command("list").out
    parts = [difftilt_command("list", what).out for what in LISTS]
    assert everything == "\n".join(parts)
    for name in ("fashion", "custom", "gmm9of25", "rare_corner", "importance", "infill", "CEP"):
        assert re.search(rf"^  {name} +\w", everything, re.MULTILINE)
    listed = [line for line in everything.splitlines() if line.startswith("  ")]
    assert all(len(line.split()) > 2 for line in listed)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("tain", "unknown command 'tain'; choose one of train, sample"),
        ("train nope", "unknown recipe 'nope'; choose one of fashion"),
        ("doctor nope", "unknown recipe 'nope'"),
        ("train exact --problem nope", "unknown problem 'nope'; choose one of gmm9of25"),
        ("bench nope", "unknown table 'nope'"),
        ("bench exact --problem gmm9of25 --problem nope", "unknown problem 'nope'"),
        (
            "bench exact --problem gmm9of25 --method nope --seeds 0 1 2 --budget 60 --json f.json",
            "unknown method 'nope'; choose one of rtb",
        ),
        ("list nope", "invalid choice 'nope'"),
        ("train exact --nope", "Unrecognized options: --nope; see difftilt train exact --help"),
        ("train exact --form.kind x", "invalid choice 'x' for argument '--form.kind'"),
        ("bench exact --budget much", "could not convert string to float: 'much'"),
        ("sample", "Missing from difftilt sample: RUN"),
    ],
)
def test_an_unknown_name_is_one_sentence(words, complaint, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaint in refused(*words.split())
    assert not list(tmp_path.iterdir())


def test_train_writes_a_run_folder(trained):
    assert trained.ended.code == 0, trained.ended.err
    assert [name for name in FILES if not (trained.folder / name).is_file()] == []
    # Corrected samples, unless the weights of these few updates are too uneven; then it is said.
    corrected = (trained.folder / "samples" / "corrected.safetensors").is_file()
    assert corrected != ("no corrected samples" in trained.ended.err)
    certificate = json.loads((trained.folder / "certificate.json").read_text())
    assert certificate["n"] == 32
    page = trained.folder / "report.html"
    assert trained.ended.out == f"{certificate['text']}\n{page}\n"
    assert page.read_text("utf-8").startswith("<!doctype html>")
    status = json.loads((trained.folder / "status.json").read_text())
    assert (status["state"], status["step"], status["of"]) == ("finished", 8, 8)


def test_dry_run_prints_the_config_of_the_run(trained, difftilt_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = json.loads(difftilt_command(*trained.words, "--dry-run").out)
    written = json.loads((trained.folder / "config.json").read_text())
    assert shown == {"recipe": written["recipe"], "config": written["config"]}
    assert not list(tmp_path.iterdir())


def test_an_exact_problem_is_trained_and_judged(difftilt_command, tmp_path):
    small = "--training.steps 3 --training.batch 32 --training.seconds None --samples 32"
    words = f"train exact --problem linear_gaussian_d2 {small} --certificate-paths 64"
    ended = difftilt_command(*words.split(), "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    rows = json.loads((tmp_path / "run" / "evaluation.json").read_text())["rows"]
    figures = {row["name"]: row["posterior"] for row in rows}
    # 50,000 draws with an effective share of about 0.7: the standard error is about 0.003.
    assert abs(figures[FIGURES["log_z_error"]]) < 0.02
    assert 0 < figures[FIGURES["ess"]] <= 1


def test_sample_draws_and_scores(run, difftilt_command):
    path = run / "samples" / "drawn.safetensors"
    assert difftilt_command("sample", run, "-n", 5).out == f"{path}\n"
    five = load_file(path)
    assert five["x_0"].shape == (5, 1, 8, 8)
    torch.testing.assert_close(five["log_r"], log_r(five["x_0"]))
    assert five["log_w"].isfinite().all()
    difftilt_command("sample", run, "-n", 3)
    torch.testing.assert_close(load_file(path)["x_0"], five["x_0"][:3], atol=1e-4, rtol=0)
    difftilt_command("sample", run, "-n", 3, "--seed", 1)
    assert (load_file(path)["x_0"] - five["x_0"][:3]).abs().amax() > 0.1


@pytest.mark.parametrize("correct", ["snis", "mh", "smc"])
def test_corrected_samples(correct, run, difftilt_command):
    ended = difftilt_command("sample", run, "-n", 5, "--correct", correct, "--effort", 2)
    assert ended.code == 0, ended.err
    drawn = load_file(Path(ended.out.strip()))
    assert drawn["x_0"].shape == (5, 1, 8, 8)
    torch.testing.assert_close(drawn["log_r"], log_r(drawn["x_0"]))


def test_certify_replaces_the_certificate(run, difftilt_command):
    ended = difftilt_command("certify", run, "-n", 40, "--confidence", 0.9)
    assert ended.code == 0, ended.err
    certificate = json.loads((run / "certificate.json").read_text())
    assert (certificate["n"], certificate["confidence"]) == (40, 0.9)
    assert ended.out == certificate["text"] + "\n"


def test_report_is_written_again(run, difftilt_command):
    page = run / "report.html"
    page.unlink()
    assert difftilt_command("report", run).out == f"{page}\n"
    assert page.stat().st_size > 1000


def test_export_loads_in_plain_diffusers(run, studio, difftilt_command, tmp_path):
    from diffusers import DDPMPipeline

    folder = tmp_path / "pipeline"
    assert difftilt_command("export", run, folder).out == f"{folder}\n"
    pipeline = DDPMPipeline.from_pretrained(folder)
    prior = DDPMPipeline.from_pretrained(studio / "prior")
    trained = final_weights(run)
    for name, weight in pipeline.unet.state_dict().items():
        (own,) = [w for key, w in trained.items() if key.endswith("." + name)]
        assert torch.equal(weight, own)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(pipeline.unet.parameters(), prior.unet.parameters(), strict=True)
    ]
    assert all(moved)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=5, output_type="np").images
    assert images.shape == (2, 8, 8, 1)


def test_a_second_training_in_the_folder_is_refused(run, trained, refused):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    sentence = refused(*trained.words, "--out", run)
    assert f"{run} already holds a run" in sentence
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_interrupted_run_goes_on_bit_for_bit(
    trained, child, difftilt_command, tmp_path, monkeypatch
):
    folder = tmp_path / "a run"  # a blank in the name must survive the hint
    process = child(*trained.words, "--out", folder)
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    hint = err.splitlines()[-1].partition("continue with: ")[2]
    assert shlex.split(hint) == ["difftilt", *trained.words, "--out", str(folder), "--resume"]
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert 1 <= status["step"] < 8
    assert (folder / "report.html").exists()

    unfinished = difftilt_command("sample", folder)
    assert unfinished.code == 2
    assert "not finished" in unfinished.err

    ended = difftilt_command(*shlex.split(hint)[1:])
    assert ended.code == 0, ended.err
    assert f"resuming after update {status['step']}" in ended.err
    ours, theirs = final_weights(folder), final_weights(trained.folder)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][-1] == 8


def test_a_run_stopped_before_its_first_checkpoint_starts_again(run, trained, difftilt_command):
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "posterior")
    ended = difftilt_command(*trained.words, "--out", run, "--resume")
    assert ended.code == 0, ended.err
    assert "no checkpoint was saved yet" in ended.err
    ours, theirs = final_weights(run), final_weights(trained.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_doctor_finds_a_sound_pair_sound(pair, difftilt_command):
    ended = difftilt_command("doctor", "custom", *pair)
    assert ended.code == 0, ended.err
    rows = ended.out.splitlines()[2:]
    assert len(rows) == 9
    assert all(re.search(r"\s{2}ok\s{2}", row) for row in rows)


def test_doctor_finds_a_reward_that_rolls_dice(pair, difftilt_command, tmp_path):
    reward = tmp_path / "dice.py"
    reward.write_text("import torch\ndef log_reward(x_0): return -torch.rand(len(x_0))\n")
    ended = difftilt_command("doctor", "custom", *pair, "--reward", f"{reward}:log_reward")
    assert ended.code == 1
    failed = [line for line in ended.out.splitlines() if "FAIL" in line]
    assert [line.partition("  ")[0] for line in failed] == ["reward is deterministic"]


def test_doctor_takes_a_mixture_for_what_it_is(difftilt_command):
    """Its draws differ from the prior's for the same noise, and its law does not."""
    ended = difftilt_command("doctor", "exact", "--problem", "linear_gaussian_d2")
    assert ended.code == 0, ended.out


def test_bench_prints_a_table_and_writes_its_rows(difftilt_command, tmp_path):
    file = tmp_path / "new" / "rows.json"
    words = "bench exact --problem linear_gaussian_d2 --method rtb --method importance"
    ended = difftilt_command(*words.split(), "--seeds", 0, "--budget", 1, "--json", file)
    assert ended.code == 0, ended.err
    rows = json.loads(file.read_text())
    assert [(row["method"], row["seed"]) for row in rows] == [("rtb", 0), ("importance", 0)]
    for row in rows:
        assert list(row) == BENCH_KEYS
        assert row["settings"] == {"calls": None, "budget": 1.0}
        assert row["mode_tv_raw"] is None  # a Gaussian has no modes to weigh
        assert abs(row["log_z_error"]) < 0.02
    assert rows[0]["seconds"] == pytest.approx(1, abs=5)
    assert rows[0]["reward_calls"] > 0
    heading, rule, *lines = ended.out.splitlines()
    assert heading.split()[:3] == ["problem", "method", "seed"]
    assert len(lines) == 2
    assert max(map(len, ended.out.splitlines())) <= 170
    assert set(rule) == {"-", " "}


def test_a_reader_that_leaves_is_no_error(child):
    with child("list") as process:
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 1


def test_another_objective_by_its_name(difftilt_command):
    """Its own options and the paths it asks for come with it; the saved name finds it again."""
    words = "train exact --objective KLControl --training.objective.truncation random --dry-run"
    ended = difftilt_command(*words.split())
    assert ended.code == 0, ended.err
    config = json.loads(ended.out)["config"]
    assert config["training"]["objective"]["name"] == "KLControl"
    assert config["training"]["objective"]["truncation"] == "random"
    assert config["training"]["warm_start"] == 0
    again = from_config(Exact, config)
    assert again.training.objective == KLControl(truncation="random")


def test_an_unknown_objective_is_named(refused):
    said = refused("train", "exact", "--objective", "Nope")
    assert said.startswith("unknown objective 'Nope'; choose one of AdjointMatching, AdvantageWe")


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "difftilt", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == difftilt.__version__
