"""Low-rank adapters: a posterior in the prior's own network.

peft attaches ``W x + (alpha / rank) B A x`` to chosen layers. At rest every adapter is off, so the
prior's denoiser, which nobody touches, *is* the prior; the posterior's denoiser switches its own
adapter on for its own forward passes and off again, whatever happens in between. ``B`` starts at
zero, so the posterior starts at the prior.

A kernel's ``parameters()`` and ``state_dict()`` hold its adapter alone. Several kernels may share
one prior; each has an adapter of its own.

Source: Hu et al. 2021 (arXiv 2106.09685).
"""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.denoisers import Denoiser
from difftilt.errors import InputError, require
from difftilt.kernels.networks import DenoiserKernel
from difftilt.noise import seeded

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class AdaptedDenoiser(Denoiser):
    """A prior's denoiser with one adapter switched on.

    Arguments:
        prior: the denoiser whose network carries the adapter; shared, not owned.
        adapter: the adapter's name in peft.
        layers: peft's layers by their names in ``prior``.
    """

    def __init__(self, prior: Denoiser, adapter: str, layers: dict[str, Any]) -> None:
        super().__init__()
        # In a tuple, so that the prior's weights are not this module's.
        self._prior = (prior,)
        self.adapter = adapter
        self.layers = layers
        self.weights = nn.ParameterDict(
            {
                f"{name}.{matrix}".replace(".", "/"): getattr(layer, matrix)[adapter].weight
                for name, layer in layers.items()
                for matrix in ("lora_A", "lora_B")
            }
        )

    @property
    def prior(self) -> Denoiser:
        """The denoiser that carries the adapter."""
        return self._prior[0]

    def forward(self, x_t: Shaped[Tensor, "B ..."], level: Any) -> Float[Tensor, "B ..."]:
        with self.active() as prior:
            return prior(x_t, level)

    @contextmanager
    def active(self) -> Iterator[Denoiser]:
        with _switched_on(self.layers.values(), self.adapter):
            yield self.prior

    def given(self, condition: Tensor | None) -> "AdaptedDenoiser":
        bound = copy.copy(self)
        bound._prior = (self.prior.given(condition),)
        return bound


def lora(
    chain: Chain,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] | str = ATTENTION,
    generator: torch.Generator | None = None,
) -> DenoiserKernel:
    """A posterior kernel of low-rank adapters in the prior's own network.

    Arguments:
        chain: the prior, any Denoiser with Linear or Conv2d layers; its weights are frozen.
        rank: rank of each adapter, at least 1.
        alpha: strength; the adapter's output is scaled by ``alpha / rank``. Default ``rank``.
        targets: endings of layer names, default those of attention; "all" for every Linear and
            Conv2d.
        generator: for the adapters' initial weights.

    Raises:
        InputError: ``rank`` or ``alpha`` out of range, or a target that names no layer.
        MissingPackage: peft is not installed.
    """
    peft = require("peft", "diffusers")
    alpha = float(rank) if alpha is None else alpha
    if rank < 1 or alpha <= 0:
        raise InputError(f"lora needs rank >= 1 and alpha > 0, got rank={rank}, alpha={alpha}")
    names = _targeted(chain.denoiser, targets)
    adapter = f"difftilt{_adapters_of(chain.denoiser)}"
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="|".join(map(re.escape, names))
    )
    with seeded(generator):
        peft.inject_adapter_in_model(config, chain.denoiser, adapter_name=adapter)
    # A note to peft that the next adapter would stumble over.
    del chain.denoiser.peft_config
    layers: dict[str, Any] = {name: chain.denoiser.get_submodule(name) for name in names}
    for layer in layers.values():
        layer.train(layer.get_base_layer().training)
        for matrix in (layer.lora_A, layer.lora_B):
            # Half precision would swallow the small updates of a fine-tuning.
            weight = matrix[adapter].weight
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
    _switch_off(layers.values())
    return DenoiserKernel(
        AdaptedDenoiser(chain.denoiser.informed(), adapter, layers), chain.diffusion
    )


def plain_copy(network: nn.Module, adapter: str | None = None, wide: bool = False) -> nn.Module:
    """A copy of a network without peft's layers; one adapter may be merged into its weights.

    Arguments:
        network: with peft's layers or without.
        adapter: what is merged, or None.
        wide: merge in float32 at least, so that 16 bits do not swallow a small adapter.
    """
    plain = copy.deepcopy(network)
    if wide:
        own = next(network.parameters()).dtype
        nn.Module.to(plain, torch.promote_types(own, torch.float32))
    for name, layer in lora_layers(plain).items():
        if adapter is not None and adapter in layer.lora_A:
            # A head may share its weight with the embedding, which the adapter does not touch.
            base = layer.get_base_layer()
            base.weight = nn.Parameter(base.weight.detach().clone())
            layer.merge(safe_merge=True, adapter_names=[adapter])
        parent, _, child = name.rpartition(".")
        setattr(plain.get_submodule(parent), child, layer.get_base_layer())
    return plain.requires_grad_(False)


@contextmanager
def _switched_on(layers: Any, adapter: str) -> Iterator[None]:
    """Not peft's own switch: that flips ``requires_grad`` before the graph's backward."""
    try:
        for layer in layers:
            layer._active_adapter = [adapter]
            layer._disable_adapters = False
        yield
    finally:
        _switch_off(layers)


@contextmanager
def as_switched(layers: Sequence[Any], states: Sequence[tuple[Any, bool]]) -> Iterator[None]:
    """Inside, adapted layers are on or off as they were when ``switches`` read them."""
    before = switches(layers)
    try:
        _switch(layers, states)
        yield
    finally:
        _switch(layers, before)


def switches(layers: Sequence[Any]) -> list[tuple[Any, bool]]:
    """Which adapter of each layer is active, and whether the layer's adapters are off."""
    return [(layer._active_adapter, layer._disable_adapters) for layer in layers]


def _switch(layers: Sequence[Any], states: Sequence[tuple[Any, bool]]) -> None:
    for layer, (adapter, off) in zip(layers, states, strict=True):
        layer._active_adapter, layer._disable_adapters = adapter, off


def _switch_off(layers: Any) -> None:
    for layer in layers:
        layer._disable_adapters = True


def lora_layers(root: nn.Module) -> dict[str, Any]:
    """peft's layers by their names in a module."""
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in root.named_modules() if isinstance(m, LoraLayer)}


def _adapters_of(root: nn.Module) -> int:
    """How many adapters the network carries already."""
    return len({adapter for layer in lora_layers(root).values() for adapter in layer.lora_A})


def _adaptable(root: nn.Module) -> list[str]:
    """Names of the Linear and Conv2d layers, adapted already or not."""
    adapted = tuple(lora_layers(root))
    inside = tuple(f"{name}." for name in adapted)
    return [
        name
        for name, module in root.named_modules()
        if name in adapted
        # Exact types: a subclass (as in MultiheadAttention) may be used past its forward.
        or (type(module) in (nn.Linear, nn.Conv2d) and not name.startswith(inside))
    ]


def _targeted(root: nn.Module, targets: Sequence[str] | str) -> list[str]:
    present = _adaptable(root)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    matches = {target: [n for n in present if _ends(n, target)] for target in wanted}
    missing = [target for target, names in matches.items() if not names]
    if missing or not wanted:
        endings = sorted({re.sub(r".*\.(?=[^.]*[^.\d][^.]*)", "", name) for name in present})
        raise InputError(
            f"lora's targets {missing} name no Linear or Conv2d layer of the prior's network, "
            f"which has {', '.join(endings) or 'none'}; choose among them, or targets='all'"
        )
    chosen = {name for names in matches.values() for name in names}
    return [name for name in present if name in chosen]


def _ends(name: str, target: str) -> bool:
    return target == "all" or name == target or name.endswith(f".{target}")
