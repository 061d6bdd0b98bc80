"""Any transformers masked language model as a network of tokens.

A model is *split* in two without knowing its class, so that its vocabulary head sees the revealed
positions alone. Three ways are tried, and the first that gives the whole model's logits on a probe
is kept:

| split | features | head |
|---|---|---|
| ``backbone`` | of ``model.base_model`` | the model with its base model passed over |
| ``head`` | the model with its last Linear passed over | that Linear |
| ``whole`` | the logits themselves | nothing |

Passing a module over puts another in its place for one call; the model is as before after it, so
that adapters, copies and ``save_pretrained`` see an ordinary transformers model.

Positions that hold ``pad_id`` are hidden by the attention mask.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.adapters.text.lengths import check_length
from difftilt.errors import InputError
from difftilt.token_denoisers import TokenNetwork

Split = Literal["backbone", "head", "whole"]
Inputs = Callable[[Tensor, int | None, torch.dtype], dict[str, Tensor]]
SPLITS: tuple[Split, ...] = ("backbone", "head", "whole")


def padding_mask(
    ids: Int[Tensor, "B L"], pad_id: int | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The attention mask of transformers' encoders: 1 where a position is seen."""
    seen = torch.ones_like(ids) if pad_id is None else (ids != pad_id).long()
    return {"attention_mask": seen}


def additive_mask(
    ids: Int[Tensor, "B L"], pad_id: int, dtype: torch.dtype
) -> Float[Tensor, "B 1 L L"]:
    """What is added to attention's scores: 0 where a position is seen."""
    hidden = (ids == pad_id)[:, None, None].expand(-1, 1, ids.shape[1], -1)
    return torch.zeros(hidden.shape, dtype=dtype, device=ids.device).masked_fill(
        hidden, torch.finfo(dtype).min
    )


class TransformersNetwork(TokenNetwork):
    """A transformers model as a network of tokens.

    Arguments:
        model: a model that gives ``.logits``; owned, put in eval mode.
        mask_id: its id of a mask.
        pad_id: an id that is hidden from all positions, or None.
        inputs: what the model is given besides ``input_ids``.
        shift: row i of its logits predicts token i + 1 (models adapted from autoregressive ones);
            then position 0 has no row of its own and should be given.
        max_length: longest canvas, or None.

    Raises:
        InputError: the model gives no logits (B, L, V), or the mask is none of its ids.
    """

    def __init__(
        self,
        model: nn.Module,
        mask_id: int,
        pad_id: int | None = None,
        inputs: Inputs = padding_mask,
        shift: bool = False,
        max_length: int | None = None,
    ) -> None:
        super().__init__(0, mask_id)
        self.model: Any = model.eval()
        self.pad_id = pad_id
        self.inputs = inputs
        self.shift = shift
        self.max_length = max_length
        known = self.model.get_input_embeddings().weight.shape[0]
        if not 0 <= mask_id < known:
            raise InputError(f"mask_id={mask_id} is none of the model's {known} ids; give its own")
        self.split: Split = "whole"
        self.split, self.vocab_size = self._probed(_probe(known, mask_id, pad_id))

    def hidden(self, ids: Int[Tensor, "B L"], time: Float[Tensor, " B"]) -> Float[Tensor, "B L d"]:
        check_length(ids, self.max_length)
        rows = self._features(ids)
        return torch.cat([rows[:, :1], rows[:, :-1]], 1) if self.shift else rows

    def logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... V"]:
        if self.split == "whole":
            return hidden
        if self.split == "head":
            return self.model.get_output_embeddings()(hidden)
        with _passed_over(self.model, self.model.base_model, _Known(hidden.flatten(0, -2)[None])):
            logits = self.model(inputs_embeds=hidden.flatten(0, -2)[None], return_dict=True).logits
        return logits.reshape(*hidden.shape[:-1], -1)

    def _features(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L d"]:
        more = self.inputs(ids, self.pad_id, self.model.dtype)
        if self.split == "backbone":
            return self.model.base_model(input_ids=ids, **more)[0]
        if self.split == "head":
            with _passed_over(self.model, self.model.get_output_embeddings(), nn.Identity()):
                return self.model(input_ids=ids, **more).logits
        return self.model(input_ids=ids, **more).logits

    @torch.no_grad()
    def _probed(self, ids: Int[Tensor, "1 L"]) -> tuple[Split, int]:
        """The first split that gives the whole model's logits, and V."""
        ids = ids.to(self.model.device)
        whole = self._features(ids)
        if whole.ndim != 3 or whole.shape[:2] != ids.shape:
            raise InputError(
                f"the model maps ids {tuple(ids.shape)} to {tuple(whole.shape)}; a masked language "
                "model gives logits (B, L, V)"
            )
        return next(s for s in SPLITS if self._agrees(s, ids, whole)), whole.shape[2]

    def _agrees(self, split: Split, ids: Int[Tensor, "1 L"], whole: Tensor) -> bool:
        self.split = split
        try:
            parts = self.logits(self._features(ids))
        except Exception:  # whatever a foreign forward does with features in place of ids
            return False
        precision = 1e-4 if whole.dtype == torch.float32 else 3e-2
        scale = float(whole.abs().max())
        return parts.shape == whole.shape and bool(
            ((parts - whole).abs().max() <= precision * scale).item()
        )


class _Known(nn.Module):
    """Gives known features, in place of a base model."""

    def __init__(self, hidden: Float[Tensor, "1 R d"]) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=self.hidden)  # pyright: ignore[reportArgumentType]


@contextmanager
def _passed_over(root: nn.Module, module: nn.Module, stand_in: nn.Module) -> Iterator[None]:
    """``stand_in`` in the place of a module inside ``root``."""
    found = [
        (parent, name)
        for parent in root.modules()
        for name, child in parent._modules.items()
        if child is module
    ]
    try:
        for parent, name in found:
            parent._modules[name] = stand_in
        yield
    finally:
        for parent, name in found:
            parent._modules[name] = module


def _probe(known: int, mask_id: int, pad_id: int | None) -> Int[Tensor, "1 L"]:
    """A few masks among other tokens."""
    others = [i for i in range(min(known, 8)) if i not in (mask_id, pad_id)]
    return torch.tensor([[*others[:3], mask_id, *others[3:], mask_id]])
