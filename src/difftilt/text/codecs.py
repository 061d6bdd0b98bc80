"""Between strings and the ids of one model: what of a tokenizer infilling needs.

Any transformers tokenizer will do. Pieces of a text are tokenised one by one, without special
tokens; those that the tokenizer puts around a whole text (``[CLS] ... [SEP]``) are put around the
canvas once. The ids of a piece are kept: the joined text is never tokenised again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol, runtime_checkable

from difftilt.errors import InputError
from difftilt.token_denoisers import TokenNetwork


@runtime_checkable
class TextModel(Protocol):
    """A masked language model with what belongs to it."""

    @property
    def network(self) -> TokenNetwork:
        """The network."""
        ...

    @property
    def tokenizer(self) -> Any:
        """A transformers tokenizer."""
        ...

    @property
    def pad_id(self) -> int | None:
        """The id that no position sees, or None; then a pad or end of text fills up canvases."""
        ...

    @property
    def banned(self) -> tuple[int, ...]:
        """Ids that are never drawn."""
        ...

    @property
    def max_length(self) -> int | None:
        """Longest canvas, special tokens included, or None."""
        ...

    @property
    def shift(self) -> bool:
        """Whether it predicts the next token, so that its first position must be given."""
        ...

    @property
    def source(self) -> str:
        """Where it came from, for the record."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights, or its source."""
        ...


@dataclass(frozen=True)
class Codec:
    """A tokenizer, as canvases use it. Made by ``codec_of``.

    Arguments:
        tokenizer: a transformers tokenizer.
        pad_id: the id that fills up a canvas.
        opening: ids in front of every text.
        closing: ids behind every text.
    """

    tokenizer: Any
    pad_id: int
    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()

    def ids(self, text: str, where: str = "the template") -> list[int]:
        """Ids of a piece of text, without special tokens.

        Arguments:
            text: the piece.
            where: what errors say that it is in.

        Raises:
            InputError: the tokenizer has no token for some of it.
        """
        ids = plain_ids(self.tokenizer, text)
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if unknown is not None and unknown in ids:
            words = [w for w in text.split() if unknown in plain_ids(self.tokenizer, w)]
            raise InputError(
                f"the tokenizer has no token for {', '.join(map(repr, words or [text]))} in "
                f"{where}; choose other words"
            )
        return ids

    def spelled(self, pieces: Sequence[Sequence[int]]) -> list[str]:
        """The text of each of the consecutive pieces of one text, without pads and special tokens.

        Joined they are what all the ids spell together, so that each piece has the white space that
        its tokens, or those before it, put in front of it: none where a word goes on.
        """
        seen: list[int] = []
        whole, found = "", []
        for ids in pieces:
            seen += self.unpadded(ids)
            text = self.tokenizer.decode(seen, skip_special_tokens=True)
            kept = shared(whole, text)
            if kept < len(whole):  # e.g. the bytes of one character, on both sides of a seam
                found[-1] = found[-1][: kept - len(whole)]
            found.append(text[kept:])
            whole = text
        return found

    def spells(self, space: str) -> bool:
        """Whether the tokenizer has tokens for white space: then only tokens say where it is."""
        return bool(plain_ids(self.tokenizer, space))

    def unpadded(self, ids: Sequence[int]) -> list[int]:
        """The ids that are no pads."""
        return [i for i in ids if i != self.pad_id]

    def id_of(self, token: int | str) -> int:
        """The id that a user means by an id or by the text of one token.

        Raises:
            InputError: the text is not one token.
        """
        if isinstance(token, int):
            return token
        ids = self.ids(token)
        if len(ids) != 1:
            raise InputError(
                f"{token!r} is {len(ids)} tokens to this tokenizer, not one; ban each of them, "
                "or write the leading space that a word within a text has"
            )
        return ids[0]


def shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items two sequences begin with in common."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """What a tokenizer makes of a text, without special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def surrounding(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer puts in front of a text and behind it."""
    probe = plain_ids(tokenizer, "a")
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(probe) + 1):
        if probe and whole[start : start + len(probe)] == probe:
            return tuple(whole[:start]), tuple(whole[start + len(probe) :])
    return (), ()


def codec_of(model: TextModel) -> Codec:
    """The codec of a model.

    Raises:
        InputError: it has no tokenizer, nothing fills up a canvas, or nothing can stand in front of
            a shifted model's.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError(f"{model.source} came without a tokenizer, which text needs; give one")
    ends = getattr(tokenizer, "eos_token_id", None)
    fillers = (model.pad_id, getattr(tokenizer, "pad_token_id", None), ends)
    pad = next((i for i in fillers if i is not None), None)
    if pad is None or not 0 <= pad < model.network.vocab_size:
        raise InputError(
            f"the model has no id to fill up a canvas with (pad_id={pad} of "
            f"{model.network.vocab_size}); give pad_id"
        )
    opening, closing = surrounding(tokenizer)
    if model.shift and not opening:
        starts = getattr(tokenizer, "bos_token_id", None)
        first = ends if starts is None else starts
        if first is None:
            raise InputError(
                "a model that predicts the next token wants a token in front of the text, but its "
                "tokenizer has neither bos_token nor eos_token; set one"
            )
        opening = (first,)
    return Codec(tokenizer, pad, opening, closing)
