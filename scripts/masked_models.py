"""Small masked language models over stories in a layout, and what their training predicts."""

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from difftilt.diffusions.masked import GIVEN
from difftilt.tasks.stories.layout import Layout

HEAD_WIDTH = 32


def new_masked_model(size: int, layout: Layout, width: int, layers: int) -> BertForMaskedLM:
    """An untrained model of ``size`` tokens, for canvases of a layout, pads among them."""
    return BertForMaskedLM(
        BertConfig(
            vocab_size=size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // HEAD_WIDTH,
            intermediate_size=4 * width,
            max_position_embeddings=layout.length,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=None,
        )
    )


def drawn_open(layout: Layout, count: int) -> Bool[Tensor, "count L"]:
    """What training sequences predict: half of them everything, half the middle and the ending."""
    written = layout.roles() != GIVEN
    return (torch.rand(count, 1) < 0.5) | written.expand(count, -1)
