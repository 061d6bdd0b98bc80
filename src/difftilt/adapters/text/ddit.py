"""The diffusion transformer of tokens that SEDD, MDLM and BD3-LM share, in plain torch.

Parameters have the names and shapes of the published checkpoints. Attention goes through
``scaled_dot_product_attention``; positions are rotary; the noise level ``sigma`` enters as a shift,
a scale and a gate of every block (adaLN), or not at all.

Sources: Peebles & Xie 2023 (DiT, arXiv 2212.09748); Su et al. 2021 (rotary positions, arXiv
2104.09864); Lou et al. 2024 (SEDD, arXiv 2310.16834).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from difftilt.errors import InputError

FREQUENCIES = 256
LONGEST_PERIOD = 10_000.0


@dataclass(frozen=True)
class DDiTSize:
    """Widths of a DDiT.

    Arguments:
        vocab_size: V, the mask included.
        width: of a position's features.
        heads: of attention; ``width / heads`` is even.
        blocks: number of blocks.
        level_width: features of the noise level; 0 for a network without them.

    Raises:
        InputError: heads that do not divide the width into even parts.
    """

    vocab_size: int
    width: int
    heads: int
    blocks: int
    level_width: int = 128

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % (2 * self.heads):
            raise InputError(
                f"width={self.width} must be an even multiple of heads={self.heads}; read both "
                "from the checkpoint's config.json"
            )


class Norm(nn.Module):
    """Layer norm without bias, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.layer_norm(x.float(), x.shape[-1:]).to(x.dtype) * self.weight


class Embedding(nn.Module):
    """A table of token features."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(vocab_size, width) / math.sqrt(width))

    def forward(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L d"]:
        return self.embedding[ids]


class LevelFeatures(nn.Module):
    """Features of the noise level: sines of sigma, then a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, "B c"]:
        half = FREQUENCIES // 2
        exponent = torch.arange(half, dtype=torch.float32, device=sigma.device) / half
        angle = sigma.float()[:, None] * LONGEST_PERIOD**-exponent
        waves = torch.cat([angle.cos(), angle.sin()], 1)
        return F.silu(self.mlp(waves.to(self.mlp[0].weight.dtype)))


class Rotary(nn.Module):
    """Rotation of each pair (i, i + d/2) of a head's features by its position's angle."""

    def forward(self, x: Float[Tensor, "B H L d"]) -> Float[Tensor, "B H L d"]:
        place = torch.arange(x.shape[2], dtype=torch.float32, device=x.device)
        angle = place[:, None] * frequencies(x.shape[3]).to(x.device)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def frequencies(head_width: int) -> Float[Tensor, " half"]:
    """Angle per position of each pair of features."""
    exponent = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
    return LONGEST_PERIOD**-exponent


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Attention and perceptron, each shifted, scaled and gated by the noise level."""

    def __init__(self, size: DDiTSize) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.norm1 = Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = Norm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        if size.level_width:
            self.adaLN_modulation = nn.Linear(size.level_width, 6 * width)

    def forward(
        self,
        x: Float[Tensor, "B L d"],
        level: Float[Tensor, "B c"] | None,
        rotary: Rotary,
        visible: Bool[Tensor, "..."] | None,
    ) -> Float[Tensor, "B L d"]:
        if level is None:
            x = x + self.attention(self.norm1(x), rotary, visible)
            return x + self.mlp(self.norm2(x))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(level)[
            :, None
        ].chunk(6, 2)
        seen = _modulated(self.norm1(x), shift_1, scale_1)
        x = x + gate_1 * self.attention(seen, rotary, visible)
        return x + gate_2 * self.mlp(_modulated(self.norm2(x), shift_2, scale_2))

    def attention(
        self, x: Float[Tensor, "B L d"], rotary: Rotary, visible: Tensor | None
    ) -> Float[Tensor, "B L d"]:
        """Attention of all heads; ``visible`` broadcasts to (B, H, L, L)."""
        split = self.attn_qkv(x).unflatten(2, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotary(query), rotary(key), value, visible)
        return self.attn_out(mixed.transpose(1, 2).flatten(2))


class Output(nn.Module):
    """The last norm, modulated by the noise level, and the vocabulary head."""

    def __init__(self, size: DDiTSize) -> None:
        super().__init__()
        self.norm_final = Norm(size.width)
        self.linear = nn.Linear(size.width, size.vocab_size)
        if size.level_width:
            self.adaLN_modulation = nn.Linear(size.level_width, 2 * size.width)

    def features(
        self, x: Float[Tensor, "B L d"], level: Float[Tensor, "B c"] | None
    ) -> Float[Tensor, "B L d"]:
        """What the vocabulary head reads."""
        if level is None:
            return self.norm_final(x)
        return _modulated(self.norm_final(x), *self.adaLN_modulation(level)[:, None].chunk(2, 2))


class DDiT(nn.Module):
    """The transformer without its vocabulary head's last product.

    Arguments:
        size: its widths.
    """

    def __init__(self, size: DDiTSize) -> None:
        super().__init__()
        self.vocab_embed = Embedding(size.vocab_size, size.width)
        self.sigma_map = LevelFeatures(size.level_width) if size.level_width else None
        self.rotary_emb = Rotary()
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.blocks))
        self.output_layer = Output(size)

    def forward(
        self,
        ids: Int[Tensor, "B L"],
        sigma: Float[Tensor, " B"],
        visible: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "B L d"]:
        """Features for ``output_layer.linear``.

        Arguments:
            ids: tokens.
            sigma: noise level of each sample.
            visible: which position (third axis) may see which (fourth), (B or 1, 1, L or 1, L).
        """
        level = None if self.sigma_map is None else self.sigma_map(sigma)
        x = self.vocab_embed(ids)
        for block in self.blocks:
            x = block(x, level, self.rotary_emb, visible)
        return self.output_layer.features(x, level)
