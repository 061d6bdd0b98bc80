"""The files of a published model: its folder, config.json and weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from difftilt.adapters.folders import read_weights
from difftilt.errors import InputError, require

DESCRIPTION = ["*.json", "*.py", "*.txt", "*.model", "*.safetensors"]
OLDER_WEIGHTS = ["*.bin", "*.bin.index.json"]


def folder_of(source: str | Path) -> Path:
    """The folder of a model: itself, or a hub id's copy in the local cache.

    Raises:
        InputError: no such folder, and no hub id that can be reached.
        MissingPackage: huggingface_hub is needed and not installed.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if isinstance(source, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"no model folder at {folder}; give a folder or a hub id 'owner/name'")
    hub = require("huggingface_hub", "text")
    try:
        found = Path(hub.snapshot_download(name, allow_patterns=DESCRIPTION))
        if not list(found.glob("*.safetensors")):
            found = Path(hub.snapshot_download(name, allow_patterns=DESCRIPTION + OLDER_WEIGHTS))
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(f"{name} is neither a folder nor a reachable hub id: {reason}") from error
    return found


def config_of(folder: Path) -> dict[str, Any]:
    """A folder's config.json.

    Raises:
        InputError: it is missing or no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}, which every model folder has: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object; is it a model's config.json?")
    return config


def setting(config: Mapping[str, Any], name: str) -> Any:
    """A value of a config.

    Raises:
        InputError: the config lacks it.
    """
    if name not in config:
        raise InputError(f"the model's config.json lacks {name!r}; is it a config of this family?")
    return config[name]


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from safetensors or else from pickled tensors, on the CPU.

    Raises:
        InputError: there is no file of weights, or it cannot be read.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise InputError(f"{folder} holds no *.safetensors and no pytorch_model.bin")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(read_weights(file))
    return tensors
