"""Runs: a recipe carried out in a run folder, and what can be done with the folder afterwards."""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import difftilt
from difftilt.chains import rollout
from difftilt.errors import CheckpointError, InputError
from difftilt.noise import StreamNoise
from difftilt.recipes.base import Drawn, Job, Recipe, from_config
from difftilt.recipes.catalogue import RECIPES
from difftilt.sampling import Correction, Samples, sample_paths
from difftilt.training.checkpoint import load_checkpoint, load_posterior, save_posterior
from difftilt.training.loop import interruptible, progress_bar, train
from difftilt.training.run_folder import RunFolder, write_json

Talk = Callable[[str], None]


def config_text(name: str, recipe: Recipe) -> str:
    """The resolved configuration, as JSON."""
    return json.dumps({"recipe": name, "config": dataclasses.asdict(recipe)}, indent=1)


def run(
    name: str,
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    command: list[str] | None = None,
    talk: Talk = print,
) -> bool:
    """Train, sample, certify and measure; everything is written to the folder.

    Arguments:
        name: of the recipe.
        recipe: its fields.
        folder: the run folder; must be new or empty unless ``resume``.
        resume: continue the newest good checkpoint of the folder.
        command: the command line, for the record.
        talk: says what happens.

    Returns:
        False if interrupted (the folder holds a checkpoint), True when done.
    """
    if not resume and (folder / "config.json").exists():
        raise InputError(
            f"{folder} already holds a run; choose another --out, or continue it with --resume True"
        )
    torch.manual_seed(recipe.__dict__["training"].seed)
    job = recipe.job()
    talk(_probe(job))
    identity = _identity(name, recipe, job, command or [])
    with RunFolder(folder) as opened:
        state = job.target.state(job.posterior, job.training, data=job.data)
        if resume:
            talk(f"resuming at update {load_checkpoint(state, folder, identity)}")
        else:
            opened.write_config(identity)
        with interruptible() as stop:
            stream = train(state, opened, stop=stop, identity=identity)
            for _ in progress_bar(stream, state):
                pass
        if state.progress < 1:
            return False
        state.use_average()
        save_posterior(job.posterior.chain, folder, identity)
        _finish(recipe, job, opened, talk)
    return True


def _probe(job: Job) -> str:
    """Score a few prior samples before any training: a bad reward is named at once."""
    x_0 = sample_paths(job.target.prior.chain, 32, seed=0).x_0
    probe = job.target.log_reward.probe(job.target.prior._decoded(x_0), require_signal=False)
    return f"reward on 32 prior samples: log r from {probe.minimum:.3g} to {probe.maximum:.3g}"


def _identity(name: str, recipe: Recipe, job: Job, command: list[str]) -> dict[str, Any]:
    prior = job.target.prior
    return {
        "format": 1,
        "difftilt": difftilt.__version__,
        "recipe": name,
        "command": command,
        "config": json.loads(json.dumps(dataclasses.asdict(recipe))),
        "prior": {"source": prior.source, "fingerprint": prior.fingerprint},
        "machine": {
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _finish(recipe: Recipe, job: Job, opened: RunFolder, talk: Talk) -> None:
    talk("drawing samples")
    target, posterior = job.target, job.posterior
    seed = recipe.__dict__["training"].seed
    prior = dataclasses.replace(posterior, chain=target.prior.chain)
    drawn = Drawn(
        prior.draw(_prior_draws(recipe), seed + 1),
        posterior.draw(recipe.samples, seed + 2),
        posterior.draw(min(64, recipe.samples), seed + 3, correct="snis"),
    )
    for label in ("prior", "posterior", "corrected"):
        opened.save_samples(label, _tensors(getattr(drawn, label), job))
    talk("certifying")
    certificate = posterior.certify(recipe.certificate_paths, seed=seed + 4)
    _write_certificate(opened.path, certificate)
    opened.write_evaluation(recipe.evaluation(job, drawn))


def _prior_draws(recipe: Recipe) -> int:
    return 4 * recipe.samples


def _tensors(samples: Samples, job: Job) -> dict[str, Tensor]:
    tensors = {"x_0": job.target.prior._decoded(samples.x_0)}
    if samples.log_r is not None:
        tensors["log_r"] = samples.log_r
    if samples.log_w is not None:
        tensors["log_w"] = samples.log_w
    return tensors


def _write_certificate(folder: Path, certificate: Any) -> None:
    write_json(folder / "certificate.json", {**certificate.to_dict(), "text": str(certificate)})
    (folder / "certificate.txt").write_text(f"{certificate}\n")


def load_run(folder: Path) -> tuple[Recipe, Job]:
    """The recipe of a run folder and its trained posterior.

    Raises:
        CheckpointError: no finished run there, or its posterior does not fit its recipe.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{folder} is no run folder: it has no config.json")
    identity = json.loads(config.read_text())
    if identity.get("recipe") not in RECIPES:
        raise CheckpointError(f"{config} names the unknown recipe {identity.get('recipe')!r}")
    recipe = from_config(RECIPES[identity["recipe"]], identity["config"])
    torch.manual_seed(recipe.training.seed)
    job = recipe.job()
    load_posterior(job.posterior.chain, folder, identity)
    return recipe, job


def sample_run(
    folder: Path, n: int, seed: int, correct: Correction | None, effort: int, out: Path | None
) -> Path:
    """Draw samples from a run into a safetensors file; returns its path."""
    _, job = load_run(folder)
    drawn = job.posterior.draw(n, seed, correct, effort)
    with RunFolder(folder) as opened:
        return opened.save_samples("drawn", _tensors(drawn, job), out)


def certify_run(folder: Path, n: int, seed: int, confidence: float) -> str:
    """Certify a run again with new paths; returns the certificate as text."""
    _, job = load_run(folder)
    certificate = job.posterior.certify(n, seed=seed, confidence=confidence)
    _write_certificate(folder, certificate)
    return str(certificate)


def examine(recipe: Recipe) -> list[dict[str, str]]:
    """The doctor's checks of a recipe before training."""
    torch.manual_seed(0)
    job = recipe.job()
    chain, prior = job.posterior.chain, job.target.prior
    path = rollout(chain, 8, StreamNoise(0, range(8)))
    again = rollout(chain, 8, StreamNoise(0, range(8)))
    plain = rollout(chain.prior, 8, StreamNoise(0, range(8)))
    alone = sample_paths(chain, 1, seed=0)
    start = time.perf_counter()
    rollout(chain, 8, StreamNoise(1, range(8)))
    per_step = (time.perf_counter() - start) / (8 * chain.steps)
    probe = job.target.log_reward.probe(prior._decoded(path.x_0), require_signal=False)
    assert path.log_ratio is not None

    def row(check: str, passed: bool, remark: str) -> dict[str, str]:
        return {"check": check, "result": "ok" if passed else "FAIL", "remark": remark}

    same = torch.equal(path.x_0, plain.x_0)
    return [
        row("ratio to the prior is 1", not bool(path.log_ratio.any()), "log q/p = 0 on 8 paths"),
        row("posterior starts at the prior", same, "same samples for the same noise"),
        row("same seed, same samples", torch.equal(path.x_0, again.x_0), "two draws of 8"),
        row(
            "batch does not change a draw",
            torch.allclose(alone.x_0[0], path.x_0[0], atol=1e-4),
            "sample 0 alone and in a batch of 8",
        ),
        row(
            "samples are finite",
            bool(torch.isfinite(path.x_0).all()),
            f"shape {tuple(path.x_0.shape)}",
        ),
        row("reward returns log r", True, f"{probe.dtype}, shape {tuple(probe.shape)}"),
        row(
            "reward is deterministic",
            probe.is_deterministic,
            f"log r from {probe.minimum:.3g} to {probe.maximum:.3g}",
        ),
        row("chain has stochastic steps", True, f"{len(chain.density_steps)} of {chain.steps}"),
        row("cost", True, f"{1e3 * per_step:.2f} ms per sample and step"),
    ]
