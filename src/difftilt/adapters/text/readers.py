"""A published causal language model as the reader of an ending."""

from pathlib import Path
from typing import Any

from difftilt.adapters.folders import without_loading_bars
from difftilt.adapters.text.files import config_of, folder_of
from difftilt.adapters.text_rewards import ReadingReward, SentenceEmbedder
from difftilt.errors import InputError, require


def load_reader(source: str | Path, batch: int = 64) -> ReadingReward:
    """``log p(ending | text before it)`` under any causal model of transformers.

    Arguments:
        source: a folder or hub id of the model with its tokenizer.
        batch: passages per call.

    Raises:
        InputError: the source cannot be read, or holds no causal language model.
        MissingPackage: transformers is not installed.
    """
    model, tokenizer = _loaded(source, "AutoModelForCausalLM", "causal language model")
    return ReadingReward(model, tokenizer, batch)


def load_embedder(source: str | Path, batch: int = 64) -> SentenceEmbedder:
    """Contextual token features of any encoder of transformers.

    Arguments:
        source: a folder or hub id of the model with its tokenizer.
        batch: texts per call.

    Raises:
        InputError: the source cannot be read, or holds no such model.
        MissingPackage: transformers is not installed.
    """
    return SentenceEmbedder(*_loaded(source, "AutoModel", "encoder"), batch)


def _loaded(source: str | Path, kind: str, called: str) -> tuple[Any, Any]:
    transformers = require("transformers", "text")
    folder = folder_of(source)
    config_of(folder)
    try:
        with without_loading_bars("transformers"):
            model = getattr(transformers, kind).from_pretrained(str(folder)).float()
        return model, transformers.AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # transformers raises a dozen unrelated kinds
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(f"{source} holds no readable {called}: {reason}") from error
