"""A small bidirectional transformer over tokens, in plain torch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class TransformerSize:
    """Size of a ``TokenTransformer``.

    Arguments:
        width: d, a multiple of ``heads``.
        layers: number of blocks.
        heads: of the attention.
        expansion: width of a block's hidden layer, in units of d.
    """

    width: int = 32
    layers: int = 2
    heads: int = 2
    expansion: int = 4


class TokenTransformer(nn.Module):
    """Token ids to logits, every position seeing all others; no dropout.

    Learned embeddings of tokens and positions, pre-norm blocks, a final norm, a linear head.

    Arguments:
        ids: number of ids it reads, the mask's among them.
        length: most positions.
        outputs: V, columns of the head.
        size: of the network.
    """

    def __init__(
        self, ids: int, length: int, outputs: int, size: TransformerSize | None = None
    ) -> None:
        super().__init__()
        size = TransformerSize() if size is None else size
        self.token = nn.Embedding(ids, size.width)
        self.position = nn.Parameter(0.5 * torch.randn(length, size.width))
        self.blocks = nn.ModuleList(_Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        # The name keeps it away from optimisers of hidden matrices.
        self.last = nn.Linear(size.width, outputs)

    def hidden(
        self, ids: Int[Tensor, "B L"], added: Float[Tensor, "B d"] | None = None
    ) -> Float[Tensor, "B L d"]:
        """What the head reads.

        Arguments:
            ids: tokens.
            added: to the embedding of every position, such as what a label says, or None.
        """
        x = self.token(ids) + self.position[: ids.shape[1]]
        if added is not None:
            x = x + added[:, None]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        return self.last(self.hidden(ids))


class _Block(nn.Module):
    """Attention and a perceptron, each on a normed input and added to it."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        d = size.width
        self.heads = size.heads
        self.first_norm, self.second_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        # Three square matrices and not one: an orthogonalised step suits each by itself.
        self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.out = nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, size.expansion * d), nn.Linear(size.expansion * d, d)

    def forward(self, x: Float[Tensor, "B L d"]) -> Float[Tensor, "B L d"]:
        x = x + self._attention(self.first_norm(x))
        return x + self.down(nn.functional.gelu(self.up(self.second_norm(x))))

    def _attention(self, x: Float[Tensor, "B L d"]) -> Float[Tensor, "B L d"]:
        parts = [layer(x) for layer in (self.query, self.key, self.value)]
        query, key, value = (p.unflatten(2, (self.heads, -1)).transpose(1, 2) for p in parts)
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(found.transpose(1, 2).flatten(2))
