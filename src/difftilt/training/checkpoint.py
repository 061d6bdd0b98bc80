"""A training on disk, bit for bit, and the posterior that samples.

    checkpoints/step-00000500/
        posterior.safetensors   the weights that sample: the moving average, and a network's buffers
        tensors.safetensors     present weights, log Z, optimisers, replay, behaviours, randomness
        state.json              step, clock, learning rates, identity, format
        manifest.json           size and SHA-256 of the three (written last)

``load_checkpoint`` checks everything before it changes anything. A damaged checkpoint falls back to
the one before it, with a ``CheckpointWarning``; one of another run or architecture is refused.
The *identity* is whatever JSON makes two runs the same (config, fingerprint of the prior).
"""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from difftilt.chains.chain import Chain
from difftilt.errors import CheckpointError
from difftilt.training.files import (
    MANIFEST,
    DamagedFile,
    check_seal,
    read_json,
    read_tensors,
    refuse_link,
    refuse_pickle,
    remove,
    seal,
    sweep,
)
from difftilt.training.identity import refuse_other, refuse_tensors
from difftilt.training.snapshot import (
    FORMAT,
    Snapshot,
    Tensors,
    environment,
    load_sampling,
    moment_shapes,
    sampling_tensors,
    trained,
)
from difftilt.training.state import TrainingState

KEPT = 2
POSTERIOR, TENSORS, STATE = "posterior.safetensors", "tensors.safetensors", "state.json"
DECIDED = ("parameter/", "value/", "log_z/", "random/")
STEP_FOLDER = re.compile(r"step-(\d{8,})")

Found = TypeVar("Found")


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written or read; the training goes on."""


def save_checkpoint(state: TrainingState, folder: Path, identity: dict) -> Path:
    """Write ``folder/step-%08d`` and keep the newest two.

    Arguments:
        state: a training between two updates.
        folder: the run's folder of checkpoints.
        identity: JSON that a resumed run must share.

    Returns:
        the new checkpoint's folder.

    Raises:
        CheckpointError: disk full or not writable (names the bytes needed), or NaN in the state;
            the checkpoints that exist are intact.
    """
    refuse_link(folder)
    sweep(folder, "step-*")
    snapshot = Snapshot.of(state, identity)
    target = folder / f"step-{state.step:08d}"
    for name, tensor in (snapshot.posterior | snapshot.tensors).items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise CheckpointError(f"{target} is not written: {name} holds NaN")
    files = {POSTERIOR: snapshot.posterior, TENSORS: snapshot.tensors}
    seal(target, files, {STATE: snapshot.document})
    _keep_newest(folder, state.step)
    return target


def load_checkpoint(state: TrainingState, folder: Path, identity: dict) -> int:
    """Put a training back to its newest intact checkpoint.

    Arguments:
        state: a new training of the same plan and architecture; unchanged if this raises.
        folder: the run's folder of checkpoints.
        identity: as given to ``save_checkpoint``.

    Returns:
        the step (number of updates done).

    Raises:
        CheckpointError: no checkpoint, none intact, another run, format or architecture, a pickle,
            or tensors that are unknown, given twice or NaN.
    """
    found = _newest_intact(folder, lambda path: _read(path, state, identity))
    found.apply(state)
    return state.step


def save_posterior(chain: Chain, folder: Path, identity: dict) -> Path:
    """Write only what samples: the chain's present kernel and initial law.

    Call ``TrainingState.use_average`` first to write the moving average. ``folder`` is replaced.

    Raises:
        CheckpointError: disk full or not writable; what was there is intact.
    """
    refuse_link(folder)
    weights = [p.detach() for p in trained(chain).values()]
    document = {"format": FORMAT, "identity": identity}
    seal(folder, {POSTERIOR: sampling_tensors(chain, weights)}, {STATE: document})
    return folder


def load_posterior(chain: Chain, folder: Path, identity: dict | None = None) -> None:
    """Load the sampling weights into a chain of the same architecture.

    Arguments:
        chain: the tilted chain; unchanged if this raises.
        folder: of ``save_posterior``, or a folder of checkpoints (the newest intact one is read).
        identity: what the writer was given; None accepts any.

    Raises:
        CheckpointError: as ``load_checkpoint``.
    """

    def read(path: Path) -> Tensors:
        check_seal(path)
        _checked_document(path, identity)
        return _checked_posterior(path, chain)

    sealed = (folder / MANIFEST).exists()
    found = read(folder) if sealed else _newest_intact(folder, read)
    load_sampling(chain, found)


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending; intact or not."""
    names = [STEP_FOLDER.fullmatch(p.name) for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name[1]) for name in names if name)


def _newest_intact(folder: Path, read: Callable[[Path], Found]) -> Found:
    refuse_pickle(folder)
    refuse_link(folder)
    damages: list[str] = []
    for step in reversed(checkpoint_steps(folder)):
        path = folder / f"step-{step:08d}"
        try:
            found = read(path)
        except DamagedFile as error:
            damages.append(str(error))
            continue
        if damages:
            note = f"fell back to the checkpoint at update {step}: {'; '.join(damages)}"
            warnings.warn(note, CheckpointWarning, stacklevel=4)
        return found
    if damages:
        raise CheckpointError(f"no checkpoint of {folder} is intact: {'; '.join(damages)}")
    raise CheckpointError(f"there is no checkpoint in {folder}; nothing to resume")


def _keep_newest(folder: Path, step: int) -> None:
    """Later steps are a branch that was given up when a damaged checkpoint was passed over."""
    steps = checkpoint_steps(folder)
    past = [s for s in steps if s <= step]
    for s in set(steps) - set(past[-KEPT:]):
        remove(folder / f"step-{s:08d}")


def _read(path: Path, state: TrainingState, identity: dict) -> Snapshot:
    check_seal(path)
    document = _checked_document(path, identity)
    posterior = _checked_posterior(path, state.chain)
    tensors = read_tensors(path / TENSORS)
    here = Snapshot.of(state, identity).tensors
    refuse_tensors(path, _shapes(_fixed(tensors)), _shapes(_fixed(here)))
    _refuse_unknown(path, tensors, state)
    _warn_of_machine(path, document["environment"])
    return Snapshot(posterior, tensors, document)


def _warn_of_machine(path: Path, there: dict[str, Any]) -> None:
    if there != environment():
        warnings.warn(
            f"{path} was written with {there}, and this is {environment()}: the resumed run may "
            "differ in the last bits",
            CheckpointWarning,
            stacklevel=6,
        )


def _checked_document(path: Path, identity: dict | None) -> dict[str, Any]:
    document = read_json(path / STATE)
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {document.get('format')}; this version reads format {FORMAT}: "
            "use the version of difftilt that wrote it"
        )
    if identity is not None:
        refuse_other(path, document["identity"], identity)
    return document


def _checked_posterior(path: Path, chain: Chain) -> Tensors:
    saved = read_tensors(path / POSTERIOR)
    own = sampling_tensors(chain, [p.detach() for p in trained(chain).values()])
    refuse_tensors(path / POSTERIOR, _shapes(saved), _shapes(own))
    return saved


def _refuse_unknown(path: Path, tensors: Tensors, state: TrainingState) -> None:
    prefixes = tuple(f"behaviour/{name}/" for name in state.behaviours)
    buffer = {f"buffer/{name}" for name in ("x_0", "log_r", "residual", "condition")}
    allowed = moment_shapes(state)
    for name, tensor in tensors.items():
        known = name in buffer or name.startswith((*prefixes, *DECIDED))
        if not known and tensor.shape not in allowed.get(name.rpartition("/")[0], ()):
            raise CheckpointError(
                f"{path / TENSORS} holds {name} of shape {tuple(tensor.shape)}, for which this "
                "training has no place"
            )


def _fixed(tensors: Tensors) -> Tensors:
    """Tensors whose names and shapes the architecture decides."""
    decided = {name: tensor for name, tensor in tensors.items() if name.startswith(DECIDED)}
    return {name: t for name, t in decided.items() if not name.startswith("random/cuda")}


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
