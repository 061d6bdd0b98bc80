"""All random numbers that a training may use: torch's, numpy's, Python's, and its own generator.

Rewards are foreign code and may draw from any global source; a resumed run draws the same.
"""

import random
from typing import Any

import numpy
import torch
from torch import Tensor


def random_tensors(generator: torch.Generator) -> dict[str, Tensor]:
    """The state of every source as tensors."""
    numpy_state: Any = numpy.random.get_state(legacy=False)
    version, words, _ = random.getstate()
    assert version == 3 and numpy_state["bit_generator"] == "MT19937"
    tensors = {
        "generator": generator.get_state(),
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor(numpy_state["state"]["key"].astype("int64")),
        "python": torch.tensor(words),
    }
    if torch.cuda.is_available():
        states = torch.cuda.get_rng_state_all()
        tensors |= {f"cuda{i}": state for i, state in enumerate(states)}
    return tensors


def random_numbers() -> dict[str, Any]:
    """What is not a tensor of it: positions, and the second half of a pair of normals."""
    state: Any = numpy.random.get_state(legacy=False)
    return {
        "numpy": [state["state"]["pos"], state["has_gauss"], state["gauss"]],
        "python": random.getstate()[2],
    }


def restore_random(
    generator: torch.Generator, tensors: dict[str, Tensor], numbers: dict[str, Any]
) -> None:
    """Set every source back."""
    generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["torch"])
    key = tensors["numpy"].numpy().astype("uint32")
    position, has_gauss, gauss = numbers["numpy"]
    numpy.random.set_state(("MT19937", key, position, has_gauss, gauss))
    random.setstate((3, tuple(tensors["python"].tolist()), numbers["python"]))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(devices):
        if f"cuda{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda{i}"], i)
