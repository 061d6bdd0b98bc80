"""Tiny language models with random weights, and what a test asks of any of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difftilt.adapters.text.base import TextModel
from difftilt.adapters.text.ddit_network import DDiTNetwork
from difftilt.adapters.text.families import PUBLISHED
from difftilt.chains.chain import Chain
from difftilt.diffusions.masked import MaskedDiffusion, MaskedLevel
from difftilt.transitions.categorical import Reveal

WORDS = [f"word{i}" for i in range(20)]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MASK, PAD = 4, 0
PADDED_VOCABULARY = 32
"""Rows of the models' heads: 7 more than the tokenizer has tokens."""


def spread(model: nn.Module, scale: float = 0.3) -> nn.Module:
    """Weights far from zero, so that every part of a network shows in its output."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(scale * noise)
            else:
                parameter.add_(0.1 * noise)
    return model.eval()


ENCODER = {
    "vocab_size": PADDED_VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
}


def masked_lm(kind: str) -> nn.Module:
    """A tiny model of a class of transformers, by the class's name without ForMaskedLM."""
    import transformers

    own = {
        "DistilBert": {
            "vocab_size": PADDED_VOCABULARY,
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 24,
            "max_position_embeddings": 32,
            "pad_token_id": PAD,
        },
        "Esm": {**ENCODER, "mask_token_id": MASK, "position_embedding_type": "rotary"},
        "ModernBert": {
            **ENCODER,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        "Electra": {**ENCODER, "embedding_size": 12},
    }
    config = getattr(transformers, f"{kind}Config")(**own.get(kind, ENCODER))
    return spread(getattr(transformers, f"{kind}ForMaskedLM")(config))


def partly_masked(vocab_size: int, mask_id: int, length: int = 9) -> Tensor:
    """Four canvases of words, masked at every second position from position 1."""
    ids = torch.randint(5, vocab_size, (4, length), generator=torch.Generator().manual_seed(5))
    ids[:, 1::2] = mask_id
    return ids


def level_of(positions: Tensor, time: float = 0.5) -> MaskedLevel:
    """A step that reveals positions (B, P)."""
    reveal = Reveal(positions, torch.ones_like(positions, dtype=torch.bool))
    return MaskedLevel(reveal, torch.full((len(positions),), time))


def at_masks(ids: Tensor) -> MaskedLevel:
    """A step that reveals what ``partly_masked`` masked."""
    return level_of(torch.arange(1, ids.shape[1], 2).expand(len(ids), -1))


def expected(logits: Tensor, ids: Tensor, forbidden: tuple[int, ...]) -> Tensor:
    """Log-probabilities at the masks from a model's own logits (B, L, V), in float64."""
    rows = logits[:, 1::2].double()
    rows[..., list(forbidden)] = -torch.inf
    return rows.log_softmax(-1)[:, : (ids.shape[1]) // 2]


def assert_same(ours: Tensor, theirs: Tensor, atol: float = 2e-5) -> None:
    """Equal log-probabilities, forbidden tokens at the same places."""
    assert torch.equal(ours.isinf(), theirs.isinf())
    torch.testing.assert_close(
        ours.double().nan_to_num(neginf=0.0), theirs.nan_to_num(neginf=0.0), rtol=0, atol=atol
    )


def chain_of(model: TextModel, length: int = 6) -> Chain:
    """A chain that generates all of a canvas, in any order."""
    denoiser = model.denoiser()
    return Chain(denoiser, MaskedDiffusion(denoiser.vocab_size, length), (length,))


FOREIGN = {
    "llada": {"class": "LLaDAModelLM", "model_type": "llada"},
    "dream": {"class": "DreamModel", "model_type": "Dream"},
}


def plain_foreign(folder: Path, family: str) -> nn.Module:
    """A folder's model by its own class, made without ``load_text_model``."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    name = f"modeling_tiny_{family}.{FOREIGN[family]['class']}"
    kind: Any = get_class_from_dynamic_module(name, str(folder))
    with pytest.MonkeyPatch.context() as patch:
        if "default" not in ROPE_INIT_FUNCTIONS:
            exponent = torch.arange(0, 8, 2) / 8
            patch.setitem(ROPE_INIT_FUNCTIONS, "default", lambda *_: (100.0**-exponent, 1.0))
        patch.setattr(kind.config_class, "use_cache", False, raising=False)
        model = kind(kind.config_class(vocab_size=32, mask_token_id=31))
    weights = folder / "model.safetensors"
    if weights.is_file():
        model.load_state_dict(load_file(weights))
    return model.eval()


def ddit_folder(folder: Path, tokens: int, family: str) -> Path:
    """A tiny MDLM or BD3-LM of blocks of 4 as it is published: without a tokenizer."""
    config = {
        "model_type": family,
        "vocab_size": tokens + 1,
        "model_length": 64,
        "hidden_dim": 16,
        "cond_dim": 6,
        "n_blocks": 2,
        "n_heads": 2,
        "block_size": 4,
    }
    network = spread(DDiTNetwork(PUBLISHED[family](config)))
    assert isinstance(network, DDiTNetwork)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.published_weights(), folder / "model.safetensors")
    return folder
