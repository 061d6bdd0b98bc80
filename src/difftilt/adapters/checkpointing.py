"""Gradient checkpointing of a diffusers network that carries adapters.

diffusers' networks recompute their blocks in the backward pass if asked to. Our adapters are on
during the posterior's forward pass alone, so that a block that is simply called again would be the
prior's: each block is recomputed with the adapters switched, and in the arithmetic, as they were
when it was first run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from difftilt.adapters.arithmetic import as_now
from difftilt.adapters.lora import as_switched, lora_layers, switches
from difftilt.errors import InputError


def checkpoint_blocks(network: Any) -> None:
    """Keep only the borders of a network's blocks for the backward pass.

    Gradients are the same; the memory is that of one block, for one more forward pass.

    Raises:
        InputError: the network cannot.
    """
    if not getattr(network, "_supports_gradient_checkpointing", False):
        raise InputError(
            f"a {type(network).__name__} has no gradient checkpointing; use checkpointing=False"
        )
    network.enable_gradient_checkpointing(_recomputed)


def _recomputed(block: nn.Module | Callable[..., Any], *inputs: Any) -> Any:
    layers = list(lora_layers(block).values()) if isinstance(block, nn.Module) else []
    states, arithmetic = switches(layers), as_now()

    @contextmanager
    def again() -> Iterator[None]:
        with as_switched(layers, states), arithmetic:
            yield

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), again()

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
