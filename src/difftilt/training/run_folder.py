"""A run on disk: what was asked, how it went, what came out.

    config.json  metrics.jsonl  tensorboard/  checkpoints/  samples/  certificate.json
    evaluation.json  status.json  lock  report.html

One process at a time works in it (``with RunFolder(path):``); any number may read. JSON documents
are replaced in one step; ``metrics.jsonl`` is appended to, and its last line may be half written.
"""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from difftilt.errors import CheckpointError
from difftilt.training.checkpoint import checkpoint_steps
from difftilt.training.files import (
    read_json,
    read_tensors,
    refuse_link,
    sweep,
    to_json,
    write_json,
    write_tensors,
    write_text,
)
from difftilt.training.identity import refuse_other
from difftilt.training.steps import Metrics

STATES = ("running", "finished", "interrupted", "failed")
AFTERWARDS = ("samples", "certificate_paths")  # settings that a resumed run may change
CURVES = ("loss", "log_z", "ess", "log_r", "beta", "gradient_norm", "kl", "diversity")


class RunFolder:
    """A run folder; nothing is written before the first ``with`` or write.

    Arguments:
        path: the folder; made when first written to.

    Raises:
        CheckpointError: the path is a file, or its checkpoints are a symbolic link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"run folder {path} is a file; choose another name")
        refuse_link(self.checkpoints)
        self._lock: int | None = None
        self._holders = 0
        self._board: Any = None

    def __enter__(self) -> "RunFolder":
        """Keep other processes out until the matching exit; may be nested.

        Raises:
            CheckpointError: another process works in the folder; names it.
        """
        if self._holders == 0:
            self._lock = self._locked()
            sweep(self.path)
        self._holders += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._close()

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def config(self) -> dict[str, Any]:
        """``config.json``.

        Raises:
            CheckpointError: missing or damaged.
        """
        found = self.read("config")
        if not isinstance(found, dict):
            raise CheckpointError(
                f"{self._document('config')} holds {found!r:.40} where the record of a run is "
                "meant; restore the file, or train again"
            )
        return found

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must share: recipe, config, prior, chain and reward."""
        return identity_of(self.config) if self._document("config").exists() else {}

    def begin(self, config: Mapping[str, Any], resume: bool = False) -> None:
        """Write ``config.json`` of a new run, or check that it is this run's.

        Arguments:
            config: "recipe", "config", "prior" and whatever else describes the run.
            resume: continue the run that is there.

        Raises:
            CheckpointError: a run is there and ``resume`` is False; none is there and it is True;
                or it differs (names the fields) in what its training depends on.
        """
        path = self._document("config")
        used = path.exists() or bool(checkpoint_steps(self.checkpoints))
        if used and not resume:
            raise CheckpointError(
                f"run folder {self.path} already holds a run; resume it (--resume, or "
                "fit(..., resume=True)) or choose another folder"
            )
        if resume and not path.exists():
            raise CheckpointError(f"there is no run in {self.path} to resume")
        if resume:
            here = as_recorded(self.identity, identity_of(config))
            refuse_other(path, _trained(self.identity), _trained(here))
        else:
            self.write("config", {"format": 1, **config})

    def write(self, name: str, value: Any) -> None:
        """Replace the document ``name.json``: "config", "certificate", "evaluation", "status".

        Raises:
            CheckpointError: the disk is full; the old document is intact.
        """
        write_json(self._document(name), value)

    def read(self, name: str) -> Any:
        """The document ``name.json``.

        Raises:
            CheckpointError: missing or damaged.
        """
        return read_json(self._document(name))

    def set_status(self, state: str, step: int, of: int, seconds: float, message: str = "") -> None:
        """Replace ``status.json``; the state is one of ``STATES``."""
        assert state in STATES
        status = {"state": state, "step": step, "of": of, "seconds": seconds, "message": message}
        self.write("status", status)

    def log(self, metrics: Metrics, seconds: float) -> None:
        """Append one update to ``metrics.jsonl`` and to TensorBoard, where that is installed.

        Raises:
            CheckpointError: the disk is full; no half line stays.
        """
        told = {name: value for name, value in asdict(metrics).items() if value is not None}
        line = to_json({**told, "seconds": seconds}) + "\n"
        _append(self._metrics, line.encode())
        if self._board is None:
            self._board = self._tensorboard(metrics.step)
        self._mirror(lambda: self._draw(metrics))

    def metrics(self) -> list[dict[str, Any]]:
        """The logged updates; a half-written last line is left out.

        Raises:
            CheckpointError: a line before the last is no JSON.
        """
        lines = self._metrics.read_bytes().splitlines(True) if self._metrics.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        try:
            return [json.loads(line) for line in whole]
        except ValueError as error:
            raise CheckpointError(
                f"{self._metrics} holds a line that is no JSON: {error}"
            ) from None

    def rewind(self, step: int) -> None:
        """Drop the logged updates after ``step``, and a half-written last line."""
        if self._metrics.exists():
            rows = [to_json(row) + "\n" for row in self.metrics() if row["step"] <= step]
            write_text(self._metrics, "".join(rows))

    def save_samples(
        self,
        name: str,
        x_0: Shaped[Tensor, "n ..."],
        log_r: Float[Tensor, " n"],
        log_w: Float[Tensor, " n"] | None = None,
        seed: int | None = None,
        pictures: Shaped[Tensor, "k 3 H W"] | None = None,
    ) -> Path:
        """Write ``samples/name.safetensors``, with pictures of the first samples if there are any.

        Raises:
            CheckpointError: the disk is full; older samples are intact.
        """
        tensors = {"x_0": x_0, "log_r": log_r}
        tensors |= {} if log_w is None else {"log_w": log_w}
        tensors |= {} if seed is None else {"seed": torch.tensor(seed)}
        tensors |= {} if pictures is None else {"pictures": pictures}
        path = self._samples(name)
        write_tensors(path, tensors)
        return path

    def save_lines(self, name: str, lines: list[str]) -> Path:
        """Write ``samples/name.txt``, a line each.

        Raises:
            CheckpointError: the disk is full; older samples are intact.
        """
        path = self._samples(name).with_suffix(".txt")
        write_text(path, "".join(line.replace("\n", " ") + "\n" for line in lines))
        return path

    def load_samples(self, name: str) -> dict[str, Tensor]:
        """``x_0``, ``log_r`` and, where they were saved, ``log_w`` and ``seed``.

        Raises:
            CheckpointError: missing, damaged, or NaN.
        """
        return read_tensors(self._samples(name))

    def flush(self) -> None:
        """Bring TensorBoard's file up to date."""
        self._mirror(lambda: self._board.flush())

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _document(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def _samples(self, name: str) -> Path:
        return self.path / "samples" / f"{name}.safetensors"

    def _locked(self) -> int:
        import fcntl  # not on Windows, which can still read runs

        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise CheckpointError(
                f"run folder {self.path} is in use by process {holder}; wait for it, or choose "
                "another folder"
            ) from None
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        return lock

    def _close(self) -> None:
        self._mirror(lambda: self._board.close())
        self._board = None
        if self._lock is not None:
            os.truncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def _tensorboard(self, step: int) -> Any:
        """TensorBoard's writer, or False where there is none."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return False
        try:
            return SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        except OSError as error:
            warnings.warn(f"TensorBoard is left out: {error}", stacklevel=3)
            return False

    def _draw(self, metrics: Metrics) -> None:
        for name in CURVES:
            self._board.add_scalar(name, getattr(metrics, name), metrics.step)

    def _mirror(self, act: Callable[[], None]) -> None:
        """TensorBoard only mirrors ``metrics.jsonl``, so a full disk there stops nothing."""
        if not self._board:
            return
        try:
            act()
        except OSError as error:
            self._board = False
            warnings.warn(f"TensorBoard is left out from here on: {error}", stacklevel=4)


def identity_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``config.json`` that makes two runs the same."""
    prior, reward = config.get("prior"), config.get("reward")
    fingerprint = prior.get("fingerprint") if isinstance(prior, Mapping) else prior
    found = {"recipe": config.get("recipe"), "config": config.get("config"), "prior": fingerprint}
    if isinstance(prior, Mapping) and "chain" in prior:
        found["chain"] = prior["chain"]
    if isinstance(reward, Mapping):
        found["reward"] = reward.get("sha256")
    return found


def as_recorded(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without what a record lacks: older versions kept neither chain nor reward."""
    return {name: value for name, value in here.items() if name in there}


def _trained(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without the settings of what follows the training."""
    config = identity.get("config")
    if not isinstance(config, Mapping):
        return dict(identity)
    return {**identity, "config": {k: v for k, v in config.items() if k not in AFTERWARDS}}


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes fitted")
        except OSError as error:
            file.truncate(before)
            raise CheckpointError(f"cannot append to {path}: {error}; free some space") from error
