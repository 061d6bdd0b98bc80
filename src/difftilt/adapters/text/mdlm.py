"""MDLM (masked diffusion language model): raw logits of clean tokens.

The published networks were trained without time: they are told a noise level of 0 always, unless
their config says ``time_conditioning``.

Source: Sahoo et al. 2024 (arXiv 2406.07524); checkpoints kuleshov-group/mdlm-owt and
mdlm-no_flashattn-fp32-owt, neither of which needs flash-attention here.
"""

from collections.abc import Mapping
from typing import Any

from difftilt.adapters.text.ddit import DDiTSize
from difftilt.adapters.text.ddit_network import Published, log_linear
from difftilt.adapters.text.files import setting


def mdlm(config: Mapping[str, Any]) -> Published:
    """Settings from a config.json.

    Raises:
        InputError: a value is missing.
    """
    size = DDiTSize(
        setting(config, "vocab_size"),
        setting(config, "hidden_dim"),
        setting(config, "n_heads"),
        setting(config, "n_blocks"),
        setting(config, "cond_dim") if config.get("adaln", True) else 0,
    )
    timed = bool(config.get("time_conditioning", False))
    return Published(
        size,
        "backbone.",
        log_linear if timed else None,
        None,
        setting(config, "model_length"),
        dict(config),
    )
