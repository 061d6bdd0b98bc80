"""Stories of the grammar as token ids: five slots of nine words, padded on the right.

Ids 0 and 1 are the pad and the mask, then come the grammar's words in alphabetical order; the
shipped prior has the same vocabulary. Functions that read canvases want complete ones, with the
ending put in (``difftilt.diffusions.masked.completed``).
"""

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.diffusions.masked import canvas
from difftilt.tasks.stories import grammar
from difftilt.tasks.stories.catalogue import SLOT
from difftilt.tasks.stories.grammar import Sentence, Story, Verdict
from difftilt.tasks.stories.layout import Layout

STORY_LAYOUT = Layout(context=3 * SLOT, middle=SLOT, ending=SLOT)
"""Canvas of a story, 45 tokens."""

PAD, MASK = "[PAD]", "[MASK]"
PAD_ID, MASK_ID = 0, 1


@cache
def vocabulary() -> tuple[str, ...]:
    """Every token, in the order of the ids."""
    words = {
        word
        for situation in grammar.situations()
        for lines in (
            *grammar.contexts(situation),
            grammar.middles(situation),
            grammar.endings(situation),
        )
        for sentence in lines
        for word in sentence
    }
    return (PAD, MASK, *sorted(words))


@cache
def _ids() -> dict[str, int]:
    return {word: number for number, word in enumerate(vocabulary())}


def encoded_sentences(sentences: Sequence[Sentence]) -> Int[Tensor, "M 9"]:
    """Ids of sentences, a slot each."""
    ids = _ids()
    rows = [[ids[word] for word in s] + [PAD_ID] * (SLOT - len(s)) for s in sentences]
    return torch.tensor(rows)


def encoded(stories: Sequence[Story]) -> Int[Tensor, "B L"]:
    """Ids of whole stories, L = 45."""
    rows = [encoded_sentences((*s.context, s.middle, s.ending)).flatten() for s in stories]
    return torch.stack(rows)


def sentence(ids: Int[Tensor, " 9"]) -> Sentence:
    """The words of a slot; a pad or a mask before the end stays as a word, and is invalid."""
    words = [vocabulary()[number] for number in ids.tolist()]
    while words and words[-1] == PAD:
        words.pop()
    return tuple(words)


def decoded(ids: Int[Tensor, "B L"]) -> list[Story]:
    """The stories of complete canvases."""
    result = []
    for row in ids.unflatten(1, (-1, SLOT)):
        first, second, third, middle, ending = (sentence(slot) for slot in row)
        result.append(Story((first, second, third), middle, ending))
    return result


def story_canvas(stories: Sequence[Story]) -> Int[Tensor, "B 2 L"]:
    """The conditions of an infilling: the context given, the ending for the posterior alone."""
    tokens = encoded(stories)
    return canvas(tokens, STORY_LAYOUT.roles().expand(len(tokens), -1))


def log_reward(ids: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
    """``log p(y | x, z)`` in nats of complete canvases, exactly.

    Raises:
        InputError: a context or an ending is not of the grammar.
    """
    stories = decoded(ids)
    values = [grammar.log_likelihood(s.context, s.middle, s.ending) for s in stories]
    return torch.tensor(values, dtype=torch.float32, device=ids.device)


def verdicts(ids: Int[Tensor, "B L"]) -> list[Verdict]:
    """``grammar.judge`` of complete canvases.

    Raises:
        InputError: a context is not of the grammar.
    """
    return [grammar.judge(s.context, s.middle, s.ending) for s in decoded(ids)]
