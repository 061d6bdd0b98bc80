"""What the text task is run on: models, canvases, the reader, and how fillings are judged."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from random import Random
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.adapters.text.base import TextModel, load_text_model
from difftilt.adapters.text.hugging_face import TransformersNetwork
from difftilt.diffusions.masked import GENERATED, GIVEN
from difftilt.errors import InputError
from difftilt.recipes.base import metric_row
from difftilt.tasks import text, text_metrics
from difftilt.tasks.shipped import (
    FolderName,
    load_masked_model,
    load_tokenizer,
    shipped_folder,
)
from difftilt.tasks.stories import grammar
from difftilt.tasks.stories import tokens as story_tokens
from difftilt.tasks.stories.layout import Layout

DataName = Literal["stories", "bible"]
HELD_OUT_SEED = 20_240_531
MOST_HELD_OUT = 64
VERDICTS: dict[grammar.Verdict, str] = {
    "coherent": "the middle states a cause from which the ending follows",
    "wrong cause": "a sentence of the story from which the ending does not follow",
    "invalid": "no sentence of the story",
}


class TextSet(ABC):
    """Five-sentence stories in a fixed layout, with a prior and a reader of the ending.

    Attributes:
        layout: of the canvases.
        model: the masked language model.
    """

    layout: Layout
    model: TextModel

    @abstractmethod
    def log_reward(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        """``log p(y | x, z)`` of complete canvases, nats, at most 0."""

    @abstractmethod
    def drawn(self, count: int, generator: torch.Generator) -> Int[Tensor, "count 2 L"]:
        """Canvases (x, y) to train on."""

    @abstractmethod
    def held_out(self, count: int) -> Int[Tensor, "count 2 L"]:
        """Canvases that no training sees; their tokens hold the true middle.

        Raises:
            InputError: there are not so many.
        """

    @abstractmethod
    def words(self, ids: Int[Tensor, " T"]) -> str:
        """Tokens as text, pads left out."""

    def middle(self, ids: Int[Tensor, " L"]) -> str:
        """The filling of a complete canvas."""
        return self.words(ids[self.layout.middle_slice])

    def frame(self, ids: Int[Tensor, " L"]) -> tuple[str, str]:
        """What stands before and after the filling."""
        inside = self.layout.middle_slice
        return self.words(ids[: inside.start]), self.words(ids[inside.stop :])

    def text(self, ids: Int[Tensor, " L"]) -> str:
        """A complete canvas; the filling stands in brackets."""
        before, after = self.frame(ids)
        return f"{before} [{self.middle(ids)}] {after}"

    def name(self, ids: Int[Tensor, " L"]) -> str:
        """A context, in a few words."""
        before, after = self.frame(ids)
        return f"{' '.join(before.split()[:6])} … {' '.join(after.split()[:8])}"

    def shares(self, ids: Int[Tensor, "S L"]) -> dict[str, float]:
        """Shares of fillings of each verdict, where a filling can be judged."""
        return {}

    def metrics(
        self, sets: Mapping[str, Int[Tensor, "S L"]], truth: Int[Tensor, "n L"]
    ) -> list[dict[str, Any]]:
        """Rows of the report: how each sampler's fillings compare with the true ones.

        Arguments:
            sets: complete canvases by sampler; sample i is of context i, counted round.
            truth: the contexts with their true middle, likewise.
        """
        contexts = len({row.numpy().tobytes() for row in truth})
        tables = {name: self._table(ids, contexts) for name, ids in sets.items()}
        references = [self.middle(row) for row in truth[:contexts]]
        written = {name: table for name, table in tables.items() if name != "truth"}
        rows = [
            metric_row(label, note, {name: score(t, references) for name, t in written.items()})
            for label, note, score in _OVERLAPS
        ]
        several = {name: table for name, table in written.items() if len(table[0]) > 1}
        spread = {name: float(text_metrics.distinct(t, 2).mean()) for name, t in several.items()}
        return [
            *rows,
            metric_row("distinct word pairs", "share, among a context's samples", spread),
        ]

    def _table(self, ids: Int[Tensor, "S L"], contexts: int) -> list[list[str]]:
        """Fillings by context, as many of each."""
        rounds = max(1, len(ids) // contexts)
        found = [self.middle(row) for row in ids[: rounds * contexts]]
        return [found[c::contexts] for c in range(min(contexts, len(found)))]


def _shipped_model(name: FolderName, **options: Any) -> TextModel:
    """A shipped masked model; it was trained to read pads as words."""
    folder = shipped_folder(name)
    tokenizer = load_tokenizer(folder)
    network = TransformersNetwork(load_masked_model(folder), tokenizer.mask_token_id, pad_id=None)
    return replace(load_text_model(network, tokenizer, **options), source=f"shipped {name}")


def _bleu(table: list[list[str]], references: Sequence[str]) -> float:
    return float(text_metrics.bleu(table, references[: len(table)]).mean())


def _gleu(table: list[list[str]], references: Sequence[str]) -> float:
    return float(text_metrics.gleu(table, references[: len(table)]).mean())


_OVERLAPS = (
    ("BLEU-4", "with the true middle, smoothing method 1", _bleu),
    ("GLEU-4", "with the true middle", _gleu),
)


class Stories(TextSet):
    """The grammar: its posterior is known, and whether a middle is coherent can be said."""

    layout = story_tokens.STORY_LAYOUT

    def __init__(self) -> None:
        # A pad is a word here: the model ends a sentence with it.
        self.model = _shipped_model("story_prior", banned=(story_tokens.MASK_ID,))

    def log_reward(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        return story_tokens.log_reward(ids)

    def drawn(self, count: int, generator: torch.Generator) -> Int[Tensor, "count 2 L"]:
        seed = int(torch.randint(2**62, (), generator=generator))
        random = Random(seed)
        return story_tokens.story_canvas([grammar.story(random) for _ in range(count)])

    def held_out(self, count: int) -> Int[Tensor, "count 2 L"]:
        random = Random(HELD_OUT_SEED)
        return story_tokens.story_canvas([grammar.story(random) for _ in range(count)])

    def words(self, ids: Int[Tensor, " T"]) -> str:
        vocabulary = story_tokens.vocabulary()
        shown = [vocabulary[i] for i in ids.tolist() if i != story_tokens.PAD_ID]
        return " ".join(shown)

    def metrics(
        self, sets: Mapping[str, Int[Tensor, "S L"]], truth: Int[Tensor, "n L"]
    ) -> list[dict[str, Any]]:
        shares = {name: self.shares(ids) for name, ids in sets.items()}
        rows = [
            metric_row(f"share {kind}", note, {name: found[kind] for name, found in shares.items()})
            for kind, note in VERDICTS.items()
        ]
        return [*rows, *super().metrics(sets, truth)]

    def shares(self, ids: Int[Tensor, "S L"]) -> dict[str, float]:
        found = story_tokens.verdicts(ids)
        return {kind: found.count(kind) / len(found) for kind in VERDICTS}


class Bible(TextSet):
    """Real text: the middle's length is given, as in the paper's task."""

    layout = text.TEXT_LAYOUT

    def __init__(self) -> None:
        self.model = _shipped_model("text_prior")
        self._reader = text.load_text_reader()

    @cached_property
    def _passages(self) -> Int[Tensor, "M 2 L"]:
        ids = text.encoded_passages(self.model.tokenizer, text.held_out_passages(), self.layout)
        condition = text.text_canvas(ids, self.layout)
        written = ids != self._pad_id
        # Pads behind a middle are given: its length is not what is asked for.
        roles = torch.where((condition[:, 1] == GENERATED) & ~written, GIVEN, condition[:, 1])
        return torch.stack([ids, roles], 1)

    @property
    def _pad_id(self) -> int:
        return self.model.tokenizer.pad_token_id

    def log_reward(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        return text.ending_log_likelihood(self._reader, ids, self._pad_id, self.layout)

    def drawn(self, count: int, generator: torch.Generator) -> Int[Tensor, "count 2 L"]:
        known = self._passages[MOST_HELD_OUT:]
        return known[torch.randint(len(known), (count,), generator=generator)]

    def held_out(self, count: int) -> Int[Tensor, "count 2 L"]:
        if count > MOST_HELD_OUT:
            raise InputError(
                f"contexts={count}: {MOST_HELD_OUT} passages are held out from training; ask for "
                "at most as many"
            )
        return self._passages[:count]

    def words(self, ids: Int[Tensor, " T"]) -> str:
        return self.model.tokenizer.decode(ids, skip_special_tokens=True).strip()


def text_set(name: DataName) -> TextSet:
    """A text set by name."""
    return {"stories": Stories, "bible": Bible}[name]()
