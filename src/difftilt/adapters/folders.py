"""Folders of a model that appear whole or not at all."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from difftilt.errors import CheckpointError, InputError


@contextmanager
def without_loading_bars(*packages: Literal["transformers", "diffusers"]) -> Iterator[None]:
    """Inside, packages show no bars while they read a model: they would stand among our lines."""
    with ExitStack() as stack:
        for package in filter(find_spec, packages):
            logging: Any = import_module(f"{package}.utils").logging
            if logging.is_progress_bar_enabled():
                logging.disable_progress_bar()
                stack.callback(logging.enable_progress_bar)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, models load without bars, and transformers does not tell which backends it takes."""
    with without_loading_bars("diffusers", "transformers"), ExitStack() as stack:
        if find_spec("transformers"):
            logging: Any = import_module("transformers.utils").logging
            stack.callback(logging.set_verbosity, logging.get_verbosity())
            logging.set_verbosity_error()
        yield


def read_weights(file: Path) -> dict[str, Any]:
    """A file of weights by name (or nested by name): safetensors, or torch's own as tensors alone.

    Raises:
        InputError: it is missing, damaged, or holds anything but tensors.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zip and torch have kinds of their own
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(f"{file} is no readable file of weights: {reason}") from error


def check_replaceable(folder: Path, marker: str, kind: str) -> None:
    """Refuse a place that holds something else.

    Arguments:
        folder: where a model is to be written.
        marker: a file that every older model of this kind has.
        kind: what it is called, e.g. "diffusers pipeline".

    Raises:
        InputError: a file is there, or a folder of other files.
    """
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / marker).is_file():
            raise InputError(f"{folder} holds files that are no {kind}; choose a new folder")
    elif folder.exists():
        raise InputError(f"{folder} is a file; choose a folder to export to")


def write_whole(folder: Path, write: Callable[[Path], None], kind: str) -> None:
    """Write a folder beside its place, then move it there; an older one goes last.

    Arguments:
        folder: where to.
        write: writes into a folder that does not exist yet.
        kind: what is written, e.g. "pipeline".

    Raises:
        CheckpointError: the disk says no.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # In the same parent, so that the last move is a rename.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as holder:
            new, old = Path(holder, "new"), Path(holder, "old")
            write(new)
            _exchange(folder, new, old)
    except OSError as error:
        raise CheckpointError(f"cannot write the {kind} to {folder}: {error}") from error


def _exchange(folder: Path, new: Path, old: Path) -> None:
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
