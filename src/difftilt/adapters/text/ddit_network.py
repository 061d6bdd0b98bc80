"""Checkpoints of the DDiT family (SEDD, MDLM, BD3-LM) as networks of tokens.

``Published`` says how a family uses the transformer; ``sedd``, ``mdlm`` and ``bd3lm`` read it from
a config.json. Where a canvas holds ``pad_id``, those positions are hidden from all others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from difftilt.adapters.text.ddit import DDiT, DDiTSize, frequencies
from difftilt.adapters.text.lengths import check_length
from difftilt.errors import InputError
from difftilt.token_denoisers import TokenNetwork

FINAL_NOISE = 1e-3
"""Share of tokens that the published schedules leave unmasked at time 1."""

FREQUENCIES = "rotary_emb.inv_freq"
"""A published buffer that is computed here."""


def log_linear(time: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The noise level sigma at which a share ``(1 - 1e-3) time`` of tokens is masked.

    Arguments:
        time: share of masked positions, in (0, 1].

    Source: Lou et al. 2024 (SEDD, arXiv 2310.16834), log-linear schedule.
    """
    return -torch.log1p(-(1 - FINAL_NOISE) * time)


@dataclass(frozen=True)
class Published:
    """How a family of checkpoints uses a DDiT.

    Arguments:
        size: its widths.
        prefix: of its parameters' names in the file of weights.
        sigma: the noise level of a time in (0, 1]; None for a network that is always told 0.
        block_size: positions per block of block-causal attention; None for full attention.
        max_length: longest canvas.
        config: its config.json.
    """

    size: DDiTSize
    prefix: str
    sigma: Callable[[Tensor], Tensor] | None
    block_size: int | None
    max_length: int
    config: dict[str, Any]


class DDiTNetwork(TokenNetwork):
    """A DDiT as a network of tokens.

    Arguments:
        published: its family's settings.
        mask_id: id of the mask; default the last.
        pad_id: an id that is hidden from all positions, or None.
    """

    def __init__(
        self, published: Published, mask_id: int | None = None, pad_id: int | None = None
    ) -> None:
        vocab_size = published.size.vocab_size
        super().__init__(vocab_size, vocab_size - 1 if mask_id is None else mask_id)
        self.published = published
        self.pad_id = pad_id
        self.block_size = published.block_size
        self.max_length = published.max_length
        self.backbone = DDiT(published.size)

    def hidden(self, ids: Int[Tensor, "B L"], time: Float[Tensor, " B"]) -> Float[Tensor, "B L d"]:
        check_length(ids, self.max_length)
        noise = self.published.sigma
        sigma = torch.zeros_like(time) if noise is None else noise(time)
        return self.backbone(ids, sigma, self._visible(ids))

    def logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... V"]:
        return self.backbone.output_layer.linear(hidden)

    def _visible(self, ids: Int[Tensor, "B L"]) -> Bool[Tensor, "..."] | None:
        parts = []
        if self.pad_id is not None:
            parts.append((ids != self.pad_id)[:, None, None])
        if self.block_size is not None:
            block = torch.arange(ids.shape[1], device=ids.device) // self.block_size
            parts.append((block[:, None] >= block)[None, None])
        return None if not parts else parts[0] & parts[-1]

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take the tensors of a published file, in its precision.

        Raises:
            InputError: tensors are missing, left over or of another shape.
        """
        prefix = self.published.prefix
        inside = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        inside.pop(FREQUENCIES, None)
        own = self.backbone.state_dict()
        missing = [k for k in own if k not in inside]
        unknown = [k for k in inside if k not in own]
        other = [k for k, v in own.items() if k in inside and inside[k].shape != v.shape]
        for fault, names in (("lack", missing), ("also hold", unknown), ("differ in", other)):
            if names:
                raise InputError(
                    f"the weights do not fit the config.json: they {fault} {', '.join(names[:3])}"
                    f"{' ...' if len(names) > 3 else ''}"
                )
        self.backbone.to(inside["vocab_embed.embedding"].dtype)
        self.backbone.load_state_dict(inside)

    def published_weights(self) -> dict[str, Tensor]:
        """The tensors under their published names."""
        size = self.published.size
        own = {**self.backbone.state_dict(), FREQUENCIES: frequencies(size.width // size.heads)}
        return {self.published.prefix + k: v.contiguous() for k, v in own.items()}
