"""Which published model is which, and how each becomes a network of tokens.

| family | recognised by | mask | time | code |
|---|---|---|---|---|
| ``masked_lm`` | architectures ``...ForMaskedLM`` | tokenizer's | not told | transformers |
| ``sedd`` | ``graph``, ``model``, ``tokens`` in config.json | last id | told | here |
| ``mdlm``, ``bd3lm`` | ``model_type`` | last id | not told | here |
| ``llada``, ``dream`` | ``model_type`` | config's | not told | the model's own |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difftilt.adapters.folders import without_loading_bars
from difftilt.adapters.text import dream, llada
from difftilt.adapters.text.bd3lm import bd3lm
from difftilt.adapters.text.ddit_network import DDiTNetwork, Published
from difftilt.adapters.text.files import weights_of
from difftilt.adapters.text.hugging_face import Inputs, TransformersNetwork, padding_mask
from difftilt.adapters.text.lengths import longest
from difftilt.adapters.text.mdlm import mdlm
from difftilt.adapters.text.remote_code import (
    own_code,
    precision,
    remote_model,
)
from difftilt.adapters.text.sedd import is_sedd, sedd
from difftilt.errors import InputError, require
from difftilt.token_denoisers import TokenNetwork


@dataclass(frozen=True)
class TextOptions:
    """What a model's folder does not say, or says wrongly.

    Arguments:
        mask_id: id of the mask; None for the model's or tokenizer's own.
        pad_id: an id that is hidden from all positions; None for the padding of a ``masked_lm``'s
            tokenizer, and for no padding in the other families.
        banned: ids that are never drawn; None for ids without a token and special tokens, but the
            end of text.
        family: of the table in ``difftilt.adapters.text.families``; None to recognise it.
        trust_remote_code: whether code in the model's folder may run.
        dtype: of the weights; None for the checkpoint's own.
    """

    mask_id: int | None = None
    pad_id: int | None = None
    banned: tuple[int, ...] | None = None
    family: str | None = None
    trust_remote_code: bool = False
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Style:
    """How a transformers model of a family is called.

    Arguments:
        inputs: what it is given besides ids.
        shift: row i of its logits predicts token i + 1.
        mask_id: its id of a mask where neither config nor tokenizer has one.
        own_code: its class lies beside its weights.
    """

    inputs: Inputs
    shift: bool = False
    mask_id: int | None = None
    own_code: bool = True


PUBLISHED: dict[str, Callable[[Mapping[str, Any]], Published]] = {
    "sedd": sedd,
    "mdlm": mdlm,
    "bd3lm": bd3lm,
}
STYLES = {
    "masked_lm": Style(padding_mask, own_code=False),
    "llada": Style(llada.llada_inputs, mask_id=llada.MASK_ID),
    "dream": Style(dream.dream_inputs, shift=True, mask_id=dream.MASK_ID),
}
FAMILIES = (*PUBLISHED, *STYLES)


def family_of(config: Mapping[str, Any], wanted: str | None = None) -> str:
    """The family of a config.json.

    Raises:
        InputError: an unknown name is wanted, or the config fits none.
    """
    if wanted is not None:
        if wanted not in FAMILIES:
            raise InputError(f"unknown family {wanted!r}; choose one of {', '.join(FAMILIES)}")
        return wanted
    model_type = str(config.get("model_type", "")).lower()
    if model_type in FAMILIES:
        return model_type
    if is_sedd(config):
        return "sedd"
    architectures = list(config.get("architectures") or [])
    if any(name.endswith("ForMaskedLM") for name in architectures) or "AutoModelForMaskedLM" in (
        config.get("auto_map") or {}
    ):
        return "masked_lm"
    raise InputError(
        f"a model of type {model_type or None!r} and architectures {architectures} is no masked "
        f"language model that difftilt knows; if it is one, pass family= one of "
        f"{', '.join(FAMILIES)}"
    )


def network_of_folder(
    folder: Path, config: Mapping[str, Any], family: str, tokenizer: Any, options: TextOptions
) -> TokenNetwork:
    """The network of a folder.

    Raises:
        InputError: weights or code are missing, unreadable or do not fit.
    """
    if family in PUBLISHED:
        network = DDiTNetwork(PUBLISHED[family](config), options.mask_id, options.pad_id)
        network.load_weights(weights_of(folder))
        return network if options.dtype is None else network.to(options.dtype)
    if STYLES[family].own_code or own_code(config) is not None:
        model = remote_model(folder, config, options.dtype, options.trust_remote_code)
    else:
        model = _masked_lm(folder, options)
    return network_of_model(model, family, tokenizer, options)


def network_of_model(
    model: nn.Module, family: str, tokenizer: Any, options: TextOptions
) -> TransformersNetwork:
    """The network of a live transformers model.

    Raises:
        InputError: nothing says which id is the mask, or the model gives no logits.
    """
    if family not in STYLES:
        raise InputError(
            f"a live {family} model is taken as a TokenNetwork alone; load its folder instead"
        )
    style: Style = STYLES[family]
    config: Any = model.config
    pad_id = options.pad_id
    if pad_id is None and family == "masked_lm":
        pad_id = _padding(tokenizer)
    return TransformersNetwork(
        model,
        _mask_id(config, tokenizer, style, options),
        pad_id,
        style.inputs,
        style.shift,
        longest(model, config, tokenizer),
    )


def _masked_lm(folder: Path, options: TextOptions) -> nn.Module:
    require("transformers", "text")
    from transformers import AutoModelForMaskedLM

    try:
        with without_loading_bars("transformers"):
            return AutoModelForMaskedLM.from_pretrained(str(folder), **precision(options.dtype))
    except Exception as error:  # transformers raises a dozen unrelated kinds
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(f"{folder} holds no masked language model: {reason}") from error


def _mask_id(config: Any, tokenizer: Any, style: Style, options: TextOptions) -> int:
    named = (
        options.mask_id,
        getattr(config, "mask_token_id", None),
        getattr(tokenizer, "mask_token_id", None),
        style.mask_id,
    )
    found = next((int(i) for i in named if i is not None), None)
    if found is None:
        raise InputError(
            "neither config nor tokenizer says which id is the mask; pass mask_id=..., or a "
            "tokenizer that has a mask"
        )
    return found


def _padding(tokenizer: Any) -> int | None:
    """The tokenizer's padding, if it is not its end of text, too."""
    pad_id = getattr(tokenizer, "pad_token_id", None)
    return None if pad_id == getattr(tokenizer, "eos_token_id", None) else pad_id
