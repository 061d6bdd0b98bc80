"""The models that difftilt ships: folders of transformers or diffusers, and plain weights."""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file

from difftilt.adapters.folders import Network, without_loading_bars
from difftilt.errors import CheckpointError, require

ANY_SCRIPT = "the script in scripts/ that makes it"
FolderName = Literal[
    "fashion_prior",
    "molecules",
    "story_prior",
    "text_prior",
    "text_reader",
    "text_heldout",
    "control",
    "text_to_image_prior",
    "picture_reward",
    "sequences",
    "shape_prior",
    "shape_judges",
]


def shipped_folder(name: FolderName) -> Path:
    """Where a shipped model or data set lies."""
    return shipped_data() / name


def shipped_data() -> Path:
    """Where all of them lie."""
    return Path(str(files("difftilt.tasks") / "data"))


def filled(network: Network, path: Path, script: str) -> Network:
    """A network with shipped weights, in float32 and evaluation mode, frozen.

    Arguments:
        network: new.
        path: a safetensors file; some are stored in half precision.
        script: the one that makes them.

    Raises:
        CheckpointError: the file is missing or does not fit.
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise unusable(path, error, script) from error
    return network.float().eval().requires_grad_(False)


def unusable(path: Path, error: Exception | str, script: str = ANY_SCRIPT) -> CheckpointError:
    """What to say of a shipped file or folder that is missing or damaged."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return CheckpointError(
        f"the shipped {path} cannot be used ({reason}); reinstall difftilt or run {script}"
    )


def load_masked_model(folder: Path) -> Any:
    """A frozen ``BertForMaskedLM`` in float32 and evaluation mode.

    Raises:
        CheckpointError: its files are missing or do not fit.
    """
    return _loaded("BertForMaskedLM", folder)


def load_causal_model(folder: Path) -> Any:
    """A frozen ``GPT2LMHeadModel`` in float32 and evaluation mode.

    Raises:
        CheckpointError: its files are missing or do not fit.
    """
    return _loaded("GPT2LMHeadModel", folder)


def load_tokenizer(folder: Path) -> Any:
    """The ``PreTrainedTokenizerFast`` beside a model.

    Raises:
        CheckpointError: its files are missing.
    """
    transformers = require("transformers", "text")
    _check_file(folder / "tokenizer.json")
    try:
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise unusable(folder, error) from error


def _loaded(architecture: str, folder: Path) -> Any:
    transformers = require("transformers", "text")
    kind = getattr(transformers, architecture)
    _check_file(folder / "model.safetensors")
    try:
        with without_loading_bars("transformers"):
            # Stored in half precision, which is slow on a CPU.
            model = kind.from_pretrained(folder, local_files_only=True).float()
    except (OSError, ValueError, RuntimeError) as error:
        raise unusable(folder, error) from error
    return model.eval().requires_grad_(False)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise unusable(path.parent, f"{path.name} is missing")
