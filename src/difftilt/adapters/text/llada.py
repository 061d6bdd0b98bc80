"""LLaDA: a large language model trained as masked diffusion.

Its text ends in end-of-text tokens up to the end of the canvas, which are tokens like others. A
padding mask goes in as ``attention_bias``: some copies of the published code turn causal when
``attention_mask`` hides anything.

Source: Nie et al. 2025 (arXiv 2502.09992); checkpoints GSAI-ML/LLaDA-8B-Base and -Instruct,
GSAI-ML/LLaDA-1.5.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from difftilt.adapters.text.hugging_face import additive_mask

MASK_ID = 126_336


def llada_inputs(
    ids: Int[Tensor, "B L"], pad_id: int | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Everything is seen, but padding."""
    if pad_id is None:
        return {}
    return {"attention_bias": additive_mask(ids, pad_id, dtype)}
