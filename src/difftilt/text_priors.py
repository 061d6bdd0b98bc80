"""A masked language model as a prior of fillings, and the tasks that it is given.

``TextPrior(model)`` takes what a loader of published models returns (a ``TextModel``), and
``text_prior(network, tokenizer)`` any network and tokenizer; ``infill`` makes a task of templates
and a reward (``difftilt.infilling``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.diffusions.masked import MaskedDiffusion
from difftilt.diffusions.orders import Order
from difftilt.errors import InputError
from difftilt.infilling import Infilling
from difftilt.posteriors import Prior
from difftilt.rewards.contract import as_reward
from difftilt.text.blocks import check_sight, order_of
from difftilt.text.canvases import Canvases, canvases_of, given_canvases
from difftilt.text.codecs import Codec, TextModel, codec_of
from difftilt.text.layouts import Lengths, SuffixUse, check_words
from difftilt.text.rewards import WellFormed, bound_to
from difftilt.text.templates import parsed
from difftilt.token_denoisers import TokenDenoiser, TokenNetwork


@dataclass(frozen=True)
class BareTextModel:
    """A network and a tokenizer as a ``TextModel``; see there for the fields."""

    network: TokenNetwork
    tokenizer: Any
    pad_id: int | None = None
    banned: tuple[int, ...] = ()
    max_length: int | None = None
    shift: bool = False
    source: str = "a live model"

    @property
    def fingerprint(self) -> str:
        """The source: a live model has no files."""
        return self.source


@dataclass(frozen=True)
class TextPrior:
    """A masked language model as a prior of fillings.

    Arguments:
        model: network, tokenizer and what belongs to them.
        order: in which positions are revealed; default ``AnyOrder()``, and of a network that reads
            in blocks ``Blocks(size=block_size, aligned=True)``.
        temperature: of the network's logits; a part of the prior.
    """

    model: TextModel
    order: Order | None = None
    temperature: float = 1.0

    def infill(
        self,
        template: str | Sequence[str] | Tensor,
        reward: Callable[..., Any],
        *,
        beta: float = 1.0,
        suffix: SuffixUse | None = None,
        lengths: Lengths = "padding",
        banned: Sequence[int | str] = (),
    ) -> Infilling:
        """The task of filling the slots of one template, or of several at once.

        Arguments:
            template: e.g. "She opened the door. [5-12] Then she ran."; see ``text.templates``. Or
                canvases (C, 2, L) of the model's ids, made elsewhere.
            reward: a ``TextReward``; any function of ``list[str]``, the whole texts, also
                ``difftilt.isolated``; a ``CheckedReward`` of (x_0, canvases); or a ``Summed``,
                ``Tempered``, ``Floored`` or ``Bounded`` of such.
            beta: β > 0.
            suffix: who sees the text after the last slot: "posterior" (default), "both", "none";
                given canvases say so themselves.
            lengths: of variable slots: "padding", or the law that they are drawn from.
            banned: ids, or texts of one token, that no slot may hold.

        Raises:
            InputError: a template without slot, with unknown tokens or too long for the model; an
                unknown choice of lengths or suffix, or one that is absent; banned ids that the
                model does not have; a suffix for both that the model cannot see; β that is not
                positive.
        """
        codec = codec_of(self.model)
        if isinstance(template, Tensor):
            check_words(lengths, suffix)
            canvases = given_canvases(template, codec)
        else:
            texts = [template] if isinstance(template, str) else template
            templates = [parsed(text) for text in texts]
            canvases = canvases_of(templates, codec, lengths, suffix, self.model.max_length)
        if self.model.network.block_size is not None:
            check_sight(canvases, suffix, self.model.network.block_size)
        pads = lengths == "padding" and canvases.variable
        forbidden = self._banned(codec, banned, pads)
        prior = Prior(self._chain(canvases, forbidden), source=self.model.source)
        checked = bound_to(reward, canvases)
        if pads:
            checked = as_reward(WellFormed(checked, canvases))
        return Infilling(prior.tilt(checked, beta), canvases, self.model)

    def _chain(self, canvases: Canvases, banned: Sequence[int]) -> Chain:
        network = self.model.network
        if not canvases.generated:
            raise InputError("every slot has length 0; let at least one hold a token")
        denoiser = TokenDenoiser(network, banned, self.temperature).eval().requires_grad_(False)
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        order, size = self.order, network.block_size
        order = order if size is None else order_of(order, size)
        diffusion = MaskedDiffusion(network.vocab_size, canvases.generated, order)
        like = torch.zeros((), device=device)
        return Chain(denoiser, diffusion, (canvases.length,), like=like)

    def _banned(self, codec: Codec, banned: Sequence[int | str], pads: bool) -> list[int]:
        """Special tokens, ids without a token, and what the user bans; pads where none may be."""
        tokenizer, vocab_size = self.model.tokenizer, self.model.network.vocab_size
        special = {*self.model.banned, *tokenizer.all_special_ids, codec.pad_id}
        special |= set(range(len(tokenizer), vocab_size))
        if pads:
            special.discard(codec.pad_id)
        wanted = {codec.id_of(token) for token in banned}
        unknown = sorted(i for i in wanted if not 0 <= i < vocab_size)
        if unknown:
            raise InputError(
                f"banned={unknown[0]} is none of the model's ids 0 to {vocab_size - 1}; give an id "
                "of its tokenizer, or the text of one token"
            )
        return sorted(special | wanted)


def text_prior(
    network: TokenNetwork, tokenizer: Any, order: Order | None = None, **fields: Any
) -> TextPrior:
    """A prior from any token network and a transformers tokenizer.

    Arguments:
        network: the network.
        tokenizer: its tokenizer.
        order: in which positions are revealed; default ``AnyOrder()``.
        **fields: of ``BareTextModel``: pad_id (default the tokenizer's), banned, max_length,
            shift, source.
    """
    pad_id = fields.pop("pad_id", getattr(tokenizer, "pad_token_id", None))
    return TextPrior(BareTextModel(network, tokenizer, pad_id, **fields), order)
