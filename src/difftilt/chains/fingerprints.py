"""By what a saved run recognises its prior: a digest of weights, and a chain in a few numbers.

A posterior is a tilt of one chain: with other levels, another meaning of the network's output or
other weights it samples something else. Weights are read from files and compared to the bit. Tables
are computed, with last bits that depend on the machine, so ``chain_record`` tells their size alone.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.denoisers import Denoiser
from difftilt.diffusions.base import Diffusion

UNTOLD = ("training", "condition")
"""Attributes of a denoiser that are no part of its law."""


def fingerprint(network: nn.Module) -> str:
    """sha256 of a network's weights (names, dtypes, shapes, bytes), adapters left out."""
    digest = hashlib.sha256()
    for name, tensor in base_weights(network):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def base_weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The network's own weights under their own names, whether or not adapters are attached."""
    for name, tensor in sorted(network.state_dict().items()):
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor


def chain_record(chain: Chain, weights: bool = True) -> dict[str, Any]:
    """A prior's chain as JSON: its diffusion's tables, its denoiser, the shape of a state.

    Arguments:
        chain: the prior.
        weights: also the fingerprints of the denoiser's networks.
    """
    return {
        "diffusion": described(chain.diffusion, weights),
        "denoiser": described(chain.denoiser, weights),
        "event_shape": list(chain.event_shape),
    }


def described(value: Any, weights: bool = True) -> Any:
    """JSON of a part of a chain, or of a record of options; None for functions and the like.

    Arguments:
        value: numbers, texts, tensors, networks, frozen dataclasses, denoisers, diffusions.
        weights: also the fingerprints of networks.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, Tensor):
        return _measured(value)
    if isinstance(value, dict):
        return {str(name): described(each, weights) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return {str(i): described(each, weights) for i, each in enumerate(value)}
    if isinstance(value, Denoiser | Diffusion) or _is_record(value):
        return {"kind": type(value).__name__, **_attributes(value, weights)}
    if weights and isinstance(value, nn.Module):
        return fingerprint(value)
    return None


def _attributes(value: Any, weights: bool) -> dict[str, Any]:
    """What an object of the package is made of; of a user's denoiser, its networks alone."""
    inside = {**value._modules, **value._buffers} if isinstance(value, nn.Module) else {}
    if _is_record(value) or type(value).__module__.startswith("difftilt."):
        inside |= vars(value)
    told = {k: v for k, v in inside.items() if not k.startswith("_") and k not in UNTOLD}
    return {k: described(v, weights) for k, v in sorted(told.items())}


def _is_record(value: Any) -> bool:
    """Whether it is a frozen dataclass, which stays as it was made."""
    kind: Any = type(value)
    return is_dataclass(value) and kind.__dataclass_params__.frozen


def _measured(tensor: Tensor) -> dict[str, Any]:
    """A table's number of entries and the root mean square of the finite ones; digits of codes."""
    if not tensor.is_floating_point():
        return {"sha256": hashlib.sha256(_bytes(tensor)).hexdigest()}
    finite = tensor.detach().double()[tensor.detach().isfinite()]
    size = float(finite.square().mean().sqrt()) if len(finite) else 0.0
    return {"entries": tensor.numel(), "finite": len(finite), "root_mean_square": size}


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
