"""Pictures as a scorer wants them: the arithmetic of an image processor, on tensors, with a graph.

A processor of transformers (or the preprocessing of open_clip) works on 8-bit pictures, one by one.
``Processing`` holds its settings and does the same on a batch of tensors in [0, 1]: resize
(antialiased), crop the centre, normalise. What differs is rounding: a processor rounds to 1/255
after the resize, this does not, so that ``∇ log r`` is that of the picture.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

from difftilt.adapters.folders import quiet
from difftilt.errors import InputError

FILTERS = {2: "bilinear", 3: "bicubic"}  # pillow's numbers
SLACK = 1e-3  # what a decoder's rounding may carry a pixel outside [0, 1]


def checked_images(images: Tensor) -> Float[Tensor, "B 3 H W"]:
    """A batch of colour pictures in [0, 1], in float32 or wider.

    Raises:
        InputError: another shape, whole numbers, or values outside [0, 1].
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(
            f"a reward of pictures got shape {tuple(images.shape)}; give (B, 3, height, width)"
        )
    if not images.is_floating_point():
        raise InputError(
            f"a reward of pictures got {images.dtype}; give floats in [0, 1] (8-bit values / 255)"
        )
    low, high = float(images.detach().min()), float(images.detach().max())
    if low < -SLACK or high > 1 + SLACK:
        raise InputError(
            f"a reward of pictures got values from {low:.3g} to {high:.3g}; give them in [0, 1] "
            "(a picture in [-1, 1] is (x + 1) / 2)"
        )
    return images.to(torch.promote_types(images.dtype, torch.float32)).clamp(0, 1)


@dataclass(frozen=True)
class Processing:
    """Resize, crop, normalise.

    Arguments:
        size: (height, width) to resize to; or one number: that of the shorter edge; or None.
        crop: (height, width) of the centre that is kept, or None.
        mean: of each colour, subtracted.
        std: of each colour, divided by.
        filter: of the resize, "bilinear" or "bicubic", antialiased.
    """

    size: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: str = "bicubic"

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """Pictures in [0, 1] as the network wants them; keeps the graph.

        Raises:
            InputError: the pictures are not (B, 3, H, W) in [0, 1].
        """
        x = checked_images(images)
        wanted = self._resized(x.shape[2], x.shape[3])
        if wanted != tuple(x.shape[2:]):
            # Across, then down, as pillow does: a bicubic filter overshoots, 8-bit pictures cannot.
            for size in ((x.shape[2], wanted[1]), wanted):
                x = interpolate(x, size, mode=self.filter, antialias=True).clamp(0, 1)
        if self.crop is not None:
            x = _centre(x, self.crop)
        mean, std = (x.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        if isinstance(self.size, tuple):
            return self.size
        short, long = sorted((height, width))
        longer = int(self.size * long / short)
        return (self.size, longer) if height <= width else (longer, self.size)


def processing_of(folder: str | Path) -> Processing:
    """The processing that a folder of transformers asks for.

    Raises:
        InputError: the folder holds no settings of an image processor.
        MissingPackage: transformers is not installed.
    """
    with quiet():
        from transformers import AutoImageProcessor

        try:
            settings: Any = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # transformers raises many unrelated kinds
            raise InputError(
                f"{folder} holds no settings of an image processor (preprocessor_config.json); "
                "save them there with processor.save_pretrained"
            ) from error
    return _read(settings)


def _read(settings: Any) -> Processing:
    resized = getattr(settings, "do_resize", True)
    cropped = getattr(settings, "do_center_crop", False)
    normalised = getattr(settings, "do_normalize", True)
    number = int(getattr(settings, "resample", 3) or 3)
    if number not in FILTERS:
        raise InputError(
            f"the image processor resizes with pillow's filter {number}; only bilinear (2) and "
            "bicubic (3) are supported"
        )
    return Processing(
        _size(settings.size) if resized else None,
        _height_and_width(settings.crop_size) if cropped else None,
        tuple(settings.image_mean) if normalised else (0.0, 0.0, 0.0),
        tuple(settings.image_std) if normalised else (1.0, 1.0, 1.0),
        FILTERS[number],
    )


def _size(size: Any) -> int | tuple[int, int]:
    """``{"shortest_edge": s}`` as s, ``{"height": h, "width": w}`` as (h, w)."""
    edge = size.get("shortest_edge")
    return int(edge) if edge is not None else _height_and_width(size)


def _height_and_width(size: Any) -> tuple[int, int]:
    return int(size["height"]), int(size["width"])


def _centre(x: Float[Tensor, "B 3 H W"], crop: tuple[int, int]) -> Float[Tensor, "B 3 h w"]:
    """The centre of a picture; a smaller one gets a black margin first."""
    height, width = crop
    below, right = max(0, height - x.shape[2]), max(0, width - x.shape[3])
    x = pad(x, (right // 2, right - right // 2, below // 2, below - below // 2))
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]
