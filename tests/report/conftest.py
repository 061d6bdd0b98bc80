"""Run folders as a training leaves them, from made-up draws and a real certificate."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from difftilt.diagnostics.certificate import Expense, PathScores, certify_weights
from difftilt.report import write_report

HOSTILE = '<script>alert("x")</script>&<img src=x onerror=alert(1)>'


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


def _certificate(trust: bool) -> dict[str, Any]:
    """Of a sampler on p = N(0, 1), log r = -x²/2: nearly exact, or one that misses half."""
    generator = torch.Generator().manual_seed(1)
    prior = torch.randn(2_000, generator=generator)
    sampler = math.sqrt(0.5) * torch.randn(8_000, generator=generator) * 1.05
    sampler = sampler if trust else sampler.abs() + 0.2
    certificate = certify_weights(
        PathScores(_log_ratio(sampler, trust), -(sampler**2) / 2),
        PathScores(_log_ratio(prior, trust), -(prior**2) / 2),
        log_bound=0.0,
        expense=Expense(network_calls=400_000, reward_calls=10_000),
    )
    assert certificate.trust is trust, "the made-up sampler is meant to be this good"
    return certificate.to_dict() | {"text": str(certificate)}


def _log_ratio(x: Tensor, trust: bool) -> Tensor:
    scale = math.sqrt(0.5) * 1.05
    centred = x if trust else x - 0.2
    log_q = -((centred / scale) ** 2) / 2 - math.log(scale) + (0 if trust else math.log(2))
    log_q = log_q if trust else torch.where(centred > 0, log_q, -60.0)
    return log_q + x**2 / 2


def _metrics() -> str:
    generator = torch.Generator().manual_seed(2)
    lines = []
    for step in range(1, 1_501):
        noise = torch.randn(5, generator=generator).tolist()
        near = 1 - math.exp(-step / 300)
        record = {
            "step": step,
            "phase": "warm start" if step <= 500 else "balance",
            "loss": 40 * math.exp(-step / 250 + 0.4 * noise[0]) + 0.05,
            "log_z": None if step <= 500 else -0.35 - 0.6 * (1 - near) + 0.02 * noise[1],
            "ess": min(1.0, 0.9 * near + 0.04 * abs(noise[2])),
            "log_r": -6 * (1 - near) - 0.3 + 0.1 * noise[3],
            "beta": 1.0,
            "gradient_norm": 3 * math.exp(-step / 400 + 0.5 * noise[4]),
            "seconds": 0.1 * step,
        }
        lines.append(json.dumps(record))
    return "\n".join(lines) + "\n"


def _config() -> dict[str, Any]:
    return {
        "format": 1,
        "difftilt": "0.1.0",
        "recipe": "fashion",
        "command": ["difftilt", "train", "fashion", "--out", "runs/my first run", "--seed", "3"],
        "config": {
            "seed": 3,
            "objective": {"log_z": "batch", "residual_clip": None},
            "optimisation": {"learning_rate": 0.0015, "ema": 0.998},
            "label": HOSTILE,
        },
        "prior": {"source": "difftilt/fashion_prior", "fingerprint": "9f2c" * 16},
        "machine": {
            "platform": "Linux-6.1-x86_64",
            "cpu_count": 2,
            "threads": 2,
            "torch": "2.6.0",
            "python": "3.11.7",
        },
        "started": "2026-01-15T10:42:07+00:00",
    }


def _evaluation() -> dict[str, Any]:
    def row(name: str, *values: float | None, note: str = "") -> dict[str, Any]:
        keys = ("prior", "posterior", "corrected", "truth")
        return {"name": name, **dict(zip(keys, values, strict=True)), "note": note}

    return {
        "title": "Trousers, judged by a classifier that the training never saw",
        "rows": [
            row("share of the class", 0.0986, 0.953, 0.9712, 0.969, note="held-out classifier"),
            row("diversity", 12.41, 9.87, 9.91, 9.94, note="mean pairwise feature distance"),
            row("log Z error", None, 0.0031, None, 0.0, note=HOSTILE),
        ],
        "notes": ["Truth: rejection from the prior, 10,000 draws."],
    }


def _images(count: int, channels: int, generator: torch.Generator) -> Tensor:
    """Soft bright blobs on black, (count, channels, 28, 28) in [-1, 1]."""
    axis = torch.linspace(-1, 1, 28)
    centre = 0.8 * torch.rand(count, 2, 1, 1, generator=generator) - 0.4
    distance = (axis[:, None] - centre[:, 0]) ** 2 + (axis[None, :] - centre[:, 1]) ** 2
    shapes = 2 * torch.exp(-6 * distance) - 1
    noise = 0.1 * torch.randn(count, channels, 28, 28, generator=generator)
    return (shapes[:, None] + noise).clamp(-1, 1)


def _points(count: int, centres: Tensor, generator: torch.Generator) -> Tensor:
    rows = torch.randint(len(centres), (count,), generator=generator)
    return centres[rows] + 0.35 * torch.randn(count, 2, generator=generator)


def _save_samples(folder: Path, name: str, x_0: Tensor, log_r: Tensor) -> None:
    folder.mkdir(exist_ok=True)
    save_file({"x_0": x_0.contiguous(), "log_r": log_r}, folder / f"{name}.safetensors")


def _write_run(folder: Path, trust: bool) -> Path:
    folder.mkdir()
    _write_json(folder / "config.json", _config())
    _write_json(folder / "certificate.json", _certificate(trust))
    _write_json(folder / "evaluation.json", _evaluation())
    status = {"state": "finished", "step": 1500, "of": 1500, "seconds": 252.4, "message": ""}
    _write_json(folder / "status.json", status)
    (folder / "metrics.jsonl").write_text(_metrics(), encoding="utf-8")
    return folder


def _image_run(folder: Path) -> Path:
    """A trusted run with 100 grey images of each of three samplers."""
    run, generator = _write_run(folder, trust=True), torch.Generator().manual_seed(3)
    for name, shift in [("prior", -6.0), ("posterior", -0.4), ("corrected", -0.3)]:
        log_r = shift - torch.randn(100, generator=generator).abs() * (2 if shift < -1 else 0.3)
        _save_samples(run / "samples", name, _images(100, 1, generator), log_r)
    return run


def _plane_run(folder: Path) -> Path:
    """A run not to be trusted, with 2,000 2-D points of prior and posterior."""
    run, generator = _write_run(folder, trust=False), torch.Generator().manual_seed(4)
    grid = torch.cartesian_prod(torch.arange(-4.0, 5.0, 2.0), torch.arange(-4.0, 5.0, 2.0))
    for name, centres in [("prior", grid), ("posterior", grid[::3])]:
        x_0 = _points(2_000, centres, generator)
        log_r = -((x_0 - 1) ** 2).sum(1) / 4
        log_r[x_0[:, 0] > 4.5] = -math.inf
        _save_samples(run / "samples", name, x_0, log_r)
    return run


@pytest.fixture
def image_run(tmp_path: Path) -> Path:
    """A trusted run with draws of images, without its report."""
    return _image_run(tmp_path / "images")


@pytest.fixture
def quick_run(image_run: Path) -> Path:
    """The same without draws and curves, whose figures take most of a report's time."""
    (image_run / "metrics.jsonl").unlink()
    shutil.rmtree(image_run / "samples")
    return image_run


@pytest.fixture(scope="session")
def image_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a trusted run with draws of images; not to be changed."""
    return write_report(_image_run(tmp_path_factory.mktemp("report") / "images"))


@pytest.fixture(scope="session")
def plane_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run not to be trusted, with 2-D points; not to be changed."""
    return write_report(_plane_run(tmp_path_factory.mktemp("report") / "points"))


@pytest.fixture
def save_samples() -> Callable[[Path, str, Tensor, Tensor], None]:
    """Write a file of draws: folder, name of the sampler, x_0, log r."""
    return _save_samples
