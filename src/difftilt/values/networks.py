"""Which network carries a learned ``log h``: by the states of the chain."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.diffusions.masked import MaskedDiffusion
from difftilt.models.convolutional import LevelConvolutions
from difftilt.models.mlp import Size
from difftilt.models.reads import Reads
from difftilt.values.functions import TokenValue, Value, VectorValue


class ImageValue(Value):
    """A convolutional value of noisy images, of the prior's prediction there and of the step.

    It is zero at the start, up to its anchor.

    Arguments:
        event_shape: (C, H, W) of one sample.
        steps: N.
        width: channels of the first convolution.
        largest_beta: train over β in (0, largest_beta], which becomes an input; None: one β.
        reads: the labels or the numbers of the condition, or None: it reads none.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        steps: int,
        width: int = 16,
        largest_beta: float | None = None,
        reads: Reads | None = None,
    ) -> None:
        super().__init__(largest_beta)
        self.steps = steps
        self.reads = reads
        numbers = 1 if largest_beta is None else 2
        further = 0 if reads is None else reads.count
        self.network = LevelConvolutions(2 * event_shape[0], 1, numbers, width, further)

    @property
    def conditional(self) -> bool:
        return self.reads is not None

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None = None,
        beta: float | Float[Tensor, " B"] = 1.0,
    ) -> Float[Tensor, " B"]:
        images = torch.cat([x, prediction[:, : x.shape[1]]], 1)
        level = torch.as_tensor(n, device=x.device).to(x.dtype).expand(len(x)) / self.steps
        code = None if self.reads is None else self.reads.code(condition, x)
        if self.largest_beta is None:
            return self.network(images, level[:, None], code)[:, 0] + self.anchor(beta)
        share = torch.as_tensor(beta, dtype=x.dtype, device=x.device) / self.largest_beta
        share = share.expand(len(x))
        # No tilt, no value: f is zero at β = 0.
        f = share * self.network(images, torch.stack([level, share], 1), code)[:, 0]
        return f + self.anchor(beta)


def value_for(
    chain: Chain,
    size: Size | None = None,
    largest_beta: float | None = None,
    reads: Reads | None = None,
) -> Value:
    """The value that suits a chain's states, in its dtype and on its device.

    Arguments:
        chain: of vectors, of images (C, H, W), or of masked tokens.
        size: of a perceptron for vectors; None for the default.
        largest_beta: train over β in (0, largest_beta]; not of tokens. None: one β.
        reads: the labels or the numbers of the condition, which vectors and images read; None:
            none. Tokens read their canvas.
    """
    if isinstance(chain.diffusion, MaskedDiffusion):
        value: Value = TokenValue(chain.diffusion.vocab_size, chain.event_shape[0])
    elif len(chain.event_shape) == 3:
        value = ImageValue(chain.event_shape, chain.steps, largest_beta=largest_beta, reads=reads)
    else:
        value = VectorValue(chain.event_shape, chain.steps, size, largest_beta, reads)
    return value.to(dtype=chain.like.dtype, device=chain.like.device)
