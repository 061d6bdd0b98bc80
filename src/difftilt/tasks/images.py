"""Garments in 28x28: the shipped prior over Fashion-MNIST images and two classifiers that judge it.

The prior is an ordinary diffusers folder (`fashion_prior_folder`), so it loads like a user's own.
The classifiers were trained on disjoint halves of the training images with different networks:

* ``reward`` is the one a posterior may be trained on: `log r(x) = log softmax(logits)[class]`;
* ``heldout`` only judges: it tells whether samples are of the class by an opinion that no training
  has seen, and its penultimate features measure diversity and the distance to real images.

Images are (B, 1, 28, 28) in [-1, 1], as the prior makes them; logits are (B, 10) in the order of
`FASHION_CLASSES`, already divided by a temperature fitted on images that neither classifier saw.
All weights are made by ``scripts/train_image_models.py``.
"""

from pathlib import Path
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difftilt.errors import InputError
from difftilt.tasks.shipped import filled, shipped_data, shipped_folder

Garment = Literal[
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
FASHION_CLASSES: tuple[Garment, ...] = get_args(Garment)

ClassifierName = Literal["reward", "heldout"]
CLASSIFIER_WIDTHS: dict[ClassifierName, tuple[int, ...]] = {
    "reward": (16, 32, 64),
    "heldout": (24, 48, 72, 96),
}


@final
class GarmentClassifier(nn.Module):
    """A small convolutional classifier of 28x28 images whose logits are calibrated.

    Args:
        widths: channels of the convolutions; the first two are followed by a halving of the image.
    """

    temperature: Float[Tensor, ""]

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for index, (before, after) in enumerate(zip((1, *widths), widths, strict=False)):
            blocks += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            if index < 2:
                blocks.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(2 * widths[-1], len(FASHION_CLASSES))
        self.register_buffer("temperature", torch.ones(()))

    def features(self, images: Float[Tensor, " B 1 28 28"]) -> Float[Tensor, " B F"]:
        """Penultimate activations: each channel's mean and maximum over the image."""
        maps = self.body(images)
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)

    def forward(self, images: Float[Tensor, " B 1 28 28"]) -> Float[Tensor, " B 10"]:
        return self.head(self.features(images)) / self.temperature


def fashion_prior_folder() -> Path:
    """The shipped prior, a diffusers `DDPMPipeline` folder over (B, 1, 28, 28) in [-1, 1]."""
    return shipped_folder("fashion_prior")


def load_classifier(name: ClassifierName) -> GarmentClassifier:
    """One of the two shipped classifiers, in evaluation mode and with its weights frozen.

    Args:
        name: ``"reward"`` for training, ``"heldout"`` for judging.

    Raises:
        InputError: there is no such classifier.
        CheckpointError: its weights are missing or do not fit.
    """
    if name not in CLASSIFIER_WIDTHS:
        raise InputError(f"no classifier is called {name!r}; choose one of {[*CLASSIFIER_WIDTHS]}")
    path = shipped_data() / f"fashion_{name}.safetensors"
    return filled(GarmentClassifier(CLASSIFIER_WIDTHS[name]), path, "scripts/train_image_models.py")


Style = Literal["ink", "contrast"]
STYLES: tuple[Style, ...] = get_args(Style)


@final
class StyleReward:
    """An energy of an image's style: how far a statistic of it is from a wanted value.

        log r(x) = - (s(x) - wanted)² / (2 width²) <= 0

    Grey garments have no hue; these are what the hue energies of contrastive energy prediction's
    image task come to here. Pixels are read as ink in [0, 1], ``(x + 1) / 2``, clamped:

    * ``"ink"``: mean ink of the image, how much of it the garment covers and how bright it is;
    * ``"contrast"``: mean ink of the upper half minus that of the lower half.

    Arguments:
        style: which statistic s.
        wanted: its value, in [0, 1] for ink and in [-1, 1] for contrast.
        width: standard deviation around it, above 0.

    Raises:
        InputError: an unknown style, or a width that is not positive.

    Source: after Lu et al. 2023, contrastive energy prediction (arXiv 2304.12824).
    """

    def __init__(self, style: Style, wanted: float, width: float) -> None:
        if style not in STYLES:
            raise InputError(f"no style is called {style!r}; choose one of {', '.join(STYLES)}")
        if not width > 0:
            raise InputError(f"the width of a style is a number above 0, got {width}")
        self.style: Style = style
        self.wanted = wanted
        self.width = width
        self.bound: float | None = 0.0

    def __call__(self, images: Float[Tensor, "B 1 H W"]) -> Float[Tensor, " B"]:
        found = style_of(images, self.style)
        return -0.5 * ((found - self.wanted) / self.width).square()


def style_of(images: Float[Tensor, "B 1 H W"], style: Style) -> Float[Tensor, " B"]:
    """A statistic of each image's style, as of ``StyleReward``."""
    ink = ((images + 1) / 2).clamp(0, 1)
    if style == "ink":
        return ink.mean((1, 2, 3))
    half = images.shape[2] // 2
    return ink[:, :, :half].mean((1, 2, 3)) - ink[:, :, -half:].mean((1, 2, 3))


@torch.no_grad()
def features(
    classifier: GarmentClassifier, images: Float[Tensor, " B 1 28 28"], *, chunk: int = 256
) -> Float[Tensor, " B F"]:
    """Penultimate features of any number of images, ``chunk`` of them at a time."""
    if images.shape[1:] != (1, 28, 28):
        raise InputError(f"images must be (B, 1, 28, 28); these are {tuple(images.shape)}")
    return torch.cat([classifier.features(part) for part in images.split(chunk)])
