"""Rewards of text with a pre-trained network inside: readers, embedders, classifiers.

| reward | log r of a passage |
|---|---|
| ``ReadingReward`` | ``log p(suffix | text before it)`` of a causal language model |
| ``SimilarityReward`` | ``scale * cos(e(text), e(reference))`` of a sentence embedder |
| ``TextClassifierReward`` | log-probability of wanted classes |

Networks and tokenizers are those of transformers, passed in; each has a vocabulary of its own, so
that text goes between it and the prior as strings, a piece at a time.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError
from difftilt.text.codecs import plain_ids, shared, surrounding
from difftilt.text.layouts import Passage
from difftilt.text.rewards import Reads, TextReward, read


@dataclass(frozen=True)
class _Prefix:
    """What a reader has read before the first slot: all ids but the last are in ``cache``."""

    ids: tuple[int, ...]
    cache: Any


@final
class ReadingReward(TextReward):
    """How well a causal language model foresees the suffix from what is before it.

        log r = log p(y | x, z) = Σ_j log p(y_j | x, z, y_{<j}) <= 0

    x is the text before the first slot, z what is filled in (with the given text between slots), y
    the suffix; the three are tokenised one by one, each with the white space in front of it. Where
    no white space parts z from y, they are tokenised together, and a token across the seam belongs
    to y. What the tokenizer puts in front of a text, or the token that begins one where x is empty,
    is put before x.

    Arguments:
        model: of transformers, called as ``model(input_ids=..., attention_mask=...)``; frozen.
        tokenizer: its tokenizer.
        batch: passages per call.
        cached: keep the keys and values of x, which all passages of a template share.
        remembered: templates whose keys and values are kept.

    Raises:
        InputError: when called, on a passage without suffix, or longer than the model's context.

    Source: the infilling task of Hu et al. 2023 (arXiv 2310.04363).
    """

    bound = 0.0
    name = "ReadingReward"

    def __init__(
        self, model: Any, tokenizer: Any, batch: int = 64, cached: bool = True, remembered: int = 64
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch = batch
        self.cached = cached
        self.remembered = remembered
        self._prefixes: OrderedDict[str, _Prefix] = OrderedDict()

    @torch.no_grad()
    def judged(self, passages: list[Passage]) -> Float[Tensor, " U"]:
        log_r = torch.zeros(len(passages), dtype=torch.float64)
        for before in dict.fromkeys(p.before for p in passages):
            rows = [i for i, p in enumerate(passages) if p.before == before]
            prefix = self._prefix(before)
            for start in range(0, len(rows), self.batch):
                chosen = rows[start : start + self.batch]
                log_r[chosen] = self._read(prefix, [passages[i] for i in chosen])
        return log_r

    def _prefix(self, before: str) -> _Prefix:
        if before in self._prefixes:
            self._prefixes.move_to_end(before)
            return self._prefixes[before]
        ids = [*surrounding(self.tokenizer)[0], *plain_ids(self.tokenizer, before)]
        if not ids:
            ids = [self._first()]
        cache = None
        if self.cached and len(ids) > 1:
            seen = torch.tensor([ids[:-1]], device=self.model.device)
            cache = self.model(input_ids=seen, use_cache=True).past_key_values
        self._prefixes[before] = _Prefix(tuple(ids), cache)
        if len(self._prefixes) > self.remembered:
            self._prefixes.popitem(last=False)
        return self._prefixes[before]

    def _first(self) -> int:
        tokens = [getattr(self.tokenizer, f"{name}_token_id", None) for name in ("bos", "eos")]
        found = [token for token in tokens if token is not None]
        if not found:
            raise InputError(
                "nothing stands before the first slot, and the reader's tokenizer has neither "
                "bos_token nor eos_token to begin with; begin the template with a word"
            )
        return found[0]

    def _read(self, prefix: _Prefix, passages: Sequence[Passage]) -> Float[Tensor, " b"]:
        """Log-likelihood of the suffixes; the rows are padded at their ends."""
        parts = [self._parts(p) for p in passages]
        start = prefix.ids if prefix.cache is None else prefix.ids[-1:]
        logits = self._logits(prefix, [[*start, *z, *y] for z, y in parts])
        found = [
            (row, len(start) + len(z) + j - 1, token)
            for row, (z, y) in enumerate(parts)
            for j, token in enumerate(y)
        ]
        row, place, token = torch.tensor(found, device=logits.device).unbind(1)
        each = logits[row, place].log_softmax(1).gather(1, token[:, None])[:, 0]
        total = torch.zeros(len(parts), dtype=torch.float64, device=each.device)
        return total.index_add(0, row, each.double()).cpu()

    def _parts(self, passage: Passage) -> tuple[list[int], list[int]]:
        """The ids of the middle and of the suffix."""
        z, y = (plain_ids(self.tokenizer, text) for text in (passage.middle, passage.after))
        if not y:
            raise InputError(
                "ReadingReward reads what follows the last slot, but the template ends with a slot"
            )
        if not z or passage.middle[-1:].isspace() or passage.after[:1].isspace():
            return z, y
        # Alone, the two ends of a word would read as two words.
        both = plain_ids(self.tokenizer, passage.middle + passage.after)
        kept = shared(z, both)
        return both[:kept], both[kept:]

    def _logits(self, prefix: _Prefix, rows: list[list[int]]) -> Float[Tensor, "b T V"]:
        """The model's logits, float32, at every position of the rows."""
        width, known = max(map(len, rows)), 0 if prefix.cache is None else len(prefix.ids) - 1
        self._check_length(known + width)
        ids = [[*row, *[0] * (width - len(row))] for row in rows]
        mask = [[1] * (known + len(row)) + [0] * (width - len(row)) for row in rows]
        device = self.model.device
        past = {}
        if prefix.cache is not None:
            # A copy, because the model writes what it reads into the cache.
            cache = copy.deepcopy(prefix.cache)
            cache.batch_repeat_interleave(len(rows))
            past = {"past_key_values": cache, "use_cache": True}
        read = self.model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            **past,
        )
        return read.logits.float()

    def _check_length(self, needed: int) -> None:
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is not None and needed > longest:
            raise InputError(
                f"a passage has {needed} tokens, but the reader's context holds {longest}; shorten "
                "the template or its slots"
            )


@final
class SentenceEmbedder:
    """Means of the last hidden states of a transformers encoder, and the states themselves.

    Arguments:
        model: the encoder; frozen.
        tokenizer: its tokenizer.
        batch: texts per call.
    """

    def __init__(self, model: Any, tokenizer: Any, batch: int = 64) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch = batch

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "U d"]:
        """One vector per text: the mean over its tokens."""
        return torch.stack([states.mean(0) for states in self.tokens(texts)])

    @torch.no_grad()
    def tokens(self, texts: Sequence[str]) -> list[Float[Tensor, "T d"]]:
        """The last hidden states of each text's tokens, special ones left out."""
        found: list[Tensor] = []
        for start in range(0, len(texts), self.batch):
            found += self._states(texts[start : start + self.batch])
        return found

    def _states(self, texts: Sequence[str]) -> Iterator[Float[Tensor, "T d"]]:
        first, last = surrounding(self.tokenizer)
        rows = [[*first, *plain_ids(self.tokenizer, text), *last] for text in texts]
        width = max(1, *map(len, rows))
        ids = [[*row, *[0] * (width - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        device = self.model.device
        states = self.model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
        )[0]
        for row, state in zip(rows, states, strict=True):
            inner = state[len(first) : len(row) - len(last)]
            # An empty text still has a vector: that of what stands around it.
            yield (inner if len(inner) else state[: max(1, len(row))]).float().cpu()


@final
class SimilarityReward(TextReward):
    """How near a text's meaning is to a reference's.

        log r = scale * cos(e(text), e(reference)) <= scale

    Arguments:
        embedder: ``list[str] -> (n, d)``: a ``SentenceEmbedder``, or the ``encode`` of a
            sentence-transformers model.
        reference: the text to be near to.
        scale: nats between the same direction and an orthogonal one, above 0.
        reads: the whole "text", or the "middle" alone.

    Raises:
        InputError: scale is not positive.
    """

    name = "SimilarityReward"

    def __init__(
        self,
        embedder: Callable[[list[str]], Any],
        reference: str,
        scale: float = 1.0,
        reads: Reads = "middle",
    ) -> None:
        if not scale > 0:
            raise InputError(f"scale={scale} must be positive; it is in nats")
        self.embedder = embedder
        self.scale = scale
        self.reads: Reads = reads
        self.bound = scale
        self.wanted = self._directions([reference])[0]

    @torch.no_grad()
    def judged(self, passages: list[Passage]) -> Float[Tensor, " U"]:
        return self.scale * (self._directions(read(passages, self.reads)) @ self.wanted)

    def _directions(self, texts: list[str]) -> Float[Tensor, "U d"]:
        vectors = torch.as_tensor(self.embedder(texts)).double().cpu()
        return torch.nn.functional.normalize(vectors, dim=1)


@final
class TextClassifierReward(TextReward):
    """The log-probability that a transformers classifier gives to a class, or to any of several.

        log r = log Σ_{k in classes} softmax(logits(text))_k <= 0

    Arguments:
        model: a sequence classifier, whose output has ``logits``; frozen.
        tokenizer: its tokenizer.
        classes: the wanted class or classes, counted from 0.
        reads: the whole "text", or the "middle" alone.
        batch: texts per call.

    Raises:
        InputError: a class that the model does not have.
    """

    bound = 0.0
    name = "TextClassifierReward"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        classes: int | Sequence[int],
        reads: Reads = "text",
        batch: int = 64,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.classes = [classes] if isinstance(classes, int) else sorted(set(classes))
        self.reads: Reads = reads
        self.batch = batch
        count = model.config.num_labels
        if not self.classes or not all(0 <= k < count for k in self.classes):
            raise InputError(f"classes={classes!r}; the model has classes 0 to {count - 1}")

    @torch.no_grad()
    def judged(self, passages: list[Passage]) -> Float[Tensor, " U"]:
        texts = read(passages, self.reads)
        parts = range(0, len(texts), self.batch)
        return torch.cat([self._scored(texts[i : i + self.batch]) for i in parts])

    def _scored(self, texts: list[str]) -> Float[Tensor, " b"]:
        rows = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.model.device)
        log_p = self.model(**rows).logits.float().log_softmax(1)
        # The clamp takes off what rounding adds when all classes are wanted.
        return log_p[:, self.classes].logsumexp(1).clamp(max=0.0).cpu()
