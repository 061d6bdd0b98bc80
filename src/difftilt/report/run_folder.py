"""What a run folder says, read for the report: no network, no model, no optional file required.

A file that is absent is None. A file that cannot be read is None as well, and a sentence of
``problems`` says so: a run that was killed deserves its report too.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from difftilt.errors import CheckpointError

FORMAT = 1
SAMPLE_SETS = ("prior", "posterior", "corrected")
FEWEST_POINTS = 32  # of a cloud in space; fewer rows of three numbers are something else
RECORDS = ("config", "status", "certificate", "evaluation")

Read = TypeVar("Read")


@dataclass(frozen=True)
class Samples:
    """Draws of one sampler.

    Attributes:
        x_0: (n, *event) ends, or None.
        log_r: (n,) log-rewards in nats, or None.
        pictures: (k, 3, H, W) of the first ends, bytes as floats, or None.
    """

    x_0: np.ndarray | None
    log_r: np.ndarray | None
    pictures: np.ndarray | None = None

    @property
    def kind(self) -> str:
        """How the ends can be drawn: "image", "plane" (2-D points), "cloud" or "other"."""
        if self.x_0 is None or not self.x_0.size:
            return "other"
        if self.pictures is not None and len(self.pictures):
            return "image"
        if self.x_0.ndim == 4 and self.x_0.shape[1] in (1, 3):
            return "image"
        if self.x_0.ndim == 3 and self.x_0.shape[2] == 3 and self.x_0.shape[1] >= FEWEST_POINTS:
            return "cloud"
        return "plane" if self.x_0.ndim == 2 and self.x_0.shape[1] == 2 else "other"


@dataclass(frozen=True)
class RunRecord:
    """Everything that the report tells of a run.

    Attributes:
        folder: where it was read.
        config, status, certificate, evaluation: the JSON objects, None where absent.
        metrics: one mapping per logged update, in the order of the updates.
        samples: by name ("prior", "posterior", "corrected"), those that exist.
        problems: sentences on files that exist and could not be read.
    """

    folder: Path
    config: Mapping[str, Any] | None
    status: Mapping[str, Any] | None
    certificate: Mapping[str, Any] | None
    evaluation: Mapping[str, Any] | None
    metrics: tuple[Mapping[str, Any], ...]
    samples: Mapping[str, Samples]
    problems: tuple[str, ...]


def read_run(folder: Path) -> RunRecord:
    """Read what there is of a run.

    Raises:
        CheckpointError: not a run folder, or one of another format.
    """
    if not any((folder / f"{name}.json").is_file() for name in RECORDS):
        raise CheckpointError(
            f"{folder} is not a run folder: it has no config.json; give the folder of a run"
        )
    problems: list[str] = []
    records = {name: _try(_read_object, folder / f"{name}.json", problems) for name in RECORDS}
    _check_format(folder, records["config"])
    found = {
        name: _try(_read_samples, folder / "samples" / f"{name}.safetensors", problems)
        for name in SAMPLE_SETS
    }
    return RunRecord(
        folder=folder,
        config=records["config"],
        status=records["status"],
        certificate=records["certificate"],
        evaluation=records["evaluation"],
        metrics=tuple(_read_metrics(folder / "metrics.jsonl", problems)),
        samples={name: samples for name, samples in found.items() if samples is not None},
        problems=tuple(problems),
    )


def _check_format(folder: Path, config: Mapping[str, Any] | None) -> None:
    found = FORMAT if config is None else config.get("format", FORMAT)
    if found != FORMAT:
        raise CheckpointError(
            f"{folder} is a run folder of format {found!r}, this version reads format {FORMAT}; "
            "report it with the version of difftilt that wrote it"
        )


def _try(read: Callable[[Path], Read], path: Path, problems: list[str]) -> Read | None:
    if not path.exists():
        return None
    try:
        return read(path)
    except Exception as error:  # whatever a damaged file makes its reader raise
        problems.append(f"{path.name} could not be read and is left out: {error}")
        return None


def _read_object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__} where an object is meant")
    return value


def _read_samples(path: Path) -> Samples:
    from safetensors.torch import load_file

    tensors = {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    samples = Samples(tensors.get("x_0"), tensors.get("log_r"), tensors.get("pictures"))
    counts = {len(each) for each in (samples.x_0, samples.log_r) if each is not None}
    if len(counts) > 1:
        raise ValueError(f"its tensors disagree on the number of draws: {sorted(counts)}")
    return samples


def _read_metrics(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The logged updates; after a resumption the later record of an update counts."""
    if not path.exists():
        return []
    by_step: dict[int, dict[str, Any]] = {}
    broken = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            by_step[int(record["step"])] = record
        except (ValueError, KeyError, TypeError):
            broken += 1
    if broken:
        problems.append(
            f"{broken} of the lines of metrics.jsonl could not be read and are left out"
        )
    return [by_step[step] for step in sorted(by_step)]


def number(record: Mapping[str, Any] | None, *path: str) -> float | None:
    """A finite number deep in nested objects, or None if any part of the path is absent."""
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def finite(values: np.ndarray) -> np.ndarray:
    """The finite ones of an array, flat."""
    flat = values.ravel()
    return flat[np.isfinite(flat)]
