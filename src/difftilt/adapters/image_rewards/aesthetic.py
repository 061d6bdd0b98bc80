"""How beautiful a picture is found: a small head on the features of a CLIP image tower.

    log r(x) = scale * head(f / |f|),      f the image tower's features

The head is the published LAION aesthetic predictor: one linear map, or several without activations
between them (``layers.0``, ``layers.2``, ... of the improved one), read from its state dict. Its
score goes from about 1 to 10 and is not bounded.

Source: Schuhmann 2022, the LAION aesthetic predictors.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difftilt.adapters.folders import read_weights
from difftilt.adapters.image_rewards.image_text import ImageTextScore, clip
from difftilt.errors import InputError


@final
class AestheticScore:
    """A head's score of a picture; the prompt is not read.

    Arguments:
        tower: the CLIP whose image features the head was trained on.
        head: from features (B, d) to scores (B, 1); frozen.
        scale: nats per point.

    Raises:
        InputError: the head is of features of another width than the tower's.
    """

    bound = None
    name = "aesthetic"

    def __init__(self, tower: ImageTextScore, head: nn.Module, scale: float = 1.0) -> None:
        self.tower = tower
        self.head = head.eval().requires_grad_(False)
        self.scale = scale
        width = tower.features(torch.zeros(1, 3, 8, 8)).shape[1]
        first = next(self.head.parameters())
        if first.shape[-1] != width:
            raise InputError(
                f"the aesthetic head reads {first.shape[-1]} features, but the image tower gives "
                f"{width}; use the tower that it was trained with (ViT-L/14 gives 768)"
            )

    def __call__(
        self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[str] | None = None
    ) -> Float[Tensor, " B"]:
        """log r of pictures in [0, 1], in nats; keeps the graph.

        Raises:
            InputError: the pictures are no such pictures.
        """
        features = self.tower.features(images)
        score = self.head.to(features.device)(features)[:, 0]
        return self.scale * score.to(images.device)


def aesthetic(folder: str | Path, head: str | Path, scale: float = 1.0) -> AestheticScore:
    """The aesthetic predictor of a CLIP folder and a head's file.

    Arguments:
        folder: of transformers, as for ``clip``.
        head: ``.safetensors``, or the published ``.pth`` (read as tensors only).
        scale: nats per point.

    Raises:
        InputError: no such folder or file, or they do not fit.
        MissingPackage: transformers is not installed.
    """
    return AestheticScore(clip(folder), head_of(_weights(Path(head).expanduser())), scale)


def head_of(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """The head whose state dict this is: its linear maps, in order.

    Raises:
        InputError: the maps do not fit one another, or the last gives more than one number.
    """
    names = [name.removesuffix("weight") for name in weights if name.endswith("weight")]
    ordered = sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    maps: list[nn.Module] = []
    for name in ordered:
        weight = weights[f"{name}weight"].float()
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data.copy_(weight)
        bias = weights.get(f"{name}bias", torch.zeros(len(weight)))
        layer.bias.data.copy_(bias.float())
        maps.append(layer)
    widths = [(m.in_features, m.out_features) for m in maps if isinstance(m, nn.Linear)]
    fits = all(a[1] == b[0] for a, b in pairwise(widths))
    if not widths or not fits or widths[-1][1] != 1:
        raise InputError(
            f"the aesthetic head has the linear maps {widths or 'none'}; give a state dict whose "
            "maps follow one another and end in one number"
        )
    return nn.Sequential(*maps)


def _weights(file: Path) -> Mapping[str, Tensor]:
    if not file.is_file():
        raise InputError(f"there is no file {file} of an aesthetic head; give one")
    return read_weights(file)
