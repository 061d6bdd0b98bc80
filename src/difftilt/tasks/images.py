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

from importlib.resources import files
from pathlib import Path
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from difftilt.errors import CheckpointError, InputError

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
    return _data_folder() / "fashion_prior"


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
    path = _data_folder() / f"fashion_{name}.safetensors"
    classifier = GarmentClassifier(CLASSIFIER_WIDTHS[name])
    try:
        classifier.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"the classifier's weights {path} cannot be used ({error}); reinstall difftilt or run "
            "scripts/train_image_models.py"
        ) from error
    return classifier.eval().requires_grad_(False)


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


def diversity(
    features: Float[Tensor, " B F"], generator: torch.Generator | None = None, *, limit: int = 2000
) -> float:
    """Mean Euclidean distance between two different rows.

        (2 / (B (B - 1))) Σ_{i<j} |f_i - f_j|

    Args:
        features: at least two rows.
        generator: draws the subset when there are more than ``limit`` rows.
        limit: the largest number of rows whose pairs are all visited; a random subset of that
            many stands for a larger set.

    Raises:
        InputError: fewer than two rows.
    """
    count = min(len(features), limit)
    if count < 2:
        raise InputError(f"diversity needs at least 2 samples and limit >= 2; it has {count}")
    if len(features) > limit:
        features = features[torch.randperm(len(features), generator=generator)[:limit]]
    return torch.pdist(features.double()).mean().item()


def frechet_distance(features_a: Float[Tensor, " A F"], features_b: Float[Tensor, " B F"]) -> float:
    """Squared Fréchet distance between the Gaussians that have the two sets' moments.

        |m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½)

    It is biased upwards by about tr(C)·(1/A + 1/B) at least, so compare it with the distance of
    two sets of real images of the same sizes.

    Raises:
        InputError: a set has fewer than two rows, or the widths differ.

    Source: Dowson and Landau (1982); as a score of generators, Heusel et al. (2017), eq. 6, there
    with Inception features, here with those of a classifier.
    """
    if min(len(features_a), len(features_b)) < 2 or features_a.shape[1] != features_b.shape[1]:
        raise InputError(
            "the Fréchet distance needs two (n, F) sets of at least 2 rows with one F; these are "
            f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        )
    a, b = features_a.double(), features_b.double()
    cov_a, cov_b = _covariance(a), _covariance(b)
    # tr (C_a C_b)^½ is the sum of the singular values of C_a^½ C_b^½: no complex matrix root.
    cross = torch.linalg.svdvals(_symmetric_root(cov_a) @ _symmetric_root(cov_b)).sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, (shift + cov_a.trace() + cov_b.trace() - 2 * cross).item())


def _covariance(rows: Float[Tensor, " B F"]) -> Float[Tensor, " F F"]:
    return torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1])


def _symmetric_root(matrix: Float[Tensor, " F F"]) -> Float[Tensor, " F F"]:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _data_folder() -> Path:
    return Path(str(files("difftilt.tasks") / "data"))
