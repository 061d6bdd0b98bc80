"""Real text: short passages of the World English Bible, a masked prior and a causal reader.

A passage is five consecutive sentences: three of context, a middle to be written, an ending. The
masked model is the prior of the middle given the context; the reader, a causal model trained on
other books, judges how well the ending follows: ``log r = log p(ending | context, middle)``.
Books fall into three groups: the prior's, the reader's, and held-out ones that neither has read.

The text is lower case, without quotation marks. Both models share one tokeniser. All weights, the
tokeniser and the held-out passages are made by ``scripts/train_text_models.py``; the likelihood of
text under the masked model is ``any_order.elbo``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from difftilt.diffusions.masked import SUFFIX, canvas
from difftilt.errors import InputError
from difftilt.tasks.shipped import (
    load_causal_model,
    load_masked_model,
    load_tokenizer,
    shipped_folder,
    unusable,
)
from difftilt.tasks.stories.layout import Layout

TEXT_LAYOUT = Layout(context=64, middle=16, ending=24)
"""Canvas of the shipped prior, 104 tokens."""

SENTENCES = 5
"""Of a passage."""


@dataclass(frozen=True)
class Passage:
    """Five consecutive sentences.

    Arguments:
        source: the book that they are from.
        sentences: the five, in lower case.
    """

    source: str
    sentences: tuple[str, ...]


def load_text_prior() -> Any:
    """The shipped masked model, a ``BertForMaskedLM`` over canvases of ``TEXT_LAYOUT``."""
    return load_masked_model(shipped_folder("text_prior"))


def load_text_reader() -> Any:
    """The shipped causal model, a ``GPT2LMHeadModel``, trained on other books than the prior."""
    return load_causal_model(shipped_folder("text_reader"))


def load_text_tokenizer() -> Any:
    """The tokeniser of both models."""
    return load_tokenizer(shipped_folder("text_prior"))


def held_out_passages(folder: Path | None = None) -> list[Passage]:
    """Passages made from books that no model was trained on; no sentence is in two of them.

    Arguments:
        folder: holds ``passages.json``; None for the shipped ones.

    Raises:
        CheckpointError: their file is missing.
    """
    path = (folder or shipped_folder("text_heldout")) / "passages.json"
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        script = "scripts/train_text_models.py --parts heldout"
        raise unusable(path, error, script) from error
    return [Passage(row["source"], tuple(row["sentences"])) for row in rows]


def encoded_passages(
    tokenizer: Any, passages: Sequence[Passage], layout: Layout = TEXT_LAYOUT
) -> Int[Tensor, "B L"]:
    """Token ids of whole passages in a layout; of a long context the last tokens are kept.

    Raises:
        InputError: a passage has not five sentences, or its middle or ending does not fit.
    """
    rows = []
    for passage in passages:
        if len(passage.sentences) != SENTENCES:
            raise InputError(f"a passage has 5 sentences, this one {len(passage.sentences)}")
        parts = tokenizer(list(passage.sentences), add_special_tokens=False)["input_ids"]
        context = [i for sentence in parts[:3] for i in sentence]
        rows.append(layout.placed(context, parts[3], parts[4], tokenizer.pad_token_id))
    return torch.stack(rows)


def text_canvas(ids: Int[Tensor, "B L"], layout: Layout = TEXT_LAYOUT) -> Int[Tensor, "B 2 L"]:
    """The conditions of an infilling: the context given, the ending for the posterior alone."""
    return canvas(ids, layout.roles().to(ids.device).expand(len(ids), -1))


@torch.no_grad()
def reader_log_probs(
    reader: Any, ids: Int[Tensor, "B L"], counted: Bool[Tensor, "B L"], pad_id: int
) -> Float[Tensor, " B"]:
    """Σ log p(token | those before it) over the counted tokens, nats; pads are left out.

    Arguments:
        reader: a causal language model whose ``config.bos_token_id`` begins every text.
        ids: tokens, with pads anywhere.
        counted: which tokens are judged; a pad never is.
        pad_id: the pad.
    """
    real = ids != pad_id
    front = (~real).long().argsort(dim=1, stable=True)
    text, judged = ids.gather(1, front), (counted & real).gather(1, front)
    begin = torch.full_like(text[:, :1], reader.config.bos_token_id)
    logits = reader(input_ids=torch.cat([begin, text[:, :-1]], 1)).logits.float()
    log_probs = logits.log_softmax(2).gather(2, text[..., None])[..., 0]
    return torch.where(judged, log_probs, 0.0).sum(1)


def ending_log_likelihood(
    reader: Any, ids: Int[Tensor, "B L"], pad_id: int, layout: Layout = TEXT_LAYOUT
) -> Float[Tensor, " B"]:
    """``log p(ending | context, middle)`` of complete canvases under a reader, nats."""
    counted = (layout.roles() == SUFFIX).to(ids.device).expand(len(ids), -1)
    return reader_log_probs(reader, ids, counted, pad_id)


def perplexity(reader: Any, ids: Int[Tensor, "B L"], pad_id: int) -> float:
    """``exp(-mean log p)`` of a reader per real token of whole texts."""
    counted = ids != pad_id
    total = reader_log_probs(reader, ids, counted, pad_id).double().sum()
    return float(torch.exp(-total / counted.sum()))
