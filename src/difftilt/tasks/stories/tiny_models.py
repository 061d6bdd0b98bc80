"""Tiny models of published classes, to try the ROCStories task out where no hub can be reached.

A SEDD and a GPT-2 of a few thousand random weights, with a byte-level tokenizer of the stories'
own words, in folders as published ones are; and stories of our grammar in the official format.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difftilt.adapters.text.base import TextModel
from difftilt.adapters.text.ddit_network import DDiTNetwork
from difftilt.adapters.text.export import export_text_model
from difftilt.adapters.text.sedd import sedd
from difftilt.chains.chain import Chain
from difftilt.diffusions.masked import MaskedDiffusion
from difftilt.errors import require
from difftilt.kernels.networks import full_copy
from difftilt.tasks.stories.rocstories import TitledStory, read_stories, write_grammar_stories
from difftilt.token_denoisers import TokenDenoiser

VOCABULARY = 800
END = "<|endoftext|>"


def write_tiny_task(folder: Path, stories: int = 200, seed: int = 0) -> None:
    """Write ``stories.csv``, ``prior/`` (a SEDD) and ``reader/`` (a GPT-2) into a folder.

    Arguments:
        folder: an existing folder.
        stories: rows of the csv.
        seed: of stories and weights.

    Raises:
        MissingPackage: transformers or tokenizers is not installed.
    """
    write_grammar_stories(folder / "stories.csv", stories, seed)
    tokenizer = _tokenizer(read_stories(folder / "stories.csv"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _write_prior(folder / "prior", tokenizer)
        _write_reader(folder / "reader", tokenizer)


def _tokenizer(stories: list[TitledStory]) -> Any:
    """Byte pairs of the stories, as GPT-2 has them."""
    require("tokenizers", "text")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )

    def texts() -> Iterator[str]:
        for story in stories:
            yield " ".join(story.sentences)

    made.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END)


def _write_prior(folder: Path, tokenizer: Any) -> None:
    config = {
        "graph": {"type": "absorb"},
        "tokens": len(tokenizer),
        "model": {"hidden_size": 32, "n_heads": 2, "n_blocks": 2, "cond_dim": 16, "length": 256},
    }
    network = DDiTNetwork(sedd(config))
    # At the published initial scale a network of this width says the same of every context.
    _sharpened(network, 3.0)
    denoiser = TokenDenoiser(network)
    chain = Chain(denoiser, MaskedDiffusion(network.vocab_size, 1), (1,))
    record = TextModel(network, tokenizer, None, (), 256, False, "tiny", "", "all")
    export_text_model(record, full_copy(chain), folder)


def _write_reader(folder: Path, tokenizer: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


@torch.no_grad()
def _sharpened(network: nn.Module, scale: float) -> None:
    for name, parameter in network.named_parameters():
        if name.endswith("output_layer.linear.weight"):
            parameter *= scale
