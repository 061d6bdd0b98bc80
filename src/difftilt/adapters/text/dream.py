"""Dream and its kin (DiffuCoder): masked diffusion adapted from an autoregressive model.

Row i of the logits predicts token i + 1, so position 0 has to be given. A padding mask is handed
over as numbers to add to attention's scores: some copies of the published code read a mask of
truth values as numbers, too.

Source: Ye et al. 2025 (arXiv 2508.15487); checkpoints Dream-org/Dream-v0-Base-7B and
-Instruct-7B, apple/DiffuCoder-7B-Base and -Instruct.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from difftilt.adapters.text.hugging_face import additive_mask

MASK_ID = 151_666


def dream_inputs(
    ids: Int[Tensor, "B L"], pad_id: int | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Everything is seen, but padding."""
    if pad_id is None:
        return {}
    return {"attention_mask": additive_mask(ids, pad_id, dtype)}
