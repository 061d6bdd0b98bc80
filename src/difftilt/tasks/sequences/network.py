"""The network of the sequence priors: a small transformer that also reads control labels.

    [ x_1 ... x_L | y_1 ... y_K ]        tokens, then one label of each control

What the labels say is added to the embedding of every token, by weights that are zero at first:
whatever labels a copy of the prior is shown, it starts at the prior to the bit. The prior itself
sees them hidden.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from difftilt.models.heads import ZeroLinear
from difftilt.models.token_transformer import TokenTransformer, TransformerSize
from difftilt.token_denoisers import TokenNetwork

CONTROLS, CLASSES = 2, 2


class SequenceNetwork(TokenNetwork):
    """A ``TokenTransformer`` of sequences that reads labels beside them, told no time.

    Arguments:
        vocab_size: V, at least 2; the mask is id V.
        length: L, tokens of a sequence.
        size: of the network.
    """

    def __init__(self, vocab_size: int, length: int, size: TransformerSize | None = None) -> None:
        super().__init__(vocab_size, vocab_size)
        size = TransformerSize() if size is None else size
        self.length = length
        self.network = TokenTransformer(vocab_size + 1, length, vocab_size, size)
        self.labels = ZeroLinear(CONTROLS * CLASSES, size.width, bias=False)

    def hidden(
        self, ids: Int[Tensor, "B L"], time: Float[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B L d"]:
        tokens, labels = ids[:, : self.length], ids[:, self.length :]
        # A hidden label is the mask, which is no class.
        shown = (labels[..., None] == torch.arange(CLASSES, device=ids.device)).flatten(1)
        features = self.network.hidden(tokens, self.labels(shown.to(self.labels.weight.dtype)))
        return F.pad(features, (0, 0, 0, labels.shape[1]))

    def logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... V"]:
        return self.network.last(hidden)
