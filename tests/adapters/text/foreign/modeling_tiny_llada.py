"""A small model with the parts, names and habits of the code that comes with LLaDA.

Its habits: no ``post_init``, ``tie_weights`` without arguments, ``config.use_cache`` read at every
call, the head inside the base model, and attention that turns causal as soon as ``attention_mask``
hides a position.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class LLaDAConfig(PretrainedConfig):
    model_type = "llada"

    def __init__(self, use_cache=False, **others):
        sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "vocab_size": 32}
        super().__init__(**{**sizes, **others, "use_cache": use_cache})


class Output(NamedTuple):
    logits: Tensor


class LLaDALlamaBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.d_model
        self.heads = config.n_heads
        self.attn_norm, self.ff_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_proj = nn.Linear(width, 2 * width, bias=False)
        self.ff_out = nn.Linear(2 * width, width, bias=False)

    def forward(self, x, bias):
        seen = self.attn_norm(x)
        query, key, value = (
            layer(seen).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, bias)
        x = x + self.attn_out(mixed.transpose(1, 2).flatten(2))
        return x + self.ff_out(nn.functional.silu(self.ff_proj(self.ff_norm(x))))


class LLaDAModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.d_model),
                "ln_f": nn.LayerNorm(config.d_model),
                "blocks": nn.ModuleList(LLaDALlamaBlock(config) for _ in range(config.n_layers)),
                "ff_out": nn.Linear(config.d_model, config.vocab_size, bias=False),
            }
        )

    def forward(self, input_ids, attention_mask=None, attention_bias=None):
        x = self.transformer.wte(input_ids)
        # Positions, so that an order of tokens matters.
        x = x + torch.linspace(-1, 1, 24)[: x.shape[1], None]
        if attention_mask is not None and 0 in attention_mask:
            attention_bias = torch.full((x.shape[1],) * 2, -torch.inf).triu(1)
        for block in self.transformer.blocks:
            x = block(x, attention_bias)
        return Output(self.transformer.ff_out(self.transformer.ln_f(x)))


class LLaDAModelLM(PreTrainedModel):
    config_class = LLaDAConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = LLaDAModel(config)

    def forward(self, input_ids=None, inputs_embeds=None, return_dict=None, **given):
        given.setdefault("use_cache", self.config.use_cache)
        assert not given.pop("use_cache")
        output = self.model.forward(input_ids, **given)
        return CausalLMOutputWithPast(logits=output.logits)

    def get_input_embeddings(self):
        return self.model.transformer.wte

    def get_output_embeddings(self):
        return self.model.transformer.ff_out

    def tie_weights(self):
        pass
