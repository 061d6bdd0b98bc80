"""Molecules as pictures, drawn flat by rdkit."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from difftilt.errors import require

SIDE = 160


def drawn(
    molecules: Sequence[Any | None], legends: Sequence[str] | None = None, side: int = SIDE
) -> UInt8[Tensor, "n 3 side side"]:
    """One square picture of each molecule, an empty one with a stroke where there is none.

    Arguments:
        molecules: of rdkit, or None.
        legends: a line under each.
        side: in pixels.
    """
    legends = [""] * len(molecules) if legends is None else legends
    pictures = [_picture(m, text, side) for m, text in zip(molecules, legends, strict=True)]
    return torch.from_numpy(np.stack(pictures))


def _picture(molecule: Any | None, legend: str, side: int) -> np.ndarray:
    if molecule is None:
        blank = np.full((3, side, side), 255, dtype=np.uint8)
        blank[:, side // 2, side // 3 : side - side // 3] = 160
        return blank
    image = require("PIL.Image", "report")
    chem = require("rdkit.Chem", "molecules")
    flat = chem.Mol(molecule)
    flat.RemoveAllConformers()
    canvas = require("rdkit.Chem.Draw.rdMolDraw2D", "molecules").MolDraw2DCairo(side, side)
    canvas.DrawMolecule(flat, legend=legend)
    canvas.FinishDrawing()
    picture = image.open(io.BytesIO(canvas.GetDrawingText())).convert("RGB")
    return np.asarray(picture).transpose(2, 0, 1)
