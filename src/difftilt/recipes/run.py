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
from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.diagnostics.certificate import Certificate
from difftilt.diagnostics.conditional import ConditionalCertificate
from difftilt.diagnostics.evidence import effective_sample_size
from difftilt.errors import CheckpointError, InputError
from difftilt.noise import StreamNoise
from difftilt.recipes.base import Drawn, Job, Recipe, from_config, to_config
from difftilt.recipes.catalogue import RECIPES
from difftilt.recipes.pictures import save_pictures
from difftilt.sampling.draws import Correction, Samples, sample_paths
from difftilt.training.checkpoint import (
    checkpoint_steps,
    load_checkpoint,
    load_posterior,
    save_posterior,
)
from difftilt.training.fits import FIT, POSTERIOR
from difftilt.training.identity import refuse_changed
from difftilt.training.loop import interruptible, progress_bar, terminable, train
from difftilt.training.run_folder import RunFolder, identity_of
from difftilt.training.state import TrainingState

PRIOR_DRAWS = 3
CORRECTED = 64
CORRECTION_EFFORT = 4
CERTIFIED_CONTEXTS = 10

Talk = Callable[[str], None]


def config_text(name: str, recipe: Recipe) -> str:
    """The resolved configuration, as JSON."""
    return json.dumps({"recipe": name, "config": to_config(recipe)}, indent=1)


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
        False if interrupted, in the training or after it (the folder holds a checkpoint), True when
        done.
    """
    torch.manual_seed(recipe.training.seed)
    # Whatever is wrong with the input is said before there is a folder.
    recipe.check_draws()
    opened = RunFolder(folder)
    job = recipe.job()
    talk(_probe(job))
    state = job.target.state(job.posterior, job.training, job.sources)
    with opened:
        opened.begin(_config(name, recipe, job, command or []), resume)
        if resume and checkpoint_steps(opened.checkpoints):
            talk(f"resuming after update {_resumed(state, opened)}")
        elif resume:
            talk("no checkpoint was saved yet: starting again at update 1")
        with interruptible() as stop:
            for _ in progress_bar(train(state, opened, stop=stop), state):
                pass
        if state.progress < 1:
            return False
        state.use_average()
        try:
            with terminable():
                save_posterior(job.posterior.chain, folder / POSTERIOR, opened.identity)
                _finish(recipe, job, opened, talk)
        except KeyboardInterrupt:
            message = "stopped after the training; resume to draw samples and certify"
            status = {**opened.read("status"), "state": "interrupted", "message": message}
            opened.write("status", status)
            return False
    return True


def _resumed(state: TrainingState, opened: RunFolder) -> int:
    return load_checkpoint(state, opened.checkpoints, opened.identity)


def _probe(job: Job) -> str:
    """Score a few prior samples before any training: a bad reward is named at once."""
    path = sample_paths(job.bound(job.target.prior.chain, 32), 32, seed=0)
    seen = job.target.prior.decoded(path.x_0)
    probe = job.target.log_reward.probe(seen, path.condition, require_signal=False)
    return f"reward on 32 prior samples: log r from {probe.minimum:.3g} to {probe.maximum:.3g}"


def _config(name: str, recipe: Recipe, job: Job, command: list[str]) -> dict[str, Any]:
    return {
        "difftilt": difftilt.__version__,
        "recipe": name,
        "command": command,
        "config": to_config(recipe),
        **_inputs(job),
        "machine": {
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _inputs(job: Job) -> dict[str, Any]:
    """What a run keeps of its prior and its reward."""
    return {"prior": job.target.prior.record, "reward": {"sha256": job.reward_digest}}


def _finish(recipe: Recipe, job: Job, opened: RunFolder, talk: Talk) -> None:
    talk("drawing samples")
    target, posterior, seed = job.target, job.posterior, recipe.training.seed
    prior = dataclasses.replace(posterior, chain=target.prior.chain)
    from_prior = job.draw(prior, PRIOR_DRAWS * recipe.samples, seed + 1)
    raw = job.draw(posterior, recipe.samples, seed + 2)
    corrected = _corrected(job, raw, seed + 3, talk)
    for label, samples in (("prior", from_prior), ("posterior", raw), ("corrected", corrected)):
        if samples is not None:
            _save(opened, label, samples, job, recipe)
    talk("certifying")
    certificate = _certified(job, recipe.certificate_paths, seed=seed + 4)
    drawn = Drawn(from_prior, raw, corrected, certificate)
    _write_certificate(opened, certificate)
    listed = save_pictures(opened.path, recipe.pictures(job, drawn))
    opened.write("evaluation", {**recipe.evaluation(job, drawn), "pictures": listed})


def _corrected(job: Job, raw: Samples, seed: int, talk: Talk) -> Samples | None:
    """Resampled draws, unless the weights are so uneven that they would be copies of a few."""
    assert raw.log_w is not None
    if job.contexts is not None:
        each = [job.posterior.given(context[None]) for context in job.contexts]
        effort = 2 * CORRECTION_EFFORT
        parts = [one.draw(1, seed + i, "snis", effort) for i, one in enumerate(each)]
        return Samples(
            torch.cat([part.x_0 for part in parts]),
            torch.cat([part.log_r for part in parts if part.log_r is not None]),
        )
    if CORRECTION_EFFORT * effective_sample_size(raw.log_w) < 1:
        talk("no corrected samples: the weights are too uneven to resample (see the certificate)")
        return None
    n = min(CORRECTED, len(raw.x_0))
    return job.posterior.draw(n, seed, correct="snis", effort=CORRECTION_EFFORT)


def _certified(job: Job, paths: int, **options: Any) -> Certificate | ConditionalCertificate:
    """The certificate, or one of each of the first contexts."""
    if job.contexts is None:
        return job.posterior.certify(paths, **options)
    chosen = job.contexts[:CERTIFIED_CONTEXTS]
    found = job.posterior.certify_each(chosen, max(64, paths // len(chosen)), **options)
    return dataclasses.replace(found, names=job.names[: len(chosen)]) if job.names else found


def _save(opened: RunFolder, name: str, samples: Samples, job: Job, recipe: Recipe) -> Path:
    assert samples.log_r is not None
    decoded, lines = job.target.prior.decoded(samples.x_0), recipe.readable(job, samples)
    pictures = recipe.pictured(job, samples)
    path = opened.save_samples(name, decoded, samples.log_r, samples.log_w, pictures=pictures)
    return path if lines is None else opened.save_lines(name, lines)


def _write_certificate(
    opened: RunFolder, certificate: Certificate | ConditionalCertificate
) -> None:
    opened.write("certificate", {**certificate.to_dict(), "text": str(certificate)})


def load_run(folder: Path, *, scored: bool = True) -> tuple[Recipe, Job]:
    """The recipe of a run folder and its trained posterior.

    Arguments:
        folder: of a finished run.
        scored: whether the reward will be asked, and so has to be the run's own.

    Raises:
        CheckpointError: no finished run there, its prior or reward has changed since, or its
            posterior does not fit its recipe.
    """
    if not (folder / "config.json").exists():
        raise CheckpointError(f"there is no run in {folder}; name a folder that train wrote")
    config = RunFolder(folder).config
    name = config.get("recipe")
    if name == FIT:
        raise CheckpointError(
            f"{folder} was written by fit, whose prior and reward are Python objects; load it in "
            f"Python, with target.posterior(form).load({str(folder)!r})"
        )
    if not (folder / POSTERIOR).exists():
        raise CheckpointError(
            f"the training in {folder} is not finished; continue it with train ... --resume"
        )
    if not isinstance(name, str) or name not in RECIPES:
        raise CheckpointError(
            f"{folder} was written by the unknown recipe {name!r}; restore its config.json, or use "
            "the version of difftilt that knows it"
        )
    recipe = from_config(RECIPES[name], config.get("config"))
    torch.manual_seed(recipe.training.seed)
    job = recipe.job()
    # A prior without a fingerprint of its own is told by its chain, wherever it lies now.
    own = () if job.target.prior.pipeline is None else ("prior",)
    compared = (*own, "chain", "reward") if scored else (*own, "chain")
    there, here = identity_of(config), identity_of(_inputs(job))
    known = [name for name in compared if name in there]
    refuse_changed(folder, {k: there[k] for k in known}, {k: here[k] for k in known})
    load_posterior(job.posterior.chain, folder / POSTERIOR, there)
    return recipe, job


def sample_run(folder: Path, n: int, seed: int, correct: Correction | None, effort: int) -> Path:
    """Draw samples from a run into ``samples/drawn.safetensors``; returns its path."""
    recipe, job = load_run(folder)
    if job.contexts is not None and correct is not None:
        raise InputError(
            "corrections weigh samples of one condition, and this run has several; its corrected "
            "samples are in samples/corrected.safetensors, or draw with correct='none'"
        )
    if correct is None:
        drawn = job.draw(job.posterior, n, seed)
    else:
        drawn = job.posterior.draw(n, seed, correct, effort)
    with RunFolder(folder) as opened:
        return _save(opened, "drawn", drawn, job, recipe)


def certify_run(folder: Path, n: int, seed: int, confidence: float) -> str:
    """Certify a run again with new paths; returns the certificate as text."""
    _, job = load_run(folder)
    certificate = _certified(job, n, seed=seed, confidence=confidence)
    with RunFolder(folder) as opened:
        _write_certificate(opened, certificate)
    return str(certificate)


def examine(recipe: Recipe) -> list[dict[str, str]]:
    """The doctor's checks of a recipe before training."""
    torch.manual_seed(0)
    job = recipe.job()
    chain, prior = job.bound(job.posterior.chain, 8), job.target.prior
    path = rollout(chain, 8, StreamNoise(0, range(8)))
    again = rollout(chain, 8, StreamNoise(0, range(8)))
    alone = sample_paths(job.bound(job.posterior.chain, 1), 1, seed=0)
    start = time.perf_counter()
    rollout(chain, 8, StreamNoise(1, range(8)))
    per_step = (time.perf_counter() - start) / (8 * chain.steps)
    probe = job.target.log_reward.probe(
        prior.decoded(path.x_0), path.condition, require_signal=False
    )
    assert path.log_ratio is not None

    def row(check: str, passed: bool, remark: str) -> dict[str, str]:
        return {"check": check, "result": "ok" if passed else "FAIL", "remark": remark}

    return [
        row("ratio to the prior is 1", *_no_ratio(path.log_ratio, "its own")),
        row("posterior starts at the prior", *_starts_at_prior(chain, path.x_0)),
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


def _no_ratio(ratio: Tensor, whose: str) -> tuple[bool, str]:
    """A trainable copy may round differently from a frozen network, by some 1e-5 nats."""
    largest = float(ratio.abs().max())
    return largest < 1e-3, f"|log q/p| <= {largest:.1g} on 8 of {whose} paths"


def _starts_at_prior(chain: Chain, x_0: Tensor) -> tuple[bool, str]:
    plain = rollout(chain.prior, 8, StreamNoise(0, range(8)))
    if torch.equal(x_0, plain.x_0):
        return True, "same samples for the same noise"
    # A mixture spends noise on the choice of a component: it is the law that must be the prior's.
    with torch.no_grad():
        return _no_ratio(log_ratio(chain, plain), "the prior's")


def certificate_text(folder: Path) -> str:
    """The certificate of a run folder, as text."""
    return RunFolder(folder).read("certificate")["text"]
