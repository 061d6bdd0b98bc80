"""Folders of a model that appear whole or not at all."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difftilt.errors import CheckpointError, InputError

Network = TypeVar("Network", bound=nn.Module)


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


@dataclass(frozen=True)
class OwnFolder:
    """How a model of our own lies in a folder: its config as JSON, its weights as safetensors.

    Arguments:
        kind: what it is called, e.g. "difftilt diffusion policy".
        name: of both files, before their endings.
    """

    kind: str
    name: str

    @property
    def files(self) -> tuple[str, str]:
        """Names of the config and of the weights."""
        return f"{self.name}.json", f"{self.name}.safetensors"

    def write(self, folder: str | Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
        """Write both; the folder appears whole or not at all.

        Raises:
            InputError: the place holds something else.
            CheckpointError: the disk says no.
        """
        folder = Path(folder).expanduser()
        config_name, weights_name = self.files
        check_replaceable(folder, config_name, self.kind)

        def write(new: Path) -> None:
            new.mkdir()
            text = json.dumps({"kind": self.kind, "config": config}, indent=1)
            (new / config_name).write_text(text + "\n")
            held = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
            save_file(held, new / weights_name)

        write_whole(folder, write, self.kind)
        return folder

    def read(
        self, folder: str | Path, built: Callable[[dict[str, Any]], Network], extra: str
    ) -> tuple[dict[str, Any], Network, Tensor | None]:
        """The config, the network with its weights in float32 and frozen, and one more tensor.

        Arguments:
            folder: what ``write`` made.
            built: a network from the config.
            extra: name of a tensor that is no weight, and need not be there.

        Raises:
            CheckpointError: a file is missing, broken or does not fit.
            InputError: the config is out of range.
        """
        folder = Path(folder).expanduser()
        config_name, weights_name = self.files
        try:
            config = json.loads((folder / config_name).read_text())["config"]
            network, weights = built(config), load_file(folder / weights_name)
        except InputError:
            raise
        except Exception as error:  # json, safetensors and a dataclass have kinds of their own
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{folder} holds no readable {self.kind} ({config_name}, {weights_name}): {reason}"
            ) from error
        other = weights.pop(extra, None)
        fill(network, weights, str(folder))
        return config, network.float().eval().requires_grad_(False), other


def fill(network: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Put weights into a network.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the weights of {source} do not fit: {reason}") from error


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
