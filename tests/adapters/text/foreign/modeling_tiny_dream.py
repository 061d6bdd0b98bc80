"""A small model with the parts, names and habits of the code that comes with Dream.

Its habits: frequencies of rotary positions from transformers' table of 4.x, kept in a buffer that
no file holds, and a padding mask that goes to attention as it is.
"""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class DreamConfig(PretrainedConfig):
    model_type = "Dream"

    def __init__(self, vocab_size=32, hidden_size=16, mask_token_id=31, **others):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_attention_heads, self.num_hidden_layers = 2, 2
        self.max_position_embeddings = 24
        self.rope_theta = 100.0
        self.initializer_range = 0.02
        super().__init__(**{**others, "tie_word_embeddings": False})
        self.mask_token_id = mask_token_id


class DreamRotaryEmbedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        frequencies, _ = ROPE_INIT_FUNCTIONS["default"](config, None)
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, x):
        angle = torch.arange(x.shape[2])[:, None] * self.inv_freq
        cos, sin = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin


class DreamDecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x, mask, rotary):
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(rotary(query), rotary(key), value, mask)
        return x + self.o_proj(mixed.transpose(1, 2).flatten(2))


class DreamPreTrainedModel(PreTrainedModel):
    config_class = DreamConfig
    base_model_prefix = "model"

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(std=self.config.initializer_range)


class DreamBaseModel(DreamPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DreamDecoderLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.rotary_emb = DreamRotaryEmbedding(config)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, return_dict=None):
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            x = layer(x, attention_mask, self.rotary_emb)
        return BaseModelOutput(last_hidden_state=self.norm(x))


class DreamModel(DreamPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = DreamBaseModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, num_logits_to_keep=0, **given):
        outputs = self.model(input_ids=input_ids, **given)
        logits = self.lm_head(outputs[0][:, -num_logits_to_keep:, :])
        return MaskedLMOutput(logits=logits, hidden_states=outputs.hidden_states)
