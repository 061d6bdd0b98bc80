"""Train the prior that ``difftilt.tasks.stories`` ships, on stories of its grammar alone.

    python scripts/train_story_models.py --minutes 12

A small ``BertForMaskedLM`` over the grammar's words learns to fill in any set of masks; half of the
training sequences open all 45 positions, half the fourth sentence with the fifth hidden. One seed
fixes every draw; the learning rate follows the clock, so weights are repeated in law, not to the
bit.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from masked_models import drawn_open, new_masked_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from training_by_clock import save_small, train_by_clock
from transformers import PreTrainedTokenizerFast as FastTokenizer

from difftilt.tasks.any_order import any_order_terms
from difftilt.tasks.stories import tokens
from difftilt.tasks.stories.grammar import story


@dataclass(frozen=True)
class Settings:
    """What the command line can change."""

    out: Path = Path("src/difftilt/tasks/data")
    """Folder that receives story_prior/."""
    minutes: float = 12.0
    stories: int = 40_000
    """Training stories."""
    width: int = 128
    layers: int = 4
    batch: int = 64
    learning_rate: float = 3e-3
    seed: int = 0
    threads: int = 1


def new_tokenizer() -> FastTokenizer:
    """One id per word of the grammar; a pad ends a sentence, and is a word like others."""
    ids = {word: number for number, word in enumerate(tokens.vocabulary())}
    core = Tokenizer(models.WordLevel(ids, unk_token=tokens.PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": tokens.PAD, "eos_token": tokens.PAD, "mask_token": tokens.MASK}
    return FastTokenizer(tokenizer_object=core, **names)


def main(settings: Settings) -> None:
    """Draw the stories, train, save."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    drawing = random.Random(settings.seed)
    stories = tokens.encoded([story(drawing) for _ in range(settings.stories)])
    size = len(tokens.vocabulary())
    model = new_masked_model(size, tokens.STORY_LAYOUT, settings.width, settings.layers)
    print(f"{len(stories)} stories, {model.num_parameters()} parameters", file=sys.stderr)

    def loss() -> Tensor:
        ids = stories[torch.randint(len(stories), (settings.batch,))]
        opened = drawn_open(tokens.STORY_LAYOUT, len(ids))
        return -any_order_terms(model, ids, opened, tokens.MASK_ID).sum() / opened.sum()

    train_by_clock("story prior", model, loss, settings.minutes, settings.learning_rate)
    save_small(model, new_tokenizer(), settings.out / "story_prior")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
