"""An unconditional diffusers pipeline as a chain.

A pipeline is a ``UNet2DModel`` and a scheduler. The UNet itself becomes the prior's network
(frozen, in eval mode, not copied), the scheduler becomes the diffusion (``adapters.schedulers``).
The record (``adapters.export``) keeps what an export needs.
"""

import copy
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difftilt.adapters.arithmetic import calculating
from difftilt.adapters.export import PipelineChain
from difftilt.adapters.folders import quiet
from difftilt.adapters.schedulers import SchedulerDiffusion, diffusion_from_scheduler
from difftilt.chains.chain import Chain
from difftilt.chains.fingerprints import fingerprint
from difftilt.errors import InputError, require
from difftilt.kernels.networks import DriftKernel
from difftilt.noise import seeded


def chain_from_pipeline(
    source: Any, steps: int, eta: float = 1.0, device: torch.device | str | None = None
) -> PipelineChain:
    """The chain that an unconditional image pipeline runs with ``steps`` inference steps.

    Arguments:
        source: folder, hub id, or an object with ``.unet`` (UNet2DModel) and ``.scheduler``. The
            UNet of a live object is used itself: frozen, put in eval mode, moved to ``device``.
        steps: number of inference steps N.
        eta: stochasticity, see ``diffusion_from_scheduler``.
        device: where the chain lives; default where the UNet is.

    Raises:
        InputError: the source cannot be read, or is no unconditional UNet2DModel with a
            supported scheduler.
        MissingPackage: diffusers is not installed.
    """
    pipeline = open_pipeline(source)
    unet, scheduler = _parts(pipeline)
    found = diffusion_from_scheduler(scheduler, steps, eta)
    _check_channels(unet, found)
    unet.eval().requires_grad_(False)
    if device is not None:
        unet.to(device)
    like = torch.zeros((), device=next(unet.parameters()).device)
    shape = _event_shape(unet.config)
    chain = Chain(found.denoiser(unet, call_unet), found.diffusion, shape, like=like)
    return PipelineChain(chain, unet, copy.deepcopy(scheduler), fingerprint(unet))


def call_unet(network: nn.Module, x: Tensor, time: Tensor) -> Tensor:
    """A UNet2DModel's output in the dtype of the state; 16-bit weights calculate in float32."""
    with calculating(network):
        dtype = next(network.parameters()).dtype
        return network(x.to(dtype), time).sample.to(x.dtype)


def drift_unet(
    chain: Chain, shrink: int = 2, generator: torch.Generator | None = None
) -> DriftKernel:
    """An additive drift by a smaller UNet2DModel of the prior's own layout, zero at the start.

    Arguments:
        chain: a chain whose network is a UNet2DModel.
        shrink: divides the prior's channels, at least 1.
        generator: for its initial weights.

    Raises:
        InputError: the chain's network is no UNet2DModel, or ``shrink`` is below 1.
        MissingPackage: diffusers is not installed.
    """
    require("diffusers", "diffusers")
    from diffusers.models.unets.unet_2d import UNet2DModel

    prior: Any = chain.denoiser
    network: Any = getattr(prior, "network", None)
    if shrink < 1:
        raise InputError(f"shrink divides the prior's channels, so at least 1, got {shrink}")
    if not is_unet(network):
        raise InputError(
            "drift_unet needs a chain whose network is a diffusers UNet2DModel; for another, build "
            "a DriftKernel with a zero-initialised network of your own"
        )
    config = _drift_config(dict(network.config), chain.event_shape[0], shrink)
    with seeded(generator):
        drift = UNet2DModel(**config).eval()
    for parameter in drift.conv_out.parameters():
        nn.init.zeros_(parameter)
    nn.Module.to(drift, chain.like.device)
    return DriftKernel(drift, chain.gaussian, call_unet, unit_input=prior.unit_input)


def _drift_config(config: dict[str, Any], event_channels: int, shrink: int) -> dict[str, Any]:
    """The prior's config on fewer channels, with the blocks whose output ``conv_out`` decides."""
    groups = config["norm_num_groups"] or 32
    smallest = gcd(groups, *config["block_out_channels"])
    # Multiples of the prior's own granularity stay divisible by its norm groups.
    own = tuple(max(c // shrink // smallest, 1) * smallest for c in config["block_out_channels"])
    kept = ("sample_size", "layers_per_block", "add_attention", "downsample_padding", "norm_eps")
    derived = {name: config[name] for name in kept if name in config}
    for side in ("down", "up"):
        kinds = config[f"{side}_block_types"]
        plain = f"{side.capitalize()}Block2D"
        derived[f"{side}_block_types"] = tuple("Attn" * ("Attn" in k) + plain for k in kinds)
    derived["block_out_channels"] = own
    derived["norm_num_groups"] = gcd(max(groups // shrink, 1), *own)
    derived["attention_head_dim"] = min(config["attention_head_dim"] or 8, *own)
    return derived | {"in_channels": event_channels, "out_channels": event_channels}


def open_pipeline(source: Any) -> Any:
    """The pipeline of a folder or hub id; a live one is returned as it is.

    Raises:
        InputError: the source cannot be read.
        MissingPackage: diffusers is not installed.
    """
    require("diffusers", "diffusers")
    if not isinstance(source, str | Path):
        return source
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"{folder} holds no model_index.json, so it is no diffusers pipeline; "
                "write one with pipeline.save_pretrained"
            )
    elif isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise InputError(f"no pipeline folder at {folder}; give a folder or a hub id 'owner/name'")
    try:
        with quiet():
            from diffusers.pipelines.pipeline_utils import DiffusionPipeline

            return DiffusionPipeline.from_pretrained(folder if folder.is_dir() else source)
    except Exception as error:  # the hub's client and diffusers raise a dozen unrelated kinds
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(
            f"{source} is neither a readable pipeline folder nor a reachable hub id: {reason}"
        ) from error


def is_unet(network: Any) -> bool:
    """Whether a network is a diffusers UNet2DModel."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    return isinstance(network, UNet2DModel)


def _parts(pipeline: Any) -> tuple[Any, Any]:
    unet: Any = getattr(pipeline, "unet", None)
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None or not is_unet(unet):
        raise InputError(
            "a pipeline needs .unet (a UNet2DModel) and .scheduler, got "
            f"{type(pipeline).__name__} with unet {type(unet).__name__} and scheduler "
            f"{type(scheduler).__name__}"
        )
    if unet.class_embedding is not None:
        raise InputError(
            "the UNet is conditioned on class labels; only unconditional UNets are supported"
        )
    return unet, scheduler


def _check_channels(unet: Any, found: SchedulerDiffusion) -> None:
    learned = found.diffusion.learned_range is not None
    expected = unet.config.in_channels * (1 + learned)
    if unet.config.out_channels != expected:
        raise InputError(
            f"the UNet returns {unet.config.out_channels} channels where its scheduler needs "
            f"{expected}; variance_type='learned_range' goes with twice the input's channels, "
            "and any other with the same number"
        )


def _event_shape(config: Any) -> tuple[int, int, int]:
    size = config.sample_size
    if size is None:
        raise InputError("the UNet's config has no sample_size; set it to the side in pixels")
    height, width = (size, size) if isinstance(size, int) else size
    return config.in_channels, height, width
