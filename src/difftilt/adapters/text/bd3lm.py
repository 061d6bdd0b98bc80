"""BD3-LM (block diffusion): masked diffusion within blocks, autoregressive over them.

A position sees its own block and the blocks before it. In training the blocks before it are clean;
so the model is itself where a chain finishes a block before it starts the next:
``Blocks(size=block_size, aligned=True)``, which is what infilling does unless another order is
given. What follows the block, a suffix too, is not seen; infilling says so (``text.blocks``).

Source: Arriola et al. 2025 (arXiv 2503.09573); checkpoints kuleshov-group/bd3lm-owt-block_size4,
-block_size8 and -block_size16.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from difftilt.adapters.text.ddit_network import Published
from difftilt.adapters.text.files import setting
from difftilt.adapters.text.mdlm import mdlm
from difftilt.errors import InputError


def bd3lm(config: Mapping[str, Any]) -> Published:
    """Settings from a config.json.

    Raises:
        InputError: a value is missing, or the model is autoregressive.
    """
    if config.get("causal", False):
        raise InputError("this checkpoint is autoregressive (causal), not a diffusion model")
    published = mdlm(config)
    if not config.get("cross_attn", True):
        return published
    return replace(published, block_size=setting(config, "block_size"))
