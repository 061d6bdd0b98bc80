"""Stories of five sentences as canvases: the fourth a slot of the true sentence's length.

The fifth is shown to the posterior alone, and read by a causal language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from difftilt.adapters.text.base import TextModel
from difftilt.adapters.text.ddit_network import DDiTNetwork
from difftilt.adapters.text_rewards import ReadingReward
from difftilt.diffusions.orders import Parallel
from difftilt.errors import InputError
from difftilt.infilling import Infilling
from difftilt.tasks.stories.rocstories import TitledStory
from difftilt.text.templates import Slot, Template
from difftilt.text_priors import TextPrior

Splits = tuple[Sequence[TitledStory], Sequence[TitledStory]]
"""Stories of the test, and of the training."""


@dataclass(frozen=True)
class StoryTask:
    """Stories as canvases, the prior of their fourth sentence, and its reader.

    Arguments:
        model: the prior's.
        reader: of the ending.
        infilling: target and canvases: those of the test stories first, then of training.
        test: the test stories.
        truth: their canvases with the true sentence in it.
    """

    model: TextModel
    reader: ReadingReward
    infilling: Infilling
    test: Sequence[TitledStory]
    truth: Int[Tensor, "C 2 L"]

    @property
    def contexts(self) -> Int[Tensor, "C 2 L"]:
        """Canvases of the test stories."""
        return self.infilling.canvases.conditions[: len(self.test)]

    def drawn(self, count: int, generator: torch.Generator) -> Int[Tensor, "count 2 L"]:
        """Canvases of training stories."""
        known = self.infilling.canvases.conditions[len(self.test) :]
        return known[torch.randint(len(known), (count,), generator=generator)]


def story_task(
    stories: Splits,
    model: TextModel,
    reader: ReadingReward,
    contexts: int,
    reveals: int,
    beta: float,
) -> StoryTask:
    """The task of test and training stories; no canvas of a test story is trained on.

    Arguments:
        stories: of the test, and of the training.
        model: the prior's.
        reader: of the ending.
        contexts: test stories, at least 2.
        reveals: T, steps of the chain.
        beta: β > 0.

    Raises:
        InputError: there are too few stories.
    """
    model = _ends_hidden(model)
    test = {_template(model, story): story for story in stories[0]}
    test = dict(list(test.items())[:contexts])
    train = dict.fromkeys(_template(model, story) for story in stories[1])
    templates = [*test, *(t for t in train if t not in test)]
    if len(test) < max(2, contexts) or len(templates) == len(test):
        raise InputError(
            f"contexts={contexts}, but the file has {len(test)} different test stories (2 "
            "are the fewest) and others to train on are wanted too; ask for fewer"
        )
    infilling = TextPrior(model, Parallel(reveals)).infill(templates, reader, beta=beta)
    chosen = list(test.values())
    return StoryTask(model, reader, infilling, chosen, _truth(infilling, chosen))


def _ends_hidden(model: TextModel) -> TextModel:
    """The model with what fills up a canvas, the end of text, hidden from all positions."""
    end = getattr(model.tokenizer, "eos_token_id", None)
    if model.pad_id is not None or end is None or not isinstance(model.network, DDiTNetwork):
        return model
    model.network.pad_id = end
    return replace(model, pad_id=end, banned=tuple(sorted({*model.banned, end})))


def _template(model: TextModel, story: TitledStory) -> str:
    """A story with a slot of the true sentence's length in place of its fourth sentence."""
    *before, middle, after = story.sentences
    length = len(_ids(model, middle))
    return str(Template((" ".join(before), Slot(length, length, " "), f" {after}")))


def _ids(model: TextModel, sentence: str) -> list[int]:
    return list(model.tokenizer(f" {sentence}", add_special_tokens=False)["input_ids"])


def _truth(infilling: Infilling, stories: Sequence[TitledStory]) -> Int[Tensor, "C 2 L"]:
    truth = infilling.canvases.conditions[: len(stories)].clone()
    for row, layout, story in zip(truth, infilling.canvases.layouts, stories, strict=False):
        place = layout.places[0]
        row[0, place.start : place.stop] = torch.tensor(
            infilling.canvases.codec.ids(f" {story.sentences[3]}")
        )
    return truth
