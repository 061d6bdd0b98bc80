"""A small convolutional network that reads noisy images, their noise level and further numbers.

For a number (or a few) per image: a learned ``log h``, the logits of a noisy classifier. Its last
layer starts at zero.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

FREQUENCIES = 4


class LevelConvolutions(nn.Module):
    """``(images, numbers) -> outputs``: three convolutions, each modulated by the numbers.

    Every convolution halves the image; channels' means and maxima over what is left are read by the
    last layer.

    Arguments:
        channels: of the images.
        outputs: numbers in one output.
        numbers: how many numbers in [0, 1] there are beside each image, the noise level first.
        width: channels of the first convolution; later ones have two and four times as many.
        further: how many further numbers, of any size, there are (a condition's code).
    """

    bands: Tensor

    def __init__(
        self, channels: int, outputs: int, numbers: int = 1, width: int = 16, further: int = 0
    ) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.register_buffer("bands", torch.pi * 2.0 ** torch.arange(FREQUENCIES), persistent=False)
        code = numbers * (1 + 2 * FREQUENCIES) + further
        before = (channels, *widths[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(before, widths, strict=True)
        )
        self.code = nn.Sequential(nn.Linear(code, 4 * width), nn.SiLU())
        self.modulations = nn.ModuleList(nn.Linear(4 * width, 2 * b) for b in widths)
        self.last = nn.Linear(2 * widths[-1], outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        numbers: Float[Tensor, "B numbers"],
        further: Float[Tensor, "B further"] | None = None,
    ) -> Float[Tensor, "B outputs"]:
        angles = (numbers[:, :, None] * self.bands).flatten(1)
        read = [numbers, angles.sin(), angles.cos()]
        code = self.code(torch.cat(read if further is None else [*read, further], 1))
        h = images
        for layer, modulation in zip(self.convolutions, self.modulations, strict=True):
            # No normalisation: it would hide how bright an image is.
            scale, shift = modulation(code)[:, :, None, None].chunk(2, 1)
            h = nn.functional.silu(layer(h) * (1 + scale) + shift)
        return self.last(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))
