"""Models whose code lies beside their weights, LLaDA and Dream, on transformers 4.46 to 5.

Their code was written for transformers 4. Of what version 5 took away, two things are put back, on
its own classes alone (``revive``). The third is mended by not using ``from_pretrained``: it builds
a model without memory and fills in the file's tensors, which in version 5 leaves buffers that are
in no file, the frequencies of rotary positions, unset, without a word. Here buffers are computed,
parameters alone wait for the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difftilt.adapters.text.files import weights_of
from difftilt.errors import InputError, require

DOORS = ("AutoModelForMaskedLM", "AutoModel", "AutoModelForCausalLM")


def remote_model(
    folder: Path, config: Mapping[str, Any], dtype: torch.dtype | None, trusted: bool
) -> nn.Module:
    """The model of a folder that brings its own code.

    Arguments:
        folder: holds config.json with an ``auto_map``, code and weights.
        config: the config.json.
        dtype: of the weights; None for the checkpoint's own.
        trusted: whether that code may run.

    Raises:
        InputError: the code may not run, is missing, or fails.
    """
    transformers = require("transformers", "text")
    found = own_code(config)
    if found is None:
        raise InputError(
            f"{folder / 'config.json'} names no code of its own (auto_map); load the model "
            "yourself and give the live model"
        )
    refuse_untrusted(folder, trusted)
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    weights = weights_of(folder)
    try:
        kind: Any = get_class_from_dynamic_module(found, str(folder))
        if int(transformers.__version__.split(".")[0]) >= 5:
            revive(kind)
        model = _filled(kind, kind.config_class.from_pretrained(str(folder)), weights)
    except Exception as error:  # foreign code raises what it likes
        raise InputError(
            f"the code in {folder} does not load with transformers {transformers.__version__}: "
            f"{type(error).__name__}: {error}"
        ) from error
    absent = [name for name, p in model.named_parameters() if p.is_meta]
    if absent:
        raise InputError(f"the weights in {folder} lack {', '.join(absent[:3])}")
    return model if dtype is None else model.to(dtype)


def _filled(kind: Any, config: Any, weights: Mapping[str, Tensor]) -> nn.Module:
    """A model of a class with the tensors of a file; what the file lacks stays without memory."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = kind(config)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    return model


def own_code(config: Mapping[str, Any]) -> str | None:
    """The model class that a config's ``auto_map`` names, if any."""
    named = config.get("auto_map") or {}
    return next((named[door] for door in DOORS if door in named), None)


def refuse_untrusted(folder: Path, trusted: bool) -> None:
    """Ask before foreign code runs.

    Raises:
        InputError: it is not trusted.
    """
    if not trusted:
        raise InputError(
            f"the model in {folder} runs code of its own; read it, then pass trust_remote_code=True"
        )


def precision(dtype: torch.dtype | None) -> dict[str, Any]:
    """The keyword of ``from_pretrained`` for a precision, under its name of this version."""
    transformers = require("transformers", "text")
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    name = "dtype" if (major, minor) >= (4, 56) else "torch_dtype"
    return {name: "auto" if dtype is None else dtype}


def revive(kind: Any) -> None:
    """Give a model class written for transformers 4 what version 5 took away."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ROPE_INIT_FUNCTIONS.setdefault("default", plain_rotary)
    if not hasattr(kind.config_class, "use_cache"):
        kind.config_class.use_cache = False


def plain_rotary(config: Any, device: Any = None, **_: Any) -> tuple[Tensor, float]:
    """Frequencies of unscaled rotary positions, and the factor 1 on attention."""
    base = getattr(config, "rope_theta", None)
    if base is None:
        base = config.rope_parameters["rope_theta"]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponent = torch.arange(0, width, 2, dtype=torch.int64).to(device, torch.float32) / width
    return 1.0 / (base**exponent), 1.0
