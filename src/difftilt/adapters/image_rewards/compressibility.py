"""How small a picture is as a JPEG file: a black box without parameters.

    log r(x) = -scale * size of the file in kB <= 0        (compressibility)
    log r(x) = +scale * size of the file in kB             (incompressibility)

Source: Black et al. 2023 (arXiv 2305.13301), whose rewards these are, at quality 95.
"""

import io
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.adapters.image_rewards.processing import checked_images
from difftilt.errors import InputError, require


@final
class JpegSize:
    """Minus (or plus) the kilobytes of a picture; the prompt is not read.

    Arguments:
        scale: nats per 1000 bytes; negative rewards large files.
        quality: of the JPEG, 1 to 95.

    Raises:
        InputError: the scale is 0 or the quality out of range.
        MissingPackage: pillow is not installed.
    """

    def __init__(self, scale: float = 1.0, quality: int = 95) -> None:
        if not 0 < abs(scale) < float("inf") or not 1 <= quality <= 95:
            raise InputError(
                f"scale={scale}, quality={quality}: the scale must be a finite number other than 0 "
                "and the quality between 1 and 95"
            )
        require("PIL", "report")
        self.scale = scale
        self.quality = quality
        self.name = "compressibility" if scale > 0 else "incompressibility"
        self.bound = 0.0 if scale > 0 else None

    def __call__(
        self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[str] | None = None
    ) -> Float[Tensor, " B"]:
        """log r of pictures in [0, 1], in nats.

        Raises:
            InputError: the pictures are no such pictures.
        """
        pixels = (checked_images(images.detach()) * 255).round().to(torch.uint8)
        sizes = [self._size(each) for each in pixels.permute(0, 2, 3, 1).cpu()]
        return torch.tensor([-self.scale * size / 1000 for size in sizes], device=images.device)

    def _size(self, pixels: Tensor) -> int:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, format="JPEG", quality=self.quality)
        return file.tell()
