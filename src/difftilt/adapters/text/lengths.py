"""How long a canvas a model reads."""

from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from difftilt.errors import InputError

CONFIG_NAMES = ("max_position_embeddings", "max_sequence_length", "model_length")
UNLIMITED = 10**6
"""Tokenizers that know no limit say about 10^30."""


def longest(model: nn.Module, config: Any, tokenizer: Any = None) -> int | None:
    """The longest canvas of a transformers model, or None where nothing says."""
    found = [getattr(config, name, None) for name in CONFIG_NAMES]
    found.append(getattr(tokenizer, "model_max_length", None))
    for name, module in model.named_modules():
        # RoBERTa's kin number positions from after the padding id.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            padding = module.padding_idx
            found.append(module.num_embeddings - (0 if padding is None else padding + 1))
    known = [int(limit) for limit in found if limit is not None and 0 < limit < UNLIMITED]
    return min(known, default=None)


def check_length(ids: Int[Tensor, "B L"], max_length: int | None) -> None:
    """Refuse a canvas that is longer than a model knows positions for.

    Raises:
        InputError: it is.
    """
    if max_length is not None and ids.shape[1] > max_length:
        raise InputError(
            f"a canvas of {ids.shape[1]} positions is longer than the model's {max_length}; "
            "shorten it"
        )
