"""Pictures that a recipe makes of its draws, kept in the run folder and shown by the report.

pictures/01.png  pictures/02.gif ...        listed in evaluation.json, with their captions
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from difftilt.training.files import write_bytes

Kind = Literal["png", "gif", "svg"]

MOST_SHOWN = 64


def as_bytes(pictures: Float[Tensor, "n 3 H W"]) -> UInt8[Tensor, "k 3 H W"]:
    """The first pictures in [0, 1] as ``Recipe.pictured`` wants them."""
    return (255 * pictures[:MOST_SHOWN].clamp(0, 1)).round().to(torch.uint8)


@dataclass(frozen=True)
class Picture:
    """A picture, as a file's bytes.

    Arguments:
        kind: of the file.
        content: its bytes.
        caption: what is seen; also what a reader without eyes is told.
        width: of the page that it takes: "half" stands beside another, "full" alone.
    """

    kind: Kind
    content: bytes
    caption: str
    width: Literal["half", "full"] = "half"


def save_pictures(folder: Path, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Write pictures into a run folder; returns what ``evaluation.json`` says of them.

    Raises:
        CheckpointError: the disk is full.
    """
    listed = []
    for number, picture in enumerate(pictures, 1):
        name = f"pictures/{number:02d}.{picture.kind}"
        write_bytes(folder / name, picture.content)
        listed.append({"file": name, "caption": picture.caption, "width": picture.width})
    return listed
