"""The language models that difftilt ships, as transformers folders."""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from difftilt.errors import CheckpointError, require

FolderName = Literal[
    "story_prior",
    "text_prior",
    "text_reader",
    "text_heldout",
    "control",
    "shape_prior",
    "shape_judges",
]


def shipped_folder(name: FolderName) -> Path:
    """Where a shipped model or data set lies."""
    return Path(str(files("difftilt.tasks") / "data")) / name


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
        raise _unusable(folder, error) from error


def _loaded(architecture: str, folder: Path) -> Any:
    transformers = require("transformers", "text")
    kind = getattr(transformers, architecture)
    _check_file(folder / "model.safetensors")
    try:
        # Stored in half precision, which is slow on a CPU.
        model = kind.from_pretrained(folder, local_files_only=True).float()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unusable(folder, error) from error
    return model.eval().requires_grad_(False)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise _unusable(path.parent, f"{path.name} is missing")


def _unusable(folder: Path, reason: object) -> CheckpointError:
    return CheckpointError(
        f"the language model in {folder} cannot be used ({reason}); reinstall difftilt or run the "
        "script in scripts/ that makes it"
    )
