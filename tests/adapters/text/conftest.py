"""A tokenizer of 25 tokens and a tiny BERT that knows more."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from tiny_text_models import SPECIALS, WORDS, masked_lm


@pytest.fixture(scope="session")
def tokenizer():
    """25 tokens: five specials, then twenty words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *WORDS])}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, model_max_length=24, **dict(zip(names, SPECIALS, strict=True))
    )


@pytest.fixture
def bert_folder(tmp_path: Path, tokenizer) -> Path:
    """A tiny BERT with its tokenizer, as a folder."""
    folder = tmp_path / "bert"
    masked_lm("Bert").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def head_rows() -> Callable[[nn.Module], list[int]]:
    """Records how many rows a module is given, call by call."""

    def watch(module: nn.Module) -> list[int]:
        seen: list[int] = []
        module.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:-1].numel()))
        return seen

    return watch
