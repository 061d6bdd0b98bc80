"""Tiny language models with random weights, and what a test asks of any of them."""

import torch
from torch import Tensor, nn

from difftilt.adapters.text.base import TextModel
from difftilt.categorical import Reveal
from difftilt.chains import Chain
from difftilt.diffusions.masked import MaskedDiffusion, MaskedLevel

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
