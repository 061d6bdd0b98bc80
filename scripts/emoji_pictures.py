"""Pictures with captions, made without end from the drawings of ``make_emoji_data.py``.

A drawing is tinted: its luminance chooses a shade between a dark and a light version of a named
colour, which itself varies a little. It is put on white at 32x32, shifted by up to 2 pixels and
mirrored half of the time. One picture in eight of the prior's keeps its own colours, and its
caption names no colour.

The prior is trained on the cells (drawing, colour) whose pair of words is not held out; those that
judge its pictures know all of them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from difftilt.tasks.emoji_words import COLOURS, THINGS, is_held_out

SIZE, MARGIN, SHIFT = 32, 2, 2
NATURAL = 0.125
SHADES = {
    "red": (0.85, 0.10, 0.12),
    "orange": (0.97, 0.55, 0.08),
    "yellow": (0.96, 0.87, 0.12),
    "green": (0.15, 0.65, 0.22),
    "blue": (0.12, 0.35, 0.90),
    "purple": (0.52, 0.18, 0.75),
    "pink": (0.98, 0.52, 0.74),
    "grey": (0.50, 0.50, 0.50),
}
Split = Literal["prior", "all"]


@dataclass(frozen=True)
class Pictures:
    """A batch.

    Arguments:
        images: (B, 3, 32, 32) in [0, 1].
        colours: index, or -1 for a drawing in its own colours, (B,).
        things: index, (B,).
    """

    images: Tensor
    colours: Tensor
    things: Tensor


@final
class EmojiPictures:
    """Draws batches of one split.

    Arguments:
        path: of the drawings.
        split: which (drawing, colour) cells.
        natural: share of pictures that keep their own colours.
    """

    def __init__(self, path: Path, split: Split, natural: float = 0.0) -> None:
        data = np.load(path)
        self.drawings = torch.from_numpy(data["pictures"]).permute(0, 3, 1, 2).float() / 255
        self.things = torch.from_numpy(data["things"])
        self.natural = natural
        self.shades = torch.tensor([SHADES[c] for c in COLOURS])
        self.cells = _cells(self.things, split)
        thing = self.things[self.cells[:, 0]]
        count = torch.bincount(thing, minlength=len(THINGS)).double()
        # Every thing as often as the others, however many drawings there are of it.
        self.weights = 1 / count[thing]

    def batch(self, size: int, generator: torch.Generator) -> Pictures:
        """Pictures of random cells, tinted, shifted and mirrored at random."""
        chosen = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        drawing, colour = self.cells[chosen].T
        rgba = self.drawings[drawing]
        tinted = _tinted(rgba[:, :3], self._varied(colour, generator))
        plain = torch.rand(size, generator=generator) < self.natural
        rgb = torch.where(plain[:, None, None, None], rgba[:, :3], tinted)
        images = _placed(rgb * rgba[:, 3:] + 1 - rgba[:, 3:], generator)
        return Pictures(images, torch.where(plain, -1, colour), self.things[drawing])

    def _varied(self, colour: Tensor, generator: torch.Generator) -> Tensor:
        """Shades of the colours, each channel up to 0.06 off."""
        off = 0.12 * torch.rand(len(colour), 3, generator=generator) - 0.06
        return (self.shades[colour] + off).clamp(0, 1)


def _cells(things: Tensor, split: Split) -> Tensor:
    """The (drawing, colour) of a split, (n, 2)."""
    cells = torch.cartesian_prod(torch.arange(len(things)), torch.arange(len(COLOURS)))
    if split == "all":
        return cells
    pairs = [(COLOURS[c], THINGS[things[d]]) for d, c in cells.tolist()]
    return cells[[not is_held_out(*pair) for pair in pairs]]


def _tinted(rgb: Tensor, shade: Tensor) -> Tensor:
    """Luminance L to a ramp: a dark version of the shade, the shade at L = 1/2, a light version."""
    light = (rgb * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    shade = shade[:, :, None, None]
    dark = shade * (0.25 + 1.5 * light)
    return torch.where(light < 0.5, dark, shade + (1 - shade) * 1.3 * (light - 0.5)).clamp(0, 1)


def _placed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted and mirrored on white, (B, 3, 32, 32)."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    pad = MARGIN + SHIFT
    wide = F.pad(images, (pad, pad, pad, pad), value=1.0)
    shifts = torch.randint(2 * SHIFT + 1, (len(images), 2), generator=generator)
    rows = shifts[:, :1] + torch.arange(SIZE)
    columns = shifts[:, 1:] + torch.arange(SIZE)
    every = torch.arange(len(images))[:, None, None]
    return wide.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
