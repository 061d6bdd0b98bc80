"""Tiny transformers models, and the truth about them by other means than the package's."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from difftilt.text_priors import TextPrior, text_prior
from difftilt.token_denoisers import TokenNetwork

WORDS = ["ann", "bob", "cat", "saw", "met", "ran", "home", ".", ","]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_tokenizer(words: Sequence[str] = WORDS) -> Any:
    """A transformers tokenizer of whole words, with BERT's special tokens around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    around = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="[CLS] $A [SEP]", special_tokens=around
    )
    names = ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True))
    )


def byte_tokenizer() -> Any:
    """A transformers tokenizer of bytes, which knows every text; its spaces lead, as in GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>")


class BertNetwork(TokenNetwork):
    """A ``BertForMaskedLM``, its head apart, which does not look at pads."""

    def __init__(self, model: Any, pad_id: int, mask_id: int) -> None:
        super().__init__(model.config.vocab_size, mask_id)
        self.model = model
        self.pad_id = pad_id

    def hidden(self, ids: Tensor, time: Tensor) -> Tensor:
        return self.model.bert(ids, attention_mask=(ids != self.pad_id).long())[0]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.cls(hidden)


def tiny_bert(tokenizer: Any, peaked: float = 1.0, seed: int = 0) -> Any:
    """A random ``BertForMaskedLM``, its logits multiplied by ``peaked``."""
    from transformers import BertConfig, BertForMaskedLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            initializer_range=0.3,
            tie_word_embeddings=False,
        )
        model = BertForMaskedLM(config).eval()
        model.cls.predictions.decoder.weight.data *= peaked
    return model


def tiny_prior(order: Any = None, peaked: float = 2.0) -> TextPrior:
    """A prior of words by a random BERT."""
    tokenizer = word_tokenizer()
    model = tiny_bert(tokenizer, peaked)
    network = BertNetwork(model, tokenizer.pad_token_id, tokenizer.mask_token_id)
    return text_prior(network, tokenizer, order, max_length=32)


def tiny_gpt(tokenizer: Any, seed: int = 0) -> Any:
    """A random ``GPT2LMHeadModel`` whose predictions depend on what it reads."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=64,
            n_embd=16,
            n_layer=2,
            n_head=2,
            initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return GPT2LMHeadModel(config).eval()


@torch.no_grad()
def log_likelihood(model: Any, given: Iterable[int], read: Iterable[int]) -> float:
    """``log p(read | given)`` of a causal model, one token and one whole forward at a time."""
    ids, total = list(given), 0.0
    for token in read:
        total += float(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(0)[token])
        ids.append(token)
    return total
